"""The rerank functions of the PyMilvus model library, as they are."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple

from pydantic import Field, PrivateAttr, field_validator

from milvus_pipeline import DeadlineError, StageError
from milvus_pipeline.plugin import CheckContext, Context, Deadline, Finding, Reranker, RerankJob
from milvus_stages.hosted.plan import Limits, plan
from milvus_stages.local.anytime import in_words, until_time_is_up
from milvus_stages.local.files import Origin
from milvus_stages.privacy.redaction import Private, chain_is_clean
from milvus_stages.privacy.secrets import environment, plain_arguments, resolved_arguments
from milvus_stages.rerank._pymilvus_library import (
    LOCAL,
    PAIRWISE,
    check_names,
    exported,
    library,
    origin_of,
    without_installing,
)

_VARIABLES: Final = {
    "CohereRerankFunction": ("CO_API_KEY", "COHERE_API_KEY"),
    "VoyageRerankFunction": ("VOYAGE_API_KEY_PATH", "VOYAGE_API_KEY"),
    "JinaRerankFunction": ("JINAAI_API_KEY",),
    "JevRerankFunction": ("TYPESAFE_API_KEY",),
}
"""Where the functions look for a key of their own."""

_KEYS: Final = ("CO_API_KEY", "COHERE_API_KEY", "VOYAGE_API_KEY", "JINAAI_API_KEY", "TYPESAFE_API_KEY", "HF_TOKEN")
_KEY_FILE: Final = "VOYAGE_API_KEY_PATH"
_KEY_FILE_BYTES: Final = 10_000
_STAGES: Final = {
    "CohereRerankFunction": "cohere",
    "VoyageRerankFunction": "voyage",
    "JinaRerankFunction": "jina",
    "TEIRerankFunction": "tei",
    "JevRerankFunction": "jev",
}
"""The stages that do the work of the functions that call a service."""

_MISREAD: Final = {
    "CohereRerankFunction": "this function cannot run with today's SDK of Cohere",
    "JinaRerankFunction": "this function reads only replies that repeat every document as an object",
}


class _Opened(NamedTuple):
    """A rerank function, the keys that no message may repeat, and the files of its model where they are known."""

    function: Callable[..., Any]
    keys: frozenset[str]
    origin: Origin | None


_Scores = dict[int, list[float | None]]
"""The scores of a query's texts by its position in the batch."""


