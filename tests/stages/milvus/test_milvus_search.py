"""Searches on Milvus Lite and on a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from milvus_pipeline import Pipeline, Query, QueryError, StageError
from milvus_stages import MilvusSearch

from .conftest import DIM, NLIST, ROWS, Engine, make_things, unit


def ids(result):
    return [hit.id for hit in result.hits]


def test_hits_are_those_of_brute_force(engine: Engine) -> None:
    """With all lists probed, hits, order and scores are those of a brute-force computation."""
    with Pipeline([engine.stage(limit=25)]) as pipeline:
        for seed in range(5):
            query = engine.query(seed)
            result = pipeline.run(query)
            exact = engine.exact(query)[:25]
            assert ids(result) == [key for key, _ in exact]
            assert [hit.score for hit in result.hits] == pytest.approx([score for _, score in exact], abs=1e-5)


def test_hits_carry_text_fields_scores_and_ranks(engine: Engine) -> None:
    """A hit has its text, its other fields as plain data, and its score and rank under the stage's name."""
    with Pipeline([engine.stage(name="dense", limit=3)]) as pipeline:
        hits = pipeline.run(engine.query(1)).hits
    for rank, hit in enumerate(hits, start=1):
        assert hit.text == f"text {hit.id}"
        assert hit.fields["year"] == 1900 + hit.id
        assert set(hit.fields) == {"tag", "year"}
        assert hit.scores == {"dense": hit.score}
        assert hit.ranks == {"dense": rank}
        assert type(hit.score) is float


def test_batch_equals_singles(engine: Engine) -> None:
    """A batch whose queries differ in filter and parameters gives what its queries give alone."""
    queries = [engine.query(seed) for seed in range(6)]
    queries += [engine.query(6, filter="year < 1950"), engine.query(7, params={"nprobe": 1})]
    with Pipeline([engine.stage()]) as pipeline:
        assert [r.hits for r in pipeline.run_batch(queries)] == [pipeline.run(query).hits for query in queries]


def test_async_equals_sync(engine: Engine) -> None:
    """Results on an event loop equal the blocking ones, for batches and for concurrent single queries."""
    queries = [engine.query(seed, filter=f"year >= {1900 + seed}") for seed in range(12)]
    with Pipeline([engine.stage()]) as pipeline:
        blocking = pipeline.run_batch(queries)

        async def together():
            return await asyncio.gather(*(pipeline.arun(query) for query in queries))

        for _ in range(2):  # each asyncio.run has its own loop, and connections belong to one loop
            assert asyncio.run(pipeline.arun_batch(queries)) == blocking
            assert [result.hits for result in asyncio.run(together())] == [result.hits for result in blocking]


async def test_opens_again_after_aclose(engine: Engine) -> None:
    """A pipeline that was closed on an event loop can be used on it again."""
    pipeline = Pipeline([engine.stage()])
    for _ in range(2):
        async with pipeline:
            assert len(await pipeline.arun(engine.query(0))) == 10


def test_filters_join_and_never_widen(engine: Engine) -> None:
    """A query's filter narrows the stage's; a filter that tries to widen it fails alone."""
    stage = engine.stage(filter="year < {before}", filter_params={"before": 1920}, limit=50)
    queries = [
        engine.query(0),
        engine.query(0, filter="year >= 1910 or year == 1905"),
        engine.query(0, filter="year >= 0) or (year >= 1910"),
        engine.query(0, filter_params={"before": 1903}),
    ]
    with Pipeline([stage]) as pipeline:
        plain, narrowed, broken, overridden = pipeline.run_batch(queries, return_errors=True)
    assert sorted(ids(plain)) == list(range(20))
    assert sorted(ids(narrowed)) == [5, *range(10, 20)]
    assert isinstance(broken.error, QueryError)
    assert "closes nothing" in str(broken.error)
    assert sorted(ids(overridden)) == [0, 1, 2]


def test_filter_that_milvus_cannot_read_fails_alone(engine: Engine) -> None:
    """A filter that Milvus cannot read fails its queries alone, with the reason."""
    with Pipeline([engine.stage()]) as pipeline:
        good, bad = pipeline.run_batch([engine.query(0), engine.query(0, filter="year ==== 3")], return_errors=True)
    assert len(good) == 10
    assert "cannot read the filter" in str(bad.error)


