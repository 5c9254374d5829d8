"""The doctor of hosted rerankers: key, address and planned requests; if allowed, one request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from typing import Final

from milvus_pipeline import RetrySettings, StageError
from milvus_pipeline.plugin import CheckContext, Context, Deadline, Finding, RerankJob, doctor, share_text
from milvus_stages.hosted.http.transport import USER_AGENT, Transport
from milvus_stages.hosted.plan import estimated_tokens
from milvus_stages.hosted.reranker import HostedReranker
from milvus_stages.privacy.secrets import environment

_QUERY: Final = "What is asked here?"
_DOCUMENT: Final = "A document of one line."
_PROBE_SECONDS: Final = 5.0
_HITS: Final = 10  # assumed if the number of hits of a query is unknown


@doctor(HostedReranker)
def service_findings(stage: HostedReranker, context: CheckContext) -> Iterator[Finding]:
    """Examine a hosted reranker. Unless ``context.send`` is true, neither a key nor a text is sent."""
    trial = stage.model_copy()  # reading secrets may store some in the stage
    url, fault = None, None
    try:
        url, headers, _ = trial.read_connection()
    except StageError as error:
        fault = error
        yield Finding.of(error, "key")
    else:
        yield Finding.ok("key", _key_text(stage, headers, sent=context.send))
    if url is None:
        try:
            url = trial.endpoint(None)
        except StageError as error:
            if str(error) != str(fault):
                yield Finding.of(error, "address")
    if url is not None:
        yield _probe(stage, url, context.deadline)
    yield from _plan(stage, context)
    if context.send and fault is None:
        yield from _send(stage, context.deadline)


def _key_text(stage: HostedReranker, headers: Mapping[str, str], *, sent: bool) -> str:
    if "authorization" not in headers:
        return "none is sent"
    name = next(filter(environment, stage.key_variables), "the header authorization")
    return f"{name} is set" if sent else f"{name} is set; use --send to check that the service accepts it"


def _probe(stage: HostedReranker, url: str, deadline: Deadline) -> Finding:
    """Check that the address answers a GET without a key, which no service bills."""
    seconds = max(0.1, deadline.remaining(at_most=_PROBE_SECONDS) or 0.0)
    began = time.perf_counter()
    try:
        with closing(Transport(url, {"user-agent": USER_AGENT}, stage.type, "GET")) as transport:
            status = transport.send(b"", seconds, "check base_url and the network").status
    except StageError as error:
        return Finding.of(error, "address")
    answer = f"{url} answers {status} to a GET in {1000 * (time.perf_counter() - began):.0f} ms"
    if status >= 500:
        return Finding.warning("address", f"{answer}: the server fails", "check the service")
    if 300 <= status < 400:
        return Finding.warning("address", f"{answer}: redirects are not followed", "set base_url to its target")
    if status == 404 and stage.base_url is not None:
        step = "check base_url, or use --send to see whether it accepts a request"
        return Finding.warning("address", f"{answer}: it may have no such path", step)
    return Finding.ok("address", f"{answer}, without a key: it can be reached")


# -- requests --------------------------------------------------------------------------------------------------------


def _plan(stage: HostedReranker, context: CheckContext) -> Iterator[Finding]:
    hits = context.hits or _HITS
    texts = list(islice(cycle(context.texts or [_DOCUMENT]), hits))
    report = Context(context.deadline, 1)
    stage.dry_run_batch([RerankJob(_QUERY, texts, stage.top_k)], report)
    for failure in report.failures.values():
        yield Finding.of(failure, "requests")
    for warning in report.warnings[0]:
        yield Finding.warning("requests", warning, "retrieve fewer, or shorten the documents")
    planned = report.details[0].get("planned", {})
    if planned and not report.warnings[0]:
        requests = planned["requests"]
        tokens = f", about {planned['tokens']:,} tokens in total" if context.texts else ""
        yield Finding.ok(
            "requests", f"a query with {hits:,} hits needs {requests:,} request{'s' * (requests != 1)}{tokens}"
        )
    most = stage.limits().document_tokens
    if most is not None and context.texts:
        yield _lengths([estimated_tokens(text) for text in context.texts], most, context.documents)


def _lengths(sizes: list[int], most: int, documents: int) -> Finding:
    long = sum(size > most for size in sizes)
    longest = f"estimated by length; the longest has {max(sizes):,}"
    if not long:
        return Finding.ok("documents", f"all {len(sizes)} sampled documents fit in the {most:,} tokens read, {longest}")
    return Finding.warning(
        "documents",
        f"{share_text(long, len(sizes), documents)} exceed the {most:,} tokens that the service reads, {longest}",
        "split them into passages on ingest, or raise the stage's limit if the service reads more",
    )


def _send(stage: HostedReranker, deadline: Deadline) -> Iterator[Finding]:
    """Send one request with one short document, which checks the key and the model, and is billed as any other."""
    trial = stage.model_copy(update={"retry": RetrySettings(attempts=1), "breaker": None})
    context = Context(deadline, 1)
    began = time.perf_counter()
    score: float | None = None
    trial.setup()  # not `open`, since the stage that it is a copy of may be open
    try:
        score = trial.score_batch([RerankJob(_QUERY, [_DOCUMENT])], context)[0][0]
    except Exception as failure:
        context.fail(0, failure)
    finally:
        trial.teardown()
    usage = context.details[0].get("usage", {})
    cost = ", ".join(f"{word.replace('_', ' ')} {count:,}" for word, count in usage.items())
    if error := context.failures.get(0):
        yield _refusal(error)
        return
    took = f"{1000 * (time.perf_counter() - began):.0f} ms"
    model = f"{stage.model} " if stage.model else ""
    yield Finding.ok("request", f"{model}gave one document the score {score:.3g} in {took}; usage: {cost}")


def _refusal(error: Exception) -> Finding:
    """Return the finding of a request that failed, with the service's words: no text of a user was sent."""
    detail = getattr(error, "detail", "")
    finding = Finding.of(error, "request", next_step="check the service")
    return replace(finding, message=f"{finding.message}: {detail}") if detail else finding
