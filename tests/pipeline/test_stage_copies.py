"""Stages in other places: pickled and copied by their configuration."""

import pickle
from copy import deepcopy

import pytest

from milvus_pipeline import Fallback
from milvus_stages import BGE, Cohere, MilvusSearch, Truncate
from support.fake_stages.basic import ListedSearch, WordOverlap


def pickled(stage):
    return pickle.loads(pickle.dumps(stage))  # noqa: S301 - made here


STAGES = [
    WordOverlap(weight=2.0, top_n=3, name="words"),
    ListedSearch(on_error=Fallback(ListedSearch(name="other", on_error="skip"))),
    MilvusSearch(collection="papers", params={"nprobe": 8}, retry={"attempts": 1}),
    Cohere(api_key_env="MY_KEY", headers={"X-Team": {"env": "TEAM"}}, cache="scores.db"),
    BGE(top_k=5),
    Truncate(max_chars=500),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("copied", [pickled, deepcopy])
def test_a_copy_has_the_configuration(stage, copied):
    """A process of a pool gets an equal stage, with its fallback."""
    copy = copied(stage)
    assert copy is not stage
    assert copy == stage
    assert copy.config() == stage.config()
    assert copy.model_fields_set == stage.model_fields_set


@pytest.mark.parametrize("copied", [pickled, deepcopy])
def test_a_copy_is_closed(copied):
    """What the stage has opened stays with it."""
    with WordOverlap() as stage:
        copy = copied(stage)
        assert not copy.is_open
        with copy:
            assert copy("red", ["a red one"])[0].score == 1
        assert stage.is_open
