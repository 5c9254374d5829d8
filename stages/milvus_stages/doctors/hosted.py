"""What ``milvus-pipeline doctor`` looks at in a hosted reranker: key, address, plan; with leave, one request."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any, Final

from milvus_pipeline import RetrySettings, StageError
from milvus_pipeline.plugin import CheckContext, Context, Deadline, Finding, RerankJob, doctor, require, share_text
from milvus_stages.hosted.http.quiet import stand_before_loggers, unlogged
from milvus_stages.hosted.http.transport import USER_AGENT, certificates, named, untrusted
from milvus_stages.hosted.plan import estimated_tokens
from milvus_stages.hosted.reranker import HostedReranker

_QUERY: Final = "What is asked here?"
_DOCUMENT: Final = "A document of one line."
_PROBE_SECONDS: Final = 5.0
_HITS: Final = 10  # that a query is taken to bring where that is not known


@doctor(HostedReranker)
def service_findings(stage: HostedReranker, context: CheckContext) -> Iterator[Finding]:
    """What can be said of a service. Unless ``context.send`` is true, it is sent neither a key nor a text."""
    trial = stage.model_copy()  # reading secrets may leave some in the stage, which shall stay as it is
    url, fault = None, None
    try:
        url, headers, _ = trial.prepared()
    except StageError as error:
        fault = error
        yield Finding.of(error, "key")
    else:
        yield Finding.ok("key", _key_said(stage, headers, sent=context.send))
    if url is None:
        try:
            url = trial.endpoint(None)
        except StageError as error:
            if str(error) != str(fault):
                yield Finding.of(error, "address")
    if url is not None:
        yield _reached(stage, url, context.deadline)
    yield from _plan(stage, context)
    if context.send and fault is None:
        yield from _sent(stage, context.deadline)


def _key_said(stage: HostedReranker, headers: Mapping[str, str], *, sent: bool) -> str:
    tried = "" if sent else "; whether the service takes it is not tried without --send"
    if "authorization" not in headers:
        return "none is sent"
    name = next((name for name in stage.key_variables if os.environ.get(name, "").strip()), None)
    return f"{name} is set{tried}" if name else f"the header authorization is set{tried}"


def _reached(stage: HostedReranker, url: str, deadline: Deadline) -> Finding:
    """Whether anything answers at the address: a GET without a key, which no service takes for work."""
    httpx = require("httpx", extra=None, wanted_by=stage.type)
    stand_before_loggers()
    seconds = max(0.1, deadline.remaining(at_most=_PROBE_SECONDS) or 0.0)
    began = time.perf_counter()
    try:
        with (
            unlogged(),
            httpx.Client(verify=certificates(), timeout=seconds, follow_redirects=False) as client,
            client.stream("GET", url, headers={"user-agent": USER_AGENT}) as reply,
        ):
            status = int(reply.status_code)
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError, ValueError, ImportError, OSError) as error:
        return _unreached(httpx, error, url, seconds)
    took = f"{1000 * (time.perf_counter() - began):.0f} ms"
    if status >= 500:
        said = f"{url} answers {status} to a GET, in {took}: it is there, but in trouble"
        return Finding.warning("address", said, "check that the service is well")
    if 300 <= status < 400:
        said = f"{url} answers {status}, which sends one elsewhere; requests do not follow"
        return Finding.warning("address", said, "set base_url to where it leads")
    if status == 404 and stage.base_url is not None:
        said = f"{url} answers 404 to a GET, in {took}: maybe it has no such path"
        return Finding.warning("address", said, "check base_url, or see with --send whether it takes a request")
    return Finding.ok("address", f"{url} can be reached: a GET without a key is answered {status} in {took}")


def _unreached(httpx: Any, error: Exception, url: str, seconds: float) -> Finding:
    # Proxies and broken connections say what is not ours to repeat; the kind of the error is enough.
    network = "check base_url, the network, and the proxies that the environment names"
    if untrusted(error):
        said = f"{url}: the server's certificate cannot be verified"
        return Finding.error("address", said, "check base_url, or name the certificates to trust in SSL_CERT_FILE")
    if isinstance(error, httpx.TimeoutException):
        return Finding.error("address", f"{url} does not answer within {seconds:.3g} s", network)
    if isinstance(error, httpx.ConnectError):
        return Finding.error("address", f"{url} cannot be reached ({named(error)})", network)
    return Finding.error("address", f"{url} cannot be reached ({type(error).__name__})", network)


# -- what a query asks -----------------------------------------------------------------------------------------------


def _plan(stage: HostedReranker, context: CheckContext) -> Iterator[Finding]:
    hits = context.hits or _HITS
    texts = list(islice(cycle(context.texts or [_DOCUMENT]), hits))
    told = Context(context.deadline, 1)
    stage.dry_run_batch([RerankJob(_QUERY, texts, stage.top_k)], told)
    for failure in told.failures.values():
        yield Finding.of(failure, "requests")
    for warning in told.warnings[0]:
        yield Finding.warning("requests", warning, "retrieve fewer, or shorten the documents")
    planned = told.details[0].get("planned", {})
    if planned and not told.warnings[0]:
        requests = planned["requests"]
        tokens = f", about {planned['tokens']:,} tokens in all" if context.texts else ""
        yield Finding.ok(
            "requests", f"a query with {hits:,} hits is {requests:,} request{'s' * (requests != 1)}{tokens}"
        )
    most = stage.limits().document_tokens
    if most is not None and context.texts:
        yield _lengths([estimated_tokens(text) for text in context.texts], most, context.documents)


def _lengths(sizes: list[int], most: int, documents: int) -> Finding:
    long = sum(size > most for size in sizes)
    if not long:
        said = f"none of {len(sizes)} sampled is over the {most:,} tokens that are read, by an estimate by length"
        return Finding.ok("documents", f"{said}; the longest has {max(sizes):,}")
    return Finding.warning(
        "documents",
        f"{share_text(long, len(sizes), documents)} are over the {most:,} tokens that the service reads of one, by an "
        f"estimate by length; the longest has {max(sizes):,}",
        "split them into passages when you fill the collection, or raise the stage's limit if the service takes more",
    )


def _sent(stage: HostedReranker, deadline: Deadline) -> Iterator[Finding]:
    """One request of one short document, which tells of the key and of the model's name, and costs what it costs."""
    trial = stage.model_copy(update={"retry": RetrySettings(attempts=1), "breaker": None})
    context = Context(deadline, 1)
    began = time.perf_counter()
    score: float | None = None
    trial.setup()
    try:
        score = trial.score_batch([RerankJob(_QUERY, [_DOCUMENT])], context)[0][0]
    except Exception as failure:
        context.fail(0, failure)
    finally:
        trial.teardown()
    usage = context.details[0].get("usage", {})
    cost = ", ".join(f"{word.replace('_', ' ')} {count:,}" for word, count in usage.items())
    if error := context.failures.get(0):
        yield Finding.of(error, "request", next_step="see what the service says")
        return
    took = f"{1000 * (time.perf_counter() - began):.0f} ms"
    model = f"{stage.model} " if stage.model else ""
    yield Finding.ok("request", f"{model}gave one document the score {score:.3g} in {took}; its usage: {cost}")
