"""The manifest: documented key by key, replaced whole, and read strictly."""

import json
import os
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from milvus_pipeline import Manifest, Pipeline, manifest_path, read_manifest, run_job
from milvus_pipeline.jobs.manifest import write_manifest
from support.fake_stages import basic

DOC = Path(__file__).parent.parent.parent / "docs" / "jobs.md"


def keys_of(model, prefix=""):
    """Return the dotted path of every key that a model writes, with STAGE for the keys of a mapping."""
    found = set()
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        models = [kind for kind in inner if issubclass(kind, BaseModel)]
        if not models or prefix == "whole_batches.":
            found.add(prefix + name)
            continue
        kind = getattr(field.annotation, "__origin__", None)
        way = {dict: f"{name}.STAGE.", list: f"{name}[]."}.get(kind, f"{name}.")
        found |= keys_of(models[0], prefix + way)
    return found


def test_every_key_is_documented():
    """The table in docs/jobs.md has exactly the keys of the manifest."""
    table = DOC.read_text(encoding="utf-8").split("## The manifest")[1]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.M)) == keys_of(Manifest)


def test_the_keys_written_are_those_of_the_model(tmp_path):
    """A manifest has every key, also empty ones, and is read back to the same."""
    run_job(Pipeline([basic.ListedSearch()]), ["red"], tmp_path / "out.jsonl")
    text = manifest_path(tmp_path / "out.jsonl").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=pytest.fail)
    assert list(data) == list(Manifest.model_fields)
    assert list(data["figures"]["stages"]["listed_search"]) == ["queries", "seconds", "usage", "cached"]
    assert read_manifest(manifest_path(tmp_path / "out.jsonl")).model_dump(mode="json") == data
    assert text.endswith("}\n")


def test_a_manifest_is_replaced_whole(tmp_path, monkeypatch):
    """If the new manifest cannot be written the old one is unchanged, and no other file is left."""
    run_job(Pipeline([basic.ListedSearch()]), ["red"], tmp_path / "out.jsonl")
    path = manifest_path(tmp_path / "out.jsonl")
    before = path.read_bytes()
    manifest = read_manifest(path)

    def full(*given, **named):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="No space left"):
                write_manifest(path, manifest.model_copy(update={"resumptions": 7}), 0o600)
        assert path.read_bytes() == before
        assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]
    write_manifest(path, manifest.model_copy(update={"resumptions": 7}), 0o600)
    assert read_manifest(path).resumptions == 7
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes UTF-8 only")
def test_an_output_may_have_any_name(tmp_path):
    """An output whose name is not UTF-8 has a manifest like others, and its job can be resumed."""
    output = tmp_path / os.fsdecode(b"out\xff.jsonl")
    pipeline = Pipeline([basic.ListedSearch(), basic.WordOverlap()])
    run_job(pipeline, ["one"], output)
    assert read_manifest(manifest_path(output)).output.path.endswith("out?.jsonl")
    assert run_job(pipeline, ["one", "two"], output, resume=True).queries == 2
