"""Stand-ins for hosted rerank services: HTTP/1.1 over real sockets, as strict as the services, with a script.

    from support.standins import StandIn, Reply

    with StandIn("cohere") as server:                 # cohere, voyage; further providers follow
        stage = Cohere(base_url=server.url, ...)      # the key is server.key, an obviously false one
        server.script(server.error(503), server.error(503))   # the next two replies; then the normal one
        server.always(server.error(500))              # every one, until server.clear()
        ...
        assert [r.path for r in server.requests] == ["/v2/rerank"] * 3
        assert all(r.refused is None for r in server.requests)   # what was sent was right, whatever was scripted
        assert server.requests[0].body["top_n"] == 2   # also: method, headers, key, raw, arrived, abandoned

What a request is checked for is the provider's (one small module each): a wrong request gets that service's own error.
Limits are settings: ``StandIn("voyage", max_documents=5, max_total_tokens=100)``; ``locked``: whether a key is needed.

`relevance` (query, text) is the score that every stand-in gives; `ranking` orders texts by it. `tokens` counts.

A scripted reply is a `Reply` (status, JSON body or bytes, headers, delay, pieces and pause, how the connection ends),
or a function of the request and of the normal reply that returns one.

Concurrency without sleeping: ``server.hold()``, start calls, ``server.wait_for(8)``, ``server.most_in_flight``,
``server.release()``. ``server.latency = 0.05`` delays every reply; ``server.connections`` counts those accepted.
After the block the thread and the sockets are gone, with requests in flight too.
"""

from support.standins.messages import Reply, Request
from support.standins.relevance import ranking, relevance, tokens
from support.standins.server import StandIn

__all__ = ["Reply", "Request", "StandIn", "ranking", "relevance", "tokens"]
