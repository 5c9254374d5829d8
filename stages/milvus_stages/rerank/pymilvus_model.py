"""The stage that runs a rerank function of the PyMilvus model library."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from typing import Annotated, Any, ClassVar, Final, NamedTuple

from pydantic import Field, PrivateAttr, field_validator

from milvus_pipeline import ConfigError, DeadlineError, StageError
from milvus_pipeline.plugin import Context, Reranker, RerankJob, error_text, require, suggestion
from milvus_stages.hosted.plan import Limits, plan
from milvus_stages.local.anytime import Clock, Threads, arun_in_time, late_error, run_in_time
from milvus_stages.local.files import Origin, locate_here
from milvus_stages.milvus.client.server import pymilvus_for
from milvus_stages.privacy.redaction import Private, chain_is_clean
from milvus_stages.privacy.secrets import plain_arguments, resolved_arguments

_EXTRA: Final = "pymilvus-model"
_LOCAL: Final = {"BGERerankFunction": "bge", "CrossEncoderRerankFunction": "cross_encoder"}
_SERVICES: Final = {
    "CohereRerankFunction": "cohere",
    "VoyageRerankFunction": "voyage",
    "JinaRerankFunction": "jina",
    "TEIRerankFunction": "tei",
    "JevRerankFunction": "jev",
}
"""The functions that call a service, and the stages that do the same; above, those that run a model here."""

_PAIRWISE: Final = {*_LOCAL, *_SERVICES} - {"JinaRerankFunction"}
"""The functions that are known to score each document independently of the others."""

_Scores = list[float | None]
_refuse_installs: ContextVar[bool] = ContextVar("_refuse_installs", default=False)


class _Opened(NamedTuple):
    """A rerank function, its keys, the files of its model if known, and what makes its calls run one at a time."""

    function: Callable[..., Any]
    keys: frozenset[str]
    origin: Origin | None
    threads: Threads
    lock: threading.Lock


class PymilvusModel(Reranker):
    """Scores with a rerank function of the PyMilvus model library (``pymilvus.model.reranker``).

    For users who have one already: ``function`` is the name of its class, ``arguments`` are those of its constructor.
    It gets all texts of a query that are not blank, and one query at a time. The functions have neither a timeout nor
    retries: a call that is running ends when its service answers. The stages ``bge``, ``cross_encoder``, ``cohere``,
    ``voyage``, ``jina``, ``tei`` and ``jev`` do the same work with both. Of the exception of a function that calls
    a service, errors name only the class, since its message may repeat a key or a text. Packages that a function needs
    are never installed, as the library itself would do; an error names them.

    A key is not written into ``arguments``: ``{env: NAME}`` in place of a value, on any level, is replaced by the
    environment variable NAME when the stage opens. Without an ``api_key``, a function reads its own variables.
    """

    type: ClassVar[str] = "pymilvus_model"

    function: Annotated[str, Field(description="Class of pymilvus.model.reranker, such as BGERerankFunction.")]
    arguments: Annotated[
        dict[str, Any],
        Field(description="Arguments of its constructor. {env: NAME} is replaced by an environment variable."),
    ] = {}

    _opened: _Opened | None = PrivateAttr(default=None)

    # A value in the wrong place may be a key, so these messages do not repeat it.

    @field_validator("function", mode="before")
    @classmethod
    def _name_not_path(cls, value: Any) -> Any:
        if not isinstance(value, str) or not value.isidentifier():
            raise ValueError("must be the name of a class of pymilvus.model.reranker, without a path")
        return value

    @field_validator("arguments", mode="before")
    @classmethod
    def _plain_and_without_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping of the function's argument names to values")
        if not all(isinstance(name, str) and name.isidentifier() for name in value):
            raise ValueError("the names must be those of arguments in Python, such as model_name")
        if _trusts_code(value):
            raise ConfigError(
                "Python code that comes with a model is never run", "leave it out", place="trust_remote_code"
            )
        return plain_arguments(value)

    def setup(self) -> None:
        """Import the library, read the environment, and create the function, which loads its model."""
        found, arguments, keys = self.resolve()
        origin = self._origin(found, arguments)
        failure = None
        try:
            function = self._without_installs(found, **arguments)
        except Exception as error:
            failure = self._failure("cannot be created", error, keys, ())
        if failure is not None:
            raise failure  # here, not above: the function's error would be its context, and a traceback prints that
        origin = origin or self._origin(found, arguments)  # the files may have been downloaded just now
        self._opened = _Opened(function, keys, origin, Threads(1), threading.Lock())

    def teardown(self) -> None:
        """Release the function, and its model with it."""
        self._opened = None

    def identity(self) -> Mapping[str, Any]:
        """Return the function, the library's version, and the revision of its model's files if they are known."""
        origin = self._ready.origin
        try:
            library = f"pymilvus.model {version('pymilvus.model')}"
        except PackageNotFoundError:  # found on a path
            library = "pymilvus.model"
        revision = {} if origin is None else {"revision": origin.revision()}
        return {"function": self.function, "library": library, **revision}

    def resolve(self) -> tuple[Callable[..., Any], dict[str, Any], frozenset[str]]:
        """Return the class of the function, its arguments, and the keys among them, without creating the function.

        Raises:
            StageError: the library, the function, an argument or an environment variable is missing.
        """
        found = _find_class(self.function, self.name)
        arguments, keys = resolved_arguments(self.arguments, "arguments")
        signature = inspect.signature(found)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            known = f"{self.function} takes {', '.join(signature.parameters)}"
            raise StageError(str(error), known, place="arguments", reason_code="config") from None
        return found, arguments, keys

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[_Scores]:
        """Call the function once per query. Queries that are not reached in time fail; those that were are kept.

        Raises:
            DeadlineError: the call was cancelled.
        """
        scores: dict[int, _Scores] = {}
        run_in_time(lambda clock: self._score_each(scores, jobs, clock), context)
        return self._in_order(scores, jobs, context)

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[_Scores]:
        """``score_batch`` in a thread, for an event loop."""
        growing: dict[int, _Scores] = {}
        executor = self._ready.threads.executor()
        await arun_in_time(lambda clock: self._score_each(growing, jobs, clock), context, executor)
        return self._in_order(dict(growing), jobs, context)  # a copy: the thread may still write into the original

    @property
    def scores_lists(self) -> bool:
        """True unless the function is known to score each document independently."""
        return self.function not in _PAIRWISE

    @property
    def sends(self) -> bool:
        """Whether the function calls a service."""
        return self.function in _SERVICES

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what a function that calls a service would send: one request per query, with all of its texts."""
        for position, job in enumerate(jobs if self.sends else ()):
            planned = plan(job, Limits(), self.function)
            planned.report(context, position)
            context.note(position, planned=planned.figures)

    @property
    def _ready(self) -> _Opened:
        if self._opened is None:
            raise StageError(f"{self.name} is not open", "call open() first, or run it in a pipeline")
        return self._opened

    def _origin(self, found: Callable[..., Any], arguments: Mapping[str, Any]) -> Origin | None:
        """The files of a local function's model, which may be pickles; None if they are not found."""
        if self.function not in _LOCAL:
            return None
        bound = inspect.signature(found).bind(**arguments)
        bound.apply_defaults()
        name = bound.arguments.get("model_name")
        try:
            folder = locate_here(name, wanted_by=self.name) if isinstance(name, str) and name else None
            return None if folder is None else Origin(folder, ["*.bin"])
        except StageError:
            return None

    def _score_each(self, scores: dict[int, _Scores], jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Keep the scores of each query once they are complete; its failure goes into the context."""
        for position, job in enumerate(jobs):
            try:
                clock.check()
                scores[position] = self._score_one(job, position, clock)
            except DeadlineError:
                raise
            except StageError as error:
                clock.context.fail(position, error)

    def _score_one(self, job: RerankJob, position: int, clock: Clock) -> _Scores:
        scores: _Scores = [None] * len(job.texts)
        planned = plan(job, Limits(), self.function)
        planned.report(clock.context, position)
        if not planned.parts:
            return scores
        places = planned.parts[0].places
        results = self._call(job.query, [job.texts[place] for place in places], clock)
        indices: list[Any] = [getattr(result, "index", None) for result in results]
        if not all(_is_index(index, len(places)) for index in indices) or len(set(indices)) < len(indices):
            wrong = f"{self.function} returned an index twice, or one that is not from 0 to {len(places) - 1}"
            raise StageError(wrong, self._next_step, reason_code="bad_reply")
        for index, result in zip(indices, results, strict=True):
            scores[places[index]] = getattr(result, "score", None)
        if missing := len(places) - len(results):
            instead = f"; the stage `{_SERVICES[self.function]}` scores all" if self.sends else ""
            clock.context.warn(
                f"{self.function} left out {missing} of {len(places)} documents; ranked last, without a score{instead}",
                position,
            )
        return scores

    def _in_order(self, scores: Mapping[int, _Scores], jobs: Sequence[RerankJob], context: Context) -> list[_Scores]:
        """The scores of each query. A query without scores has failed, because of the deadline if not by itself."""
        for position in range(len(jobs)):
            if position not in scores:  # the first failure of a query counts
                context.fail(position, late_error(f"{self.function} did not answer", context.deadline))
        return [scores.get(position) or [None] * len(job.texts) for position, job in enumerate(jobs)]

    def _call(self, query: str, texts: list[str], clock: Clock) -> list[Any]:
        """What the function returns. Calls run one at a time: no function is known to be thread-safe."""
        opened = self._ready
        with clock.holding(opened.lock):
            try:
                return list(self._without_installs(opened.function, query, texts, top_k=len(texts)))
            except Exception as error:
                failure = self._failure("failed", error, opened.keys, [query, *texts])
        raise failure

    def _without_installs(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        token = _refuse_installs.set(True)
        try:
            return function(*args, **options)
        finally:
            _refuse_installs.reset(token)

    def _failure(self, what: str, error: Exception, keys: frozenset[str], texts: Sequence[str]) -> StageError:
        """The error of a function that failed, with no more of its own error than the class if that may be private.

        A service may repeat a key that its function has read from a variable unknown to us.
        """
        if isinstance(error, ModuleNotFoundError) and error.name:
            missing = f"{self.function} needs the package {error.name!r}, which is not installed"
            return StageError(missing, f'install it with: pip install "{error.name}"')
        clean = self.function in _LOCAL and chain_is_clean(error, Private(keys, lambda: texts))
        text = error_text(error) if clean else type(error).__name__
        failure = StageError(f"{self.function} {what}: {text}", self._next_step)
        failure.__cause__ = error if clean else None
        return failure

    @property
    def _next_step(self) -> str:
        if self.function in _LOCAL:
            return f"check its arguments, or use the stage `{_LOCAL[self.function]}`"
        key = "check its arguments and its key (`api_key: {env: NAME}`)"
        return f"{key}, or use the stage `{_SERVICES[self.function]}`" if self.sends else key


def _find_class(function: str, wanted_by: str) -> Callable[..., Any]:
    """The class of a rerank function, with the library kept from installing packages on its behalf.

    Raises:
        StageError: the library is not installed, or has no function of that name.
    """
    pymilvus_for(wanted_by)
    try:
        library, base, utils = (
            require(f"pymilvus.model.{name}", extra=_EXTRA, wanted_by=wanted_by)
            for name in ("reranker", "base", "utils")
        )
    except ModuleNotFoundError as error:
        raise StageError(
            f"pymilvus.model needs the package {error.name!r}, which is not installed",
            f'install what it needs with: pip install "milvus-search-pipeline[{_EXTRA}]"',
        ) from error
    _guard_installer(utils)
    found = {name: getattr(library, name, None) for name in library.__all__}
    known = {
        name: own for name, own in found.items() if isinstance(own, type) and issubclass(own, base.BaseRerankFunction)
    }
    if function not in known:
        raise StageError(
            f"the PyMilvus model library has no {function!r}",
            suggestion(function, known),
            place="function",
            reason_code="config",
        )
    return known[function]


def _guard_installer(utils: Any) -> None:
    """Make the library's installer, which runs pip, raise ModuleNotFoundError for our calls; others are served."""
    install = utils.prompt_install
    if getattr(install, "guarded", False):
        return

    def prompt_install(package: str, *args: Any, **options: Any) -> Any:
        if _refuse_installs.get():
            raise ModuleNotFoundError(f"{package} is not installed", name=package)
        return install(package, *args, **options)

    prompt_install.guarded = True  # type: ignore[attr-defined]
    utils.prompt_install = prompt_install


def _trusts_code(value: Any) -> bool:
    """Whether ``trust_remote_code`` is set on any level."""
    if isinstance(value, Mapping):
        return any((name == "trust_remote_code" and own) or _trusts_code(own) for name, own in value.items())
    return isinstance(value, list | tuple) and any(map(_trusts_code, value))


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < count
