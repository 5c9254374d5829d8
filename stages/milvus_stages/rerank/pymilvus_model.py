"""The stage that runs a rerank function of the PyMilvus model library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import ContextVar, copy_context
from importlib.metadata import version
from inspect import BoundArguments, signature
from numbers import Integral
from typing import Annotated, Any, ClassVar, Final, NamedTuple, cast

from pydantic import Field, PrivateAttr, field_validator

from milvus_pipeline import ConfigError, DeadlineError, StageError
from milvus_pipeline.plugin import Context, RerankJob, error_text, require, suggestion
from milvus_stages.hosted.plan import Limits, plan
from milvus_stages.local.anytime import AnytimeReranker, Clock, Scores, Threads, Work, late_error
from milvus_stages.local.files import MODEL_FILES, Origin, locate_here
from milvus_stages.milvus.client.server import pymilvus_for
from milvus_stages.privacy.redaction import Private, chain_is_clean
from milvus_stages.privacy.secrets import plain_arguments, resolved_arguments

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

_refuse_installs: ContextVar[bool] = ContextVar("_refuse_installs", default=False)


class _Opened(NamedTuple):
    """A rerank function, its keys, the files of its model if known, and what makes its calls run one at a time."""

    function: Callable[..., Any]
    keys: frozenset[str]
    origin: Origin | None
    threads: Threads
    lock: threading.Lock


class PymilvusModel(AnytimeReranker):
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

    function: Annotated[
        str,
        Field(pattern=r"^[A-Za-z]\w*$", description="Class of pymilvus.model.reranker, such as BGERerankFunction."),
    ]
    arguments: Annotated[
        dict[str, Any],
        Field(description="Arguments of its constructor. {env: NAME} is replaced by an environment variable."),
    ] = {}

    _opened: _Opened | None = PrivateAttr(default=None)

    @field_validator("arguments")
    @classmethod
    def _plain_and_without_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not all(map(str.isidentifier, value)):  # one may be a key, so the message does not repeat it
            raise ValueError("the names must be those of arguments in Python, such as model_name")
        if _trusts_code(value):
            never = "Python code that comes with a model is never run"
            raise ConfigError(never, "leave it out", place="trust_remote_code")
        return plain_arguments(value)

    def setup(self) -> None:
        """Import the library, read the environment, and create the function, which loads its model."""
        found, bound, keys = self.resolve()
        origin = self._origin(bound)
        function = self._call("cannot be created", Private(keys), lambda: found(*bound.args, **bound.kwargs))
        origin = origin or self._origin(bound)  # the files may have been downloaded just now
        self._opened = _Opened(function, keys, origin, Threads(1), threading.Lock())

    def teardown(self) -> None:
        """Release the function, and its model with it."""
        self._opened = None

    def identity(self) -> Mapping[str, Any]:
        """Return the function, the library's version, and the revision of its model's files if they are known."""
        origin = self._ready.origin
        revision = {} if origin is None else {"revision": origin.revision}
        return {"function": self.function, "library": f"pymilvus.model {version('pymilvus.model')}", **revision}

    def resolve(self) -> tuple[Callable[..., Any], BoundArguments, frozenset[str]]:
        """Return the class of the function, its arguments, and the keys among them, without creating the function.

        Raises:
            StageError: the library, the function, an argument or an environment variable is missing.
        """
        found = _find_class(self.function, self.name)
        arguments, keys = resolved_arguments(self.arguments, "arguments")
        try:
            bound = signature(found).bind(**arguments)
        except TypeError as error:
            known = f"{self.function} takes {', '.join(signature(found).parameters)}"
            raise StageError(str(error), known, place="arguments", reason_code="config") from None
        bound.apply_defaults()
        return found, bound, keys

    @property
    def executor(self) -> Executor:
        """One thread, since calls run one at a time."""
        return self._ready.threads.executor()

    def scoring(self, jobs: Sequence[RerankJob], context: Context) -> Generator[Work, None, Scores]:
        """Yield the work, one call of the function per query. Queries that are not reached in time fail."""
        growing: dict[int, list[float | None]] = {}
        yield lambda clock: self._score_each(growing, jobs, clock)
        scores = dict(growing)  # the thread may still write into the original
        for position in range(len(jobs)):
            if position not in scores:  # the first failure of a query counts
                context.fail(position, late_error(f"{self.function} did not answer", context.deadline))
        return [scores.get(position) or [None] * len(job.texts) for position, job in enumerate(jobs)]

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

    def _origin(self, bound: BoundArguments) -> Origin | None:
        """The files of a local function's model, which may be pickles; None if they are not found."""
        if self.function not in _LOCAL:
            return None
        try:
            folder = locate_here(str(bound.arguments["model_name"]), wanted_by=self.name)
        except StageError:
            return None
        return None if folder is None else Origin(folder, [*MODEL_FILES, "*.bin"])

    def _score_each(self, scores: dict[int, list[float | None]], jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Keep the scores of each query once they are complete; its failure goes into the context."""
        for position, job in enumerate(jobs):
            try:
                clock.check()
                scores[position] = self._score_one(job, position, clock)
            except DeadlineError:
                raise
            except StageError as error:
                clock.context.fail(position, error)

    def _score_one(self, job: RerankJob, position: int, clock: Clock) -> list[float | None]:
        scores: list[float | None] = [None] * len(job.texts)
        planned = plan(job, Limits(), self.function)
        planned.report(clock.context, position)
        if not planned.parts:
            return scores
        places = planned.parts[0].places
        texts = [job.texts[place] for place in places]
        opened = self._ready
        private = Private(opened.keys, lambda: [job.query, *texts])
        with clock.holding(opened.lock):  # no function is known to be thread-safe
            results = self._call("failed", private, lambda: list(opened.function(job.query, texts, top_k=len(texts))))
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

    def _call(self, what: str, private: Private, function: Callable[[], Any]) -> Any:
        """Call the library, which must not install packages.

        Raises:
            StageError: the call failed. It has no more of the library's error than the class if that may be private: a
                service may repeat a key that its function has read from a variable unknown to us.
        """
        context = copy_context()
        context.run(_refuse_installs.set, True)
        try:
            return context.run(function)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name:
                missing = f"{self.function} needs the package {error.name!r}, which is not installed"
                failure = StageError(missing, f'install it with: pip install "{error.name}"')
            else:
                clean = self.function in _LOCAL and chain_is_clean(error, private)
                text = error_text(error) if clean else type(error).__name__
                failure = StageError(f"{self.function} {what}: {text}", self._next_step)
                failure.__cause__ = error if clean else None
        raise failure  # here, not above: the library's error would be its context, and a traceback prints that

    @property
    def _next_step(self) -> str:
        stage = (_LOCAL | _SERVICES).get(self.function)
        instead = f", or use the stage `{stage}`" if stage is not None else ""
        key = "" if self.function in _LOCAL else " and its key (`api_key: {env: NAME}`)"
        return f"check its arguments{key}{instead}"


def _find_class(function: str, wanted_by: str) -> Callable[..., Any]:
    """The class of a rerank function, with the library kept from installing packages on its behalf.

    Raises:
        StageError: the library is not installed, or has no function of that name.
    """
    pymilvus_for(wanted_by)
    library = require("pymilvus.model.reranker", extra="pymilvus-model", wanted_by=wanted_by)
    _guard_installer(require("pymilvus.model.utils", extra="pymilvus-model", wanted_by=wanted_by))
    if function not in library.__all__:
        missing = f"the PyMilvus model library has no {function!r}"
        raise StageError(missing, suggestion(function, library.__all__), place="function", reason_code="config")
    return cast("Callable[..., Any]", getattr(library, function))


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
