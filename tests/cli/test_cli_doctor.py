"""`milvus-pipeline doctor`: what is printed, in which shape, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from milvus_pipeline.plugin import CheckContext, Deadline, Finding, register
from support.fake_stages.basic import ListedSearch
from support.readme import blocks

ROOT = Path(__file__).parents[2]
FINDINGS = {
    "ok": Finding.ok("rows", "there are 7"),
    "warning": Finding.warning("recall", "it is 0.5", "raise params.nprobe"),
    "error": Finding.error("index", "there is \x1b[31mnone", "make it with `milvus-pipeline ingest`"),
}


@register("checked_search")
class CheckedSearch(ListedSearch):
    """Reports the findings that its configuration names."""

    finds: tuple[str, ...] = ()

    def check(self, context: CheckContext) -> Iterable[Finding]:
        for level in self.finds:
            yield FINDINGS[level]
        if context.send:
            yield Finding.ok("request", f"sent within {context.deadline.budget:g} s")


@pytest.fixture
def config(make):
    """Writes a configuration whose stages find what is named: ``config("ok", "error")``."""

    def written(*levels: str) -> Path:
        text = f"stages:\n  - {{type: checked_search, finds: {json.dumps(levels)}}}\n  - {{type: word_overlap}}\n"
        return make("checked.yaml", f"name: fruit\n{text}")

    return written


@pytest.mark.parametrize(
    ("levels", "options", "code", "summary"),
    [
        (["ok"], [], 0, "fruit: 1 ok"),
        (["ok", "warning"], [], 0, "fruit: 1 warning, 1 ok"),
        (["ok", "warning"], ["--strict"], 1, "fruit: 1 warning, 1 ok"),
        (["error", "ok", "warning", "error"], [], 1, "fruit: 2 errors, 1 warning, 1 ok"),
        ([], ["--strict"], 0, "fruit: 0 ok"),
    ],
)
def test_the_end_follows_from_the_worst(invoke, config, levels, options, code, summary):
    """The exit code is 1 for errors, and for warnings only with --strict; the last line has the counts."""
    done = invoke("doctor", config(*levels), *options)
    assert done.exit_code == code
    assert done.stdout.splitlines()[-1] == summary


def test_the_table_says_what_and_what_to_do(invoke, config):
    """Stage, check, result in words, what was found, and the next step below it; no control signs."""
    path = config("ok", "warning", "error")
    lines = [" ".join(line.split()) for line in invoke("doctor", path, env={"COLUMNS": "200"}).stdout.splitlines()]
    assert lines[2:8] == [
        "checked_search",
        "rows ok there are 7",
        "recall warning it is 0.5",
        "→ raise params.nprobe",
        "index error there is \ufffd[31mnone",
        f"→ make it with `milvus-pipeline ingest {path} FILE...`",
    ]


def test_json_is_one_document(invoke, config):
    """The JSON document has the summary and complete findings."""
    path = config("ok", "error")
    data = json.loads(invoke("doctor", path, "--format", "json").stdout)
    assert (data["pipeline"], data["config"]) == ("fruit", str(path))
    assert data["summary"] == {"ok": 1, "warning": 0, "error": 1}
    assert data["findings"][0] == {
        "stage": "checked_search",
        "level": "ok",
        "topic": "rows",
        "message": "there are 7",
        "next_step": "",
    }


def test_leave_and_time_are_handed_on(invoke, config):
    """--send and --timeout reach the checks."""
    assert "request" not in invoke("doctor", config()).stdout
    assert "sent within 3 s" in invoke("doctor", config(), "--send", "--timeout", "3").stdout


def test_a_fresh_machine_is_reported_what_to_do(invoke, monkeypatch, tmp_path, minilm):
    """Without the demo's database it names the command that creates it, and still checks the other stages."""
    monkeypatch.setenv("MILVUS_URI", str(tmp_path / "none.db"))
    done = invoke("doctor", ROOT / "configs" / "python_docs.yaml", "--format", "json")
    assert done.exit_code == 1
    (error,) = [found for found in json.loads(done.stdout)["findings"] if found["level"] == "error"]
    assert error["stage"] == "milvus_search"
    assert error["next_step"] == "check `uri`, or make it with `make demo`"
    levels = {found["stage"]: found["level"] for found in json.loads(done.stdout)["findings"]}
    assert {stage for stage, level in levels.items() if level == "ok"} == {"encode", "late_interaction", "truncate"}
    assert list(tmp_path.iterdir()) == []


def test_dead_servers_keep_no_other_stage_from_its_turn(invoke, make, monkeypatch):
    """If database and service are down, both are reported, and so are the requests of a query."""
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    path = make(
        "dead.yaml",
        "stages:\n"
        "  - {type: milvus_search, uri: 'http://127.0.0.1:1', collection: x, limit: 40}\n"
        "  - {type: tei, base_url: 'http://127.0.0.1:1', on_error: {fallback: {type: rerank_api,"
        " base_url: 'http://127.0.0.1:1', on_error: skip}}}\n",
    )
    done = invoke("doctor", path, "--format", "json", "--timeout", "5")
    found = [(one["stage"], one["topic"], one["level"]) for one in json.loads(done.stdout)["findings"]]
    assert done.exit_code == 1
    assert [one for one in found if one[2] == "error"] == [
        ("milvus_search", "server", "error"),
        ("tei", "address", "error"),
        ("rerank_api", "address", "error"),
    ]
    assert ("tei", "requests", "ok") in found


def test_the_check_of_the_document_works_as_shown():
    """The plugin under "A check of your own" finds what it says."""
    names: dict = {"__name__": "notebook"}
    exec(blocks("python", "A check of your own", ROOT / "docs" / "doctor.md")[0], names)  # noqa: S102 - the document's
    stage = names["ExactWords"](most_words=2)
    context = CheckContext(Deadline(), texts=["a red plum", "plum"])
    (found,) = stage.check(context)
    assert found.message == "1 of 2 sampled documents are longer than 2 words"
    assert stage("red plum", ["a red plum", "red plum"])[0].index == 1
