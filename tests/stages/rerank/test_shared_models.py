"""Models in memory: one copy for all stages that agree, freed with the last, usable by many threads."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import transformers

from milvus_pipeline import StageError
from milvus_stages import BGE, CrossEncoder, Encode, LateInteraction
from milvus_stages.local.models import models
from support.checkpoints import bert_classifier


def test_stages_on_the_same_weights_share_them(small_encoder):
    """An encoder and a late-interaction reranker hold one copy, which lives until both are closed."""
    encode = Encode(model=small_encoder, device="cpu")
    rerank = LateInteraction(model=small_encoder, device="cpu")
    encode.open()
    rerank.open()
    assert encode.loaded is rerank.loaded
    network = weakref.ref(encode.loaded.network)
    encode.close()
    assert list(rerank.score("plum", ["plum"])) == pytest.approx([1.0], abs=1e-5)
    rerank.close()
    gc.collect()
    assert network() is None


def test_stages_that_differ_do_not_share(bert):
    """Another precision, or another use of the same files, is another copy."""
    stages = [
        CrossEncoder(model=bert, device="cpu"),
        BGE(model=bert, device="cpu"),
        CrossEncoder(model=bert, device="cpu", dtype="bfloat16"),
        LateInteraction(model=bert, device="cpu"),
    ]
    for stage in stages:
        stage.open()
    cross_encoder, bge, half, encoder = (stage.loaded for stage in stages)
    assert cross_encoder is bge
    assert len({id(cross_encoder), id(half), id(encoder)}) == 3
    for stage in stages:
        stage.close()


def test_a_stage_that_fails_to_open_keeps_nothing(tmp_path):
    """If a model does not fit the stage, its memory is freed again."""
    model = str(bert_classifier(tmp_path / "model", labels=["no", "yes"]))
    holder = CrossEncoder(model=model, device="cpu", label=1)
    holder.open()
    with pytest.raises(StageError, match="label"):
        CrossEncoder(model=model, device="cpu").open()
    assert models.users(holder.loaded) == 1
    holder.close()


def test_threads_share_a_model(bert, documents):
    """Scores are the same however many threads ask at a time."""
    stage = CrossEncoder(model=bert, device="cpu")
    stage.open()
    expected = list(stage.score("red plum", documents))
    with ThreadPoolExecutor(8) as threads:
        for scores in threads.map(lambda _: list(stage.score("red plum", documents)), range(16)):
            assert np.allclose(scores, expected, atol=1e-6)
    stage.close()


def test_loading_leaves_the_settings_of_transformers_alone(bert, capfd):
    """Nothing is written while a model loads, and what the user has set about logs and bars is as before."""
    log = transformers.utils.logging
    before = (log.get_verbosity(), log.is_progress_bar_enabled())
    log.set_verbosity_info()
    log.enable_progress_bar()
    stage = CrossEncoder(model=bert, device="cpu", dtype="bfloat16")
    stage.open()
    stage.close()
    after = (log.get_verbosity(), log.is_progress_bar_enabled())
    log.set_verbosity(before[0])
    if not before[1]:
        log.disable_progress_bar()
    assert after == (log.INFO, True)
    assert capfd.readouterr() == ("", "")
