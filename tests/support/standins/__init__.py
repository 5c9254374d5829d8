"""Stand-ins for hosted rerank services: HTTP/1.1 over real sockets, as strict as the services, with a script.

    from support.standins import StandIn, errors, late

    with StandIn("cohere") as server:       # or voyage, jina, tei, vllm, infinity, mixedbread, jev
        reranker = Cohere(base_url=server.url, ...)            # the key is server.key, obviously a false one
        server.script(server.error(503), server.error(503))    # the next two replies; then the normal one
        server.always(server.error(500))                       # every one, until server.clear()
        ...
        assert [request.path for request in server.requests] == ["/v2/rerank"] * 3
        assert all(request.refused is None for request in server.requests)
        assert server.requests[0].body["top_n"] == 2

A `Request` has method, path, headers (by lower-case name), key, body (JSON), raw (bytes), arrived (monotonic seconds),
abandoned (the client left before it had the reply), and refused: why the service's rules forbid it, whatever the script
said; None for a right one. What is checked is in each provider's module. Limits are its fields, and settings here:
``StandIn("voyage", max_documents=5, max_total_tokens=100)``. ``locked`` says whether the key is needed; by default it
is, but for tei, vllm and infinity.

`relevance` (query, text) is the score that every stand-in gives, in (0, 1); jina's v3 models give 2 * relevance - 1.
`ranking` orders texts by it, `tokens` counts.

A scripted reply is a `Reply` (status, JSON body or bytes, headers, delay, pieces and pause, how the connection ends),
or a function of the request and of the normal reply that returns one. There are catalogues of both by provider, from a
name to the reply: `errors`, `rate_limits`, `variants` (unusual but right), `wrong` (status 200, and no result), and for
all of them `FAULTS`, `late`, `dripping`, `closing`, `chunked`:

    @pytest.mark.parametrize("name", wrong("cohere"))
    def test_a_wrong_reply_is_refused(name):
        with StandIn("cohere") as server:
            server.always(wrong("cohere")[name])

``server.error(status, message, kind)`` is an error of any status in the provider's shape.

Concurrency without sleeping: ``server.hold()``, start calls, ``server.wait_for(8)`` (requests),
``server.most_in_flight``, ``server.release()``, ``server.wait_until_idle()``. ``server.latency = 0.05`` delays every
reply; ``server.connections`` counts those accepted, ``server.open_connections`` those open. After the block the thread
and the sockets are gone, with requests in flight too.

`support.standins.plain` has right bodies and a plain client.
"""

from support.standins.messages import Reply, Request, changed
from support.standins.providers import PROVIDERS
from support.standins.relevance import ranking, relevance, tokens
from support.standins.replies import FAULTS, chunked, closing, dripping, errors, late, rate_limits, variants, wrong
from support.standins.server import StandIn

__all__ = [
    "FAULTS",
    "PROVIDERS",
    "Reply",
    "Request",
    "StandIn",
    "changed",
    "chunked",
    "closing",
    "dripping",
    "errors",
    "late",
    "ranking",
    "rate_limits",
    "relevance",
    "tokens",
    "variants",
    "wrong",
]