BROKEN = ("tag ==== {t}", "tag == {t} {t}", "year == {t}", "tag in {t}", "year in [{t}, 3]", "tag + {t}", "{t}")


def test_a_broken_filter_is_explained_without_its_values(engine: Engine) -> None:
    """The message says what is wrong, but contains neither a value nor the expression around it."""
    values = ("geheim", 'ge"heim \\ geheim', "two\nlines geheim", 47114711, ["geheim", "b"])
    queries = [engine.query(0, filter=text, filter_params={"t": value}) for text in BROKEN for value in values]
    with Pipeline([engine.stage()]) as pipeline:
        errors = [str(r.error) for r in pipeline.run_batch(queries, return_errors=True) if r.error is not None]
    assert len(errors) > len(queries) * 2 // 3
    for error in errors:
        assert "cannot read the filter: " in error
        assert "heim" not in error.replace(engine.uri, "")
        assert "4711" not in error.replace(engine.uri, "")


def test_partitions(engine: Engine) -> None:
    """Only the named partitions are searched."""
    with Pipeline([engine.stage(partition_names=["odd"], limit=300)]) as pipeline:
        assert sorted(ids(pipeline.run(engine.query(0)))) == list(range(1, ROWS, 2))


def test_offset_skips_the_best(engine: Engine) -> None:
    """Limit and offset select a window of the ranking."""
    with Pipeline([engine.stage(limit=7, offset=5)]) as pipeline:
        result = pipeline.run(engine.query(3))
    assert ids(result) == [key for key, _ in engine.exact(engine.query(3))[5:12]]
    assert [hit.ranks["milvus_search"] for hit in result.hits] == list(range(1, 8))


@pytest.mark.parametrize("level", ["Strong", "Bounded", "Session", "Eventually", None])
def test_consistency_levels(engine: Engine, level: str | None) -> None:
    """Every level finds the rows that were there before the search was opened."""
    with Pipeline([engine.stage(consistency_level=level)]) as pipeline:
        assert len(pipeline.run(engine.query(0))) == 10


@pytest.mark.parametrize(
    ("output_fields", "text_field", "expected"),
    [
        (["year"], "text", {"year"}),
        (["year", "extra", "id"], "text", {"year", "extra", "id"}),
        ([], "text", set()),
        ([], None, set()),
        (["vector"], None, {"vector"}),
        (None, "tag", {"text", "year"}),
    ],
)
def test_output_fields(
    engine: Engine, output_fields: list[str] | None, text_field: str | None, expected: set[str]
) -> None:
    """Hits have the requested fields, also dynamic ones, and the vector only on request."""
    with Pipeline([engine.stage(output_fields=output_fields, text_field=text_field, limit=1)]) as pipeline:
        [hit] = pipeline.run(engine.query(0)).hits
    assert set(hit.fields) == expected
    assert (hit.text is None) == (text_field is None)
    if "vector" in expected:
        assert hit.fields["vector"] == pytest.approx(engine.vectors[hit.id].tolist())
    if "id" in expected:
        assert hit.fields["id"] == hit.id
        assert hit.fields["extra"] == hit.id % 3


def test_range_search(engine: Engine) -> None:
    """Radius and range_filter limit the scores."""
    exact = engine.exact(engine.query(0))
    between = [(exact[rank][1] + exact[rank + 1][1]) / 2 for rank in (7, 1)]
    params = {"nprobe": NLIST, "radius": between[0], "range_filter": between[1]}
    with Pipeline([engine.stage(params=params, limit=10)]) as pipeline:
        assert ids(pipeline.run(engine.query(0))) == [key for key, _ in exact[2:8]]


