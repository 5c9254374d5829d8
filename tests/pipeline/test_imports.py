"""What importing the packages loads: nothing heavy, and no stage from the framework."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pymilvus", "httpx", "milvus_lite", "tokenizers")


def loaded_after(code: str) -> set[str]:
    """The top-level modules that are loaded in a fresh interpreter after the code ran."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["milvus_pipeline", "milvus_stages", "milvus_pipeline.cli"])
def test_importing_loads_nothing_heavy(module):
    """A backend that embeds the framework pays for torch, transformers, pymilvus and httpx only when a stage opens."""
    assert loaded_after(f"import {module}") & set(HEAVY) == set()


def test_the_framework_imports_no_stage():
    """The stages depend on the framework, never the other way round."""
    assert "milvus_stages" not in loaded_after("import milvus_pipeline, milvus_pipeline.cli")


def test_building_every_stage_loads_nothing_heavy():
    """Reading and checking a configuration opens nothing."""
    code = (
        "from milvus_pipeline import Pipeline\n"
        "Pipeline.from_config({'stages': [{'type': 'encode'}, {'type': 'milvus_search', 'collection': 'x'},"
        " {'type': 'late_interaction'}, {'type': 'cross_encoder'}, {'type': 'bge'}, {'type': 'truncate', 'top_k': 3}]})"
    )
    assert loaded_after(code) & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("extra", "wanted"), [("local", "milvus-search-pipeline[local]"), (None, "milvus-search-pipeline")]
)
def test_a_missing_package_names_the_pip_command(extra, wanted):
    """The stage that needs it says the exact command; none of an extra where the package is one of the base."""
    from milvus_pipeline import StageError, require

    with pytest.raises(StageError) as caught:
        require("no_such_package.part", extra=extra, wanted_by="the stage bge")
    assert str(caught.value) == (
        "the stage bge needs the package 'no_such_package', which is not installed; "
        f'install it with: pip install "{wanted}"'
    )
