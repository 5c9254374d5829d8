"""What importing the packages loads: nothing heavy, and no stage from the framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import milvus_pipeline
import milvus_stages

HEAVY = (
    *("torch", "transformers", "pymilvus", "httpx", "milvus_lite", "tokenizers"),
    *("ir_measures", "scipy", "pandas", "statsmodels", "jinja2"),
)
MODULES = (
    "milvus_pipeline",
    "milvus_pipeline.jobs",
    "milvus_pipeline.evaluation",
    "milvus_pipeline.cli",
    "milvus_stages",
)
PACKAGE = Path(milvus_pipeline.__file__).parent
LAYERS = ("", "jobs", "evaluation", "cli")  # each may import those before it; "" is what is in no folder


def loaded_after(code: str) -> set[str]:
    """The top-level modules that are loaded in a fresh interpreter after the code ran."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def imported(file: Path) -> set[str]:
    """The modules of the framework that a file imports anywhere, as far as their names go."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.partition(".")[0] == "milvus_pipeline"}


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_nothing_heavy(module):
    """A backend that embeds the framework pays for torch and its like only when it runs what needs them."""
    assert loaded_after(f"import {module}") & set(HEAVY) == set()


def test_the_framework_imports_no_stage():
    """The stages depend on the framework, never the other way round."""
    assert "milvus_stages" not in loaded_after("import milvus_pipeline, milvus_pipeline.cli")


@pytest.mark.parametrize(("place", "layer"), list(enumerate(LAYERS)))
def test_no_layer_imports_one_above_it(place, layer):
    """Jobs need no evaluation, evaluation no command line, and what is in none of the folders needs none of them."""
    above = {f"milvus_pipeline.{name}" for name in LAYERS[place + 1 :]}
    files = sorted((PACKAGE / layer).rglob("*.py") if layer else PACKAGE.glob("*.py"))
    assert files
    wrong = {file.name: {name for name in imported(file) if ".".join(name.split(".")[:2]) in above} for file in files}
    entry_points = {"__main__.py", "__init__.py"}
    assert {name: found for name, found in wrong.items() if found and name not in entry_points} == {}


def test_stages_import_the_public_face_only():
    """A plugin of another package can do all that the project's own stages do."""
    files = sorted(Path(milvus_stages.__file__).parent.rglob("*.py"))
    faces = {"milvus_pipeline", "milvus_pipeline.plugin"}
    assert {file.name for file in files if imported(file) - faces} == set()


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
    from milvus_pipeline import StageError
    from milvus_pipeline.plugin import require

    with pytest.raises(StageError) as caught:
        require("no_such_package.part", extra=extra, wanted_by="the stage bge")
    assert str(caught.value) == (
        "the stage bge needs the package 'no_such_package', which is not installed; "
        f'install it with: pip install "{wanted}"'
    )