class PymilvusModel(Reranker):
    """Scores with a rerank function of the PyMilvus model library (``pymilvus.model.reranker``), of your choice.

    For those who use one already: ``function`` is the name of its class, ``arguments`` what it is made with. It gets
    all texts at once, save blank ones, and one query at a time. The functions have neither a timeout nor retries of
    their own: a call under way ends when its service answers. Packages that a function needs are never installed on
    its behalf, as the library would do; an error names them.

    Keys are not written into ``arguments``. ``{env: NAME}`` in the place of a value, on any level, stands for the
    environment variable NAME, which is read when the stage opens. Without an ``api_key``, the functions read variables
    of their own:

    - ``CohereRerankFunction``: CO_API_KEY, else COHERE_API_KEY
    - ``VoyageRerankFunction``: VOYAGE_API_KEY_PATH (a file that holds the key), else VOYAGE_API_KEY
    - ``JinaRerankFunction``: JINAAI_API_KEY (not JINA_API_KEY)
    - ``JevRerankFunction``: TYPESAFE_API_KEY

    ``TEIRerankFunction``, ``BGERerankFunction`` and ``CrossEncoderRerankFunction`` take no key.
    """

    type: ClassVar[str] = "pymilvus_model"

    function: Annotated[str, Field(description="Class of pymilvus.model.reranker, such as BGERerankFunction.")]
    arguments: Annotated[
        dict[str, Any],
        Field(description="What the function is made with. {env: NAME} stands for an environment variable."),
    ] = {}

    _opened: _Opened | None = PrivateAttr(default=None)
    _calls: Any = PrivateAttr(default_factory=threading.Lock)

    # What stands where a name or a mapping was meant may be a key, so these messages repeat nothing.

    @field_validator("function", mode="before")
    @classmethod
    def _name_not_path(cls, value: Any) -> Any:
        if not isinstance(value, str) or not value.isidentifier():
            raise ValueError(
                "must be the name of a class of pymilvus.model.reranker, such as BGERerankFunction, without a path"
            )
        return value

    @field_validator("arguments", mode="before")
    @classmethod
    def _plain_and_without_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping of the function's argument names to values")
        if not all(isinstance(name, str) and name.isidentifier() for name in value):
            raise ValueError("the names must be those of arguments in Python, such as model_name")
        if _trusts_code(value):
            raise ValueError("trust_remote_code: Python code that comes with a model is never run; leave it out")
        return plain_arguments(value)

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Import the library, read the environment, and make the function, which loads its model."""
        found = exported(self.function, self.name)
        arguments, keys = resolved_arguments(self.arguments, "arguments", "the function")
        check_names(self.function, found, arguments)
        secrets = keys | _keys_of_others()
        origin = origin_of(self.function, found, arguments)
        try:
            with without_installing():
                function = found(**arguments)
            # Where it was downloaded just now, it is looked for again.
            origin = origin or origin_of(self.function, found, arguments)
            self._opened = _Opened(function, secrets, origin)
            return
        except Exception as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            step = f'; install it with: pip install "{missing}"' if missing else self._lack_of_key()
            failure = self._failure("cannot be made", error, step, secrets, ())
        raise failure  # here, where the foreign error is no context that a traceback would print

    def identity(self) -> Mapping[str, Any]:
        """The function, the library's version, and which files its model was read from where that can be told."""
        origin = self._ready.origin if self.function in LOCAL else None
        revision = {} if origin is None else {"revision": origin.revision()}
        return {"function": self.function, "library": library(), **revision}

    def check(self, context: CheckContext) -> Iterable[Finding]:
        """The library, the function, its arguments and its key; the function itself is not made."""
        try:
            found = exported(self.function, self.name)
            arguments, _ = resolved_arguments(self.arguments, "arguments", "the function")
            check_names(self.function, found, arguments)
        except StageError as error:
            yield Finding.of(error, "function")
            return
        yield Finding.ok("function", f"{self.function} is there, and takes these arguments; its model is not looked at")
        if self._lack_of_key():
            variables = " or ".join(_VARIABLES[self.function])
            yield Finding.error("key", f"{variables} is not set", self._lack_of_key().removeprefix("; "))
        if self.sends and context.hits is not None:
            yield Finding.ok("requests", f"a query with {context.hits:,} hits is 1 request")

    def teardown(self) -> None:
        """Let go of the function, and of its model with it."""
        self._opened = None

    # -- work ---------------------------------------------------------------------------------------------------

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """The relevance of each text to the query; see ``score_batch``."""
        return self.scored_alone(query, texts, Deadline())

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """Call the function once a query. The queries that are not reached in time fail, those scored are kept.

        Raises:
            DeadlineError: the time is up before the first call, or the call was given up.
        """
        answered: _Scores = {}
        self._score_each(answered, jobs, context)
        return _in_order(answered, jobs)

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """``score_batch`` in a thread, for an event loop, which keeps what is answered when the time is up."""
        growing: _Scores = {}
        await until_time_is_up(lambda clock: self._score_each(growing, jobs, clock.context), context)
        answered = dict(growing)  # the thread may still write into the other
        for position in range(len(jobs)):
            if position not in answered:  # an error that is known is kept
                late = f"{self.function} did not answer {in_words(context.deadline)}; raise `timeout` or ask for less"
                context.fail(position, DeadlineError(late))
        return _in_order(answered, jobs)

    def _score_each(self, answered: _Scores, jobs: Sequence[RerankJob], context: Context) -> None:
        """Put the scores of each query in its place when they are whole; its failure goes into the context."""
        opened = self._ready
        for position, job in enumerate(jobs):
            own: list[float | None] = [None] * len(job.texts)
            try:
                context.check()
                self._score_into(own, opened, job, position, context)
            except DeadlineError as error:
                if position == 0 or context.cancelled:
                    raise
                context.fail(position, error)
            except StageError as error:
                context.fail(position, error)
            else:
                answered[position] = own

    @property
    def _ready(self) -> _Opened:
        if self._opened is None:
            raise StageError(f"{self.name} is not open", "call open() first, or run it in a pipeline")
        return self._opened

    @property
    def scores_lists(self) -> bool:
        """True unless the function is known to read each document by itself."""
        return self.function not in PAIRWISE

    @property
    def sends(self) -> bool:
        """Whether the function calls a service."""
        return self.function in _STAGES

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what a function that calls a service would send: one request a query, with all of its texts."""
        for position, job in enumerate(jobs if self.sends else ()):
            plan(job, Limits(), self.function).note(context, position)

    def _score_into(
        self, scores: list[float | None], opened: _Opened, job: RerankJob, position: int, context: Context
    ) -> None:
        planned = plan(job, Limits(), self.function)
        planned.report(context, position)
        if not planned.parts:
            return
        kept = planned.parts[0].places
        results = self._called(opened, job.query, [job.texts[place] for place in kept], context)
        for index, score in self._scores_of(results, len(kept)):
            scores[kept[index]] = score
        if len(results) < len(kept):
            why = "; the function cuts every answer to 5: use the stage `tei`" if "TEI" in self.function else ""
            context.warn(
                f"{self.function} returned {len(results)} of {len(kept)} documents; the others are ranked last, "
                f"without a score{why}",
                position,
            )

    def _called(self, opened: _Opened, query: str, texts: list[str], context: Context) -> list[Any]:
        """What the function returns for these texts. One call at a time: none of them is known to be thread-safe."""
        left = context.deadline.remaining()
        if not self._calls.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise DeadlineError(
                (
                    f"the time given ({context.deadline.budget:g} s) passed while another call of "
                    f"{self.function} was under way, which has no timeout"
                ),
                "raise `timeout` or ask for less",
            )
        try:
            context.check()
            with without_installing():
                return list(opened.function(query, texts, top_k=len(texts)))
        except DeadlineError:
            raise
        except Exception as error:
            step = self._lack_of_key() or self._advice(error)
            failure = self._failure("failed", error, step, opened.keys, [query, *texts])
        finally:
            self._calls.release()
        raise failure

    def _scores_of(self, results: Sequence[Any], count: int) -> Iterator[tuple[int, float]]:
        """Index and score of every result.

        Raises:
            StageError: an index is no whole number from 0 to ``count - 1`` or stands twice, or a score is not finite.
        """
        seen = set()
        for result in results:
            index, score = getattr(result, "index", None), getattr(result, "score", None)
            index = int(index) if isinstance(index, Integral) and not isinstance(index, bool) else -1
            if not 0 <= index < count:
                raise self._wrong(f"gave an index that is no whole number from 0 to {count - 1}")
            if index in seen:
                raise self._wrong(f"gave the index {index} twice")
            seen.add(index)
            try:
                value = math.nan if isinstance(score, str | bytes | bool | None) else float(score)
            except (TypeError, ValueError, OverflowError):
                value = math.nan
            if not math.isfinite(value):
                raise self._wrong(f"gave document {index} a score that is not a finite number")
            yield index, value

    def _wrong(self, what: str) -> StageError:
        instead = _STAGES.get(self.function)
        step = f"try the stage `{instead}`" if instead else "check its model"
        return StageError(f"{self.function} {what}", str(step), reason_code="bad_reply")

    # -- failures -----------------------------------------------------------------------------------------------

    def _failure(
        self, did: str, error: Exception, step: str, keys: Collection[str], texts: Sequence[str]
    ) -> StageError:
        """The error that says what the function did, and the next step, without a key or a text.

        The foreign error is its cause unless that carries any. Nothing is raised here, so that the caller can do so
        where the foreign error is not the context.
        """
        private = Private(keys, lambda: texts)
        said = private.clean(_text_of(error)).rstrip(".")
        failure = StageError(f"{self.function} {did}: {type(error).__name__}{': ' if said else ''}{said}{step}")
        if chain_is_clean(error, private):
            failure.__cause__ = error
        return failure

    def _lack_of_key(self) -> str:
        """What to do where the function has no key; empty where it has one, or needs none."""
        variables = _VARIABLES.get(self.function, ())
        if not variables or "api_key" in self.arguments or any(map(environment, variables)):
            return ""
        return f"; set {' or '.join(variables)}, or give `arguments: {{api_key: {{env: NAME}}}}`"

    def _advice(self, error: Exception) -> str:
        """What is known of a function that fails, and the stage to take instead; empty for a local model."""
        stage = _STAGES.get(self.function)
        if stage is None:
            return ""
        what = "this function makes one attempt, without a timeout, and hides the status"
        if isinstance(error, TypeError | LookupError | AttributeError):  # from its reading of the reply
            what = _MISREAD.get(self.function, "this function does not know what the service replied")
        return f"; {what}: use the stage `{stage}`"


def _trusts_code(value: Any) -> bool:
    """Whether ``trust_remote_code`` is set, on any level."""
    if isinstance(value, Mapping):
        return any((name == "trust_remote_code" and own) or _trusts_code(own) for name, own in value.items())
    return isinstance(value, list | tuple) and any(map(_trusts_code, value))


# -- what no message may carry --------------------------------------------------------------------------------------


def _keys_of_others() -> set[str]:
    """The keys that the functions find by themselves."""
    keys = {os.environ[name] for name in _KEYS if environment(name)}
    try:
        with Path(environment(_KEY_FILE)).open(encoding="utf-8") as file:
            keys.add(file.read(_KEY_FILE_BYTES))
    except (OSError, ValueError):  # no file, so no key
        pass
    return {key for key in keys if key.strip()}


def _text_of(error: BaseException) -> str:
    """What the error says; nothing where it fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def _in_order(answered: _Scores, jobs: Sequence[RerankJob]) -> list[list[float | None]]:
    return [answered.get(position) or [None] * len(job.texts) for position, job in enumerate(jobs)]
