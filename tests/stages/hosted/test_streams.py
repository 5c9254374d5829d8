"""A hosted reranker in a stream of batches: a caller that stops early does not pay for the rest."""

from __future__ import annotations

import threading

from milvus_pipeline import Pipeline
from milvus_stages import Cohere
from support.fake_stages.basic import ListedSearch
from support.hosted import KEY_VARIABLE, keyed
from support.process_leaks import leaving_nothing
from support.standins import StandIn

BATCH = ["red", "green", "blue", "plum", "pear", "apple"]
AT_ONCE = 2


def test_what_nobody_waits_for_is_not_sent():
    """The requests that are under way when the stream is closed are the last; their replies are waited for."""

    class Told(Cohere):
        """The service answers a moment after the call was cancelled."""

        def score_batch(self, jobs, context):
            with context.on_cancel(threading.Timer(0.2, server.release).start):
                return super().score_batch(jobs, context)

    def batches():
        yield BATCH
        server.wait_for(len(BATCH))
        server.wait_until_idle()
        server.hold()
        yield BATCH
        server.wait_for(len(BATCH) + AT_ONCE)

    with StandIn("cohere") as server, keyed(server), leaving_nothing():
        reranker = Told(base_url=server.url, api_key_env=KEY_VARIABLE, max_concurrency=AT_ONCE)
        with Pipeline([ListedSearch(), reranker]) as pipeline:
            stream = pipeline.run_batches(batches())
            assert [result.status for result in next(stream)] == ["ok"] * len(BATCH)
            stream.close()
        assert len(server.requests) == len(BATCH) + AT_ONCE
