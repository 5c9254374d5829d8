"""Jobs in real processes that are killed with SIGKILL and resumed: the output is that of an undisturbed job."""

import json
import subprocess
import sys

import pytest

from support.processes import environment


def killed(how, *arguments):
    """Return what the script of killed jobs saw."""
    command = [sys.executable, "-m", "support.killed_jobs", how, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=300)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["out.jsonl", "out.trec", "out.jsonl.gz", "out.trec.gz"])
def test_twenty_kills_at_random_moments(tmp_path, name):
    """A job killed five times gives the same bytes, and most kills hit the middle of it."""
    seen = killed("random", tmp_path, name, 5)
    assert [kill["status"] for kill in seen["kills"]] == [-9] * 5
    assert (seen["last"], seen["same"]) == (0, True)
    done = [kill["queries"] for kill in seen["kills"]]
    assert done == sorted(done)
    assert all(count % 4 == 0 for count in done)
    assert len({count for count in done if 0 < count < seen["total"]}) >= 3
    assert {kill["state"] for kill in seen["kills"]} == {"running"}
    assert seen["resumptions"] >= 3


@pytest.mark.parametrize("name", ["out.jsonl", "out.trec.gz"])
def test_a_kill_at_each_call_of_the_file_system(tmp_path, name):
    """A kill before, after and halfway through any call, and another in the resumption, changes nothing."""
    seen = killed("each", tmp_path, name)
    assert seen["wrong"] == []
    assert seen["steps"] > 40