def test_few_hits_are_reported_with_advice(lite: Engine) -> None:
    """If one list is probed and fewer hits come back than requested, the report advises a higher nprobe.

    On Milvus Lite only: a server builds no index for so few rows.
    """
    with Pipeline([lite.stage(params={"nprobe": 1}, limit=300)]) as pipeline:
        report = pipeline.run(lite.query(0)).reports[0]
    assert report.details["requested"] == 300
    assert 0 < report.details["returned"] < 300
    assert f"of 300 hits were found in 1 of the index's {NLIST} lists; raise params.nprobe" in report.warnings[0]


def test_no_advice_if_all_lists_are_probed(tmp_path: Path) -> None:
    """Four rows have at most four lists, whatever nlist is, so probing all of them misses nothing."""
    uri = str(tmp_path / "four.db")
    make_things(uri, "things", unit(np.random.default_rng(0).normal(size=(4, DIM))), nlist=128)
    stage = MilvusSearch(uri=uri, collection="things", filter="id >= 2")
    query = Query("q", vector=np.ones(DIM))
    with Pipeline([stage]) as pipeline:
        result = pipeline.run(query)
        assert (len(result), result.warnings) == (2, [])
        assert "in 3 of the index's 4 lists" in pipeline.run(Query("q", query.vector, params={"nprobe": 3})).warnings[0]


@pytest.mark.parametrize("metric", ["IP", "COSINE", "L2"])
def test_a_vector_of_zeros(by_metric: Engine, metric: str) -> None:
    """Inner products and cosines with zeros are all 0 and rank nothing, which is a warning; distances do rank."""
    with Pipeline([by_metric.stage(collection=metric, metric_type=metric)]) as pipeline:
        zeros, ones = pipeline.run_batch([Query("zeros", np.zeros(DIM)), Query("ones", np.ones(DIM))])
    warning = "milvus_search: the query's vector is all zeros, so every score is 0; check its encoder"
    assert (zeros.warnings, ones.warnings) == ([] if metric == "L2" else [warning], [])


@pytest.mark.parametrize("metric", ["L2", "COSINE"])
def test_scores_of_other_metrics_rise_with_relevance(by_metric: Engine, metric: str) -> None:
    """COSINE is the cosine; L2 is the negative squared distance, so that the best hit has the highest score."""
    vectors, query = by_metric.vectors, np.random.default_rng(5).normal(size=DIM).astype(np.float32)
    scores = {"L2": -((vectors - query) ** 2).sum(axis=1), "COSINE": unit(vectors) @ unit(query)}[metric]
    with Pipeline([by_metric.stage(collection=metric, metric_type=metric)]) as pipeline:
        hits = pipeline.run(Query("q", vector=query)).hits
    best = np.argsort(-scores)[:10]
    assert [hit.id for hit in hits] == best.tolist()
    assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (None, "put an encode stage before this one"),
        (np.ones(8), "has 8 numbers, but the field 'vector' holds vectors of 16"),
        ([float("nan")] * 16, "NaN, infinity"),
        ([1e39] * 16, "NaN, infinity"),
        ("abcdefghijklmnop", "a flat list of numbers"),
        ([[1.0] * 16], "a flat list of numbers"),
        ([[1.0], [1.0, 2.0]], "a flat list of numbers"),
        (["1"] * 16, "a flat list of numbers"),
    ],
)
def test_bad_vector_fails_its_query_alone(engine: Engine, vector: object, message: str) -> None:
    """A vector with NaN, for which Milvus returns no hits and no error, fails; the rest of the batch continues."""
    with Pipeline([engine.stage()]) as pipeline:
        good, bad = pipeline.run_batch([engine.query(0), Query("bad", vector=vector)], return_errors=True)
    assert len(good) == 10
    assert isinstance(bad.error, QueryError)
    assert message in str(bad.error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"params": {"nprob": 3}}, "has no parameter 'nprob'; did you mean 'nprobe'?"),
        ({"params": {"nprobe": 0}}, "params.nprobe: must be an integer from 1 to 65536, got 0"),
        ({"params": {"radius": 0.5, "range_filter": 0.1}}, "range_filter (0.1) must be above radius (0.5)"),
        ({"filter": 5}, "filter: must be a string, got int"),
        ({"filter": "year > {y}"}, "no value for {y}"),
        ({"filter_params": {"y": 1}}, "no filter has a placeholder {y}"),
    ],
)
def test_bad_parameters_fail_their_query_alone(engine: Engine, fields: dict, message: str) -> None:
    """An error in the filter or parameters of a query fails that query alone."""
    with Pipeline([engine.stage()]) as pipeline:
        good, bad = pipeline.run_batch([engine.query(0), engine.query(1, **fields)], return_errors=True)
    assert len(good) == 10
    assert message in str(bad.error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"collection": "thinks"}, "there is no collection 'thinks'; did you mean 'things'?; make it with"),
        ({"anns_field": "vectr"}, "has no field 'vectr'; did you mean 'vector'?"),
        ({"anns_field": "year"}, "'year' is INT64, but the search needs a FLOAT_VECTOR"),
        ({"metric_type": "L2"}, "metric_type: the index was built with IP, not L2; set `metric_type: IP`"),
        ({"index_type": "HNSW", "params": {}}, "has the index IVF_FLAT, not HNSW; set `index_type: IVF_FLAT`"),
        ({"partition_names": ["evn"]}, "there is no partition 'evn'; did you mean 'even'?"),
        ({"text_field": "year"}, "text_field: 'year' is INT64, not text"),
        ({"group_by_field": "yeer"}, "group_by_field:"),
    ],
)
def test_a_search_that_does_not_fit_the_collection_fails_on_opening(engine: Engine, fields: dict, message: str) -> None:
    """The message names the stage, the server and the next step."""
    with pytest.raises(StageError, match=r"stages\[0\] \(milvus_search\): cannot be opened: ") as caught:
        Pipeline([engine.stage(**fields)]).open()
    assert message in str(caught.value)
    assert engine.uri in str(caught.value)


