"""A local reranker with a score cache: what is in it needs no forward pass."""

import math
import shutil
from pathlib import Path

import pytest

from milvus_pipeline import Hit, Query, SearchResult
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages import BGE, CrossEncoder, LateInteraction, PymilvusModel
from milvus_stages.local.models import LoadedModel

TEXTS = [f"a text of {'many ' * (number % 17)} words about plum number {number}" for number in range(40)] + [""]
QUERIES = ["red plum", "number 7", "many words"]


@pytest.fixture
def file(tmp_path):
    """A place for a cache."""
    return str(tmp_path / "scores.db")


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The rows of each forward pass."""
    counted: list[int] = []
    original = LoadedModel.forward

    def forward(self, rows, clock):
        counted.append(len(rows))
        return original(self, rows, clock)

    monkeypatch.setattr(LoadedModel, "forward", forward)
    return counted


def ranked(stage, texts=TEXTS, deadline=None):
    """For each query the keys and scores, best first, and how many were known."""
    results = [SearchResult(Query(text), [Hit(i, own, 0.0) for i, own in enumerate(texts)]) for text in QUERIES]
    context = Context(deadline or Deadline(), len(results))
    done = stage.process(results, context)
    known = [details.get("cached") for details in context.details]
    return [[(hit.id, hit.scores[stage.name]) for hit in result] for result in done], known


def stages(bert, small_encoder, **fields):
    """One of each kind."""
    return [
        CrossEncoder(model=bert, device="cpu", **fields),
        BGE(model=bert, device="cpu", **fields),
        LateInteraction(model=small_encoder, device="cpu", **fields),
    ]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_second_time_no_model_is_run(bert, small_encoder, file, passes, kind):
    """Not one row, in whatever batches and on whatever device; the order and scores are those without a cache."""
    with stages(bert, small_encoder)[kind] as stage:
        plain, _ = ranked(stage)
    with stages(bert, small_encoder, cache=file)[kind] as stage:
        cold, known = ranked(stage)
        assert known == [0, 0, 0]
    passes.clear()
    with stages(bert, small_encoder, cache=file, batch_size=3)[kind] as stage:
        warm, known = ranked(stage)
    assert passes == []
    assert known == [len(TEXTS)] * 3
    assert warm == cold == plain


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_part_that_is_known_changes_no_order(bert, small_encoder, file, kind):
    """Other batches differ in the last digits alone."""
    with stages(bert, small_encoder)[kind] as stage:
        plain, _ = ranked(stage)
    with stages(bert, small_encoder, cache=file)[kind] as stage:
        ranked(stage, TEXTS[::3])
        mixed, known = ranked(stage)
    assert known == [len(TEXTS[::3])] * 3
    for one, other in zip(mixed, plain, strict=True):
        scores, expected = dict(one), dict(other)
        assert all(math.isclose(scores[key], expected[key], rel_tol=1e-4, abs_tol=1e-6) for key in expected)
        assert [round(expected[key], 4) for key, _ in one] == [round(score, 4) for _, score in other]


def test_other_weights_other_scores(bert, file, tmp_path):
    """A folder whose weights were replaced finds nothing of the old ones, and neither does another precision."""
    folder = tmp_path / "model"
    shutil.copytree(Path(bert), folder)
    with CrossEncoder(model=str(folder), device="cpu", cache=file) as stage:
        before, _ = ranked(stage)
    with CrossEncoder(model=str(folder), device="cpu", cache=file, dtype="bfloat16") as stage:
        assert ranked(stage)[1] == [0, 0, 0]
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    with CrossEncoder(model=str(folder), device="cpu", cache=file) as stage:
        after, known = ranked(stage)
    assert known == [0, 0, 0]
    assert after == before


def test_two_models_share_a_file(bert, small_encoder, file):
    """Three kinds of reranker, one of them on the same weights as another, do not mix."""
    plain = [ranked(stage)[0] for stage in opened(stages(bert, small_encoder))]
    for expected in ([0, 0, 0], [len(TEXTS)] * 3):
        found = [ranked(stage) for stage in opened(stages(bert, small_encoder, cache=file))]
        assert [scores for scores, _ in found] == plain
        assert [known for _, known in found] == [expected] * 3


def opened(made):
    """Each of them open, one after the other."""
    for stage in made:
        with stage:
            yield stage


def test_cached_scores_are_kept_when_time_runs_out(bert, file):
    """With no time left for the rest, what is in the cache is ranked, and the result is partial."""
    with CrossEncoder(model=bert, device="cpu", cache=file) as stage:
        ranked(stage, TEXTS[:5])
        results = [SearchResult(Query(QUERIES[0]), [Hit(i, own, 0.0) for i, own in enumerate(TEXTS)])]
        context = Context(Deadline.after(0.0), 1)
        (result,) = stage.process(results, context)
    assert context.failures == {}
    assert context.partials[0].code == "deadline"
    assert {hit.id for hit in result.hits[:5]} == set(range(5))
    assert all(stage.name not in hit.scores for hit in result.hits[5:])


def test_functions_of_the_library_that_score_pairs_are_known(bert, file):
    """They score each document by itself; for any other function a list is in the cache as a whole or not at all."""
    function = {"function": "CrossEncoderRerankFunction", "arguments": {"model_name": bert, "device": "cpu"}}
    with PymilvusModel(**function, cache=file) as stage:
        ranked(stage, TEXTS[:3])
        assert ranked(stage, TEXTS[:4])[1] == [3, 3, 3]
    assert PymilvusModel(function="JinaRerankFunction").scores_lists
    assert PymilvusModel(function="SomethingNewRerankFunction").scores_lists
    assert not PymilvusModel(function="BGERerankFunction").scores_lists