def test_unloaded_collection(engine: Engine) -> None:
    """With `load: false` an unloaded collection is an error; by default it is loaded, on opening and later."""
    from pymilvus import MilvusClient

    client = MilvusClient(engine.uri, timeout=10, dedicated=True)
    client.release_collection("things", timeout=30)
    with pytest.raises(StageError, match="is not loaded, and the stage may not load it"):
        Pipeline([engine.stage(load=False)]).open()
    with Pipeline([engine.stage()]) as pipeline, Pipeline([engine.stage(load=False)]) as unable:
        assert len(pipeline.run(engine.query(0))) == 10
        client.release_collection("things", timeout=30)
        with pytest.raises(StageError, match="is not loaded, and the stage may not load it") as caught:
            unable.run(engine.query(0))
        assert caught.value.reason_code == "not_loaded"
        assert len(pipeline.run(engine.query(0))) == 10
        if engine.kind == "lite":  # on an event loop, too; on a server this takes long and is the same
            client.release_collection("things", timeout=30)
            assert len(asyncio.run(pipeline.arun(engine.query(0)))) == 10
    client.close()


def test_grouping_is_gated_by_the_version(engine: Engine) -> None:
    """Milvus Lite groups hits; a server before 2.4 would silently ignore that, so it is refused."""
    pipeline = Pipeline([engine.stage(group_by_field="year", limit=5)])
    if engine.kind == "lite":
        with pipeline:
            years = [hit.fields["year"] for hit in pipeline.run(engine.query(0)).hits]
        assert len(years) == len(set(years)) == 5
    else:
        with pytest.raises(StageError, match=r"the server is v2\.3\.5-lite, which ignores it; it needs Milvus 2\.4"):
            pipeline.open()


def test_a_text_field_that_holds_numbers(engine: Engine) -> None:
    """A dynamic text field that holds numbers is an error with field and type."""
    with Pipeline([engine.stage(text_field="extra")]) as pipeline, pytest.raises(StageError) as caught:
        pipeline.run(engine.query(0))
    assert "text_field: 'extra' holds a value of type int, not text" in str(caught.value)


def test_scores_are_rounded_here(engine: Engine) -> None:
    """Scores are rounded to `round_decimal` digits."""
    with Pipeline([engine.stage(round_decimal=2)]) as pipeline:
        result = pipeline.run(engine.query(0))
    assert [hit.score for hit in result.hits] == [round(score, 2) for _, score in engine.exact(engine.query(0))[:10]]
