"""How the modules depend on each other, how they are named, and what importing them loads."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import milvus_pipeline
import milvus_stages

HEAVY = {
    *("torch", "transformers", "pymilvus", "httpx", "milvus_lite", "tokenizers"),
    *("ir_measures", "scipy", "pandas", "statsmodels", "jinja2"),
}
FACES = {"milvus_pipeline", "milvus_pipeline.plugin"}
LAYERS = (
    {"errors"},
    {"records", "text", "extras"},
    {"context", "driver", "problems", "usage", "shared"},
    {"findings", "retry", "files"},
    {"stage", "breaker"},
    {"scores", "config"},
    {"reranker"},
    {"run"},
    {"pipeline"},
    {"ingest", "explain"},
    {"jobs"},
    {"evaluation"},
    {"cli"},
    {"demo"},
)
"""The modules and folders of milvus_pipeline; each may import what is above it in this list."""


def source_files():
    """The file of each module of both packages, by the module's full name."""
    files = {}
    for package in (milvus_pipeline, milvus_stages):
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            parts = [root.name, *path.relative_to(root).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = path
    return files


FILES = source_files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def names_in_a_face(package):
    """The names that a package's own `__init__` imports or defines: importing one is importing the package."""
    nodes = ast.iter_child_nodes(TREES[package])
    return {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def imports_of(module):
    """The modules of both packages that a module imports: at its top, in functions, and for types only."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            own = names_in_a_face(node.module)
            names = (alias.name for alias in node.names)
            found |= {node.module if name in own else f"{node.module}.{name}" for name in names}
    return {name if name in FILES else name.rpartition(".")[0] for name in found} & FILES.keys() - {module}


GRAPH = {module: imports_of(module) for module in FILES}

NAMES = Counter(module.rpartition(".")[2].lstrip("_") for module in FILES if not FILES[module].match("__*__.py"))
"""How many modules have a name."""


def loaded_after(code):
    """The top-level modules that are loaded in a fresh interpreter after the code ran."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_graph_sees_all_imports():
    """Names of a face, modules, and imports in functions are distinguished."""
    assert "milvus_pipeline" in GRAPH["milvus_pipeline.demo.__main__"]  # from milvus_pipeline import Pipeline
    assert {"milvus_pipeline.errors", "milvus_pipeline.pipeline"} <= GRAPH["milvus_pipeline"]
    assert any("milvus_pipeline.cli" in name for name in GRAPH["milvus_pipeline.__main__"])
    assert "milvus_stages.local.models" in GRAPH["milvus_stages.doctors.local"]


def test_no_imports_form_a_circle():
    """A module can be read without those that use it, imports for types and within functions included."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_layer_imports_one_below_it():
    """What users and authors stand on does not depend on jobs, evaluation or the command line."""
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    rooms = {module: module.split(".")[1] for module in GRAPH if module.startswith("milvus_pipeline.")}
    assert set(rooms.values()) == {*level, "plugin", "__main__"}
    wrong = [
        f"{module} imports {used}"
        for module in rooms.keys() & GRAPH.keys()
        for used in GRAPH[module] & rooms.keys()
        if rooms[module] in level and rooms[used] != rooms[module]
        if level.get(rooms[used], len(LAYERS)) >= level[rooms[module]]
    ]
    assert wrong == []


def test_only_the_demo_and_the_stages_use_the_faces():
    """The framework's modules import each other, so that a face can import any of them."""
    users = {module for module, used in GRAPH.items() if used & FACES and module.startswith("milvus_pipeline.")}
    assert {module.split(".")[1] for module in users} <= {"demo"}


def test_stages_import_the_public_faces_only():
    """A plugin of another package can do all that the project's own stages do."""
    framework = {module for module in FILES if module.startswith("milvus_pipeline")} - FACES
    assert {module: used & framework for module, used in GRAPH.items() if module.startswith("milvus_stages")} == (
        {module: set() for module in GRAPH if module.startswith("milvus_stages")}
    )


def test_nothing_imports_the_doctors():
    """A stage's doctor is found by its entry point."""
    users = {module for module, used in GRAPH.items() if any("milvus_stages.doctors" in name for name in used)}
    assert {module for module in users if not module.startswith("milvus_stages.doctors")} == set()


def test_names_tell_modules_apart():
    """At most two modules have the same name."""
    assert {name for name, count in NAMES.items() if count > 2} == set()


def test_no_module_is_named_by_a_gerund():
    """The name is that of what is in the module."""
    assert {name for name in NAMES if name.endswith("ing")} == set()


def test_the_front_room_is_small():
    """What lies directly in milvus_pipeline can be taken in at a glance."""
    assert len({module.split(".")[1] for module in FILES if module.startswith("milvus_pipeline.")}) <= 28


@pytest.mark.parametrize(
    "module",
    [
        "milvus_pipeline",
        "milvus_pipeline.plugin",
        "milvus_pipeline.jobs",
        "milvus_pipeline.evaluation",
        "milvus_pipeline.cli",
        "milvus_stages",
    ],
)
def test_importing_loads_nothing_heavy(module):
    """A backend that embeds the framework pays for torch and its like only when it runs what needs them."""
    assert loaded_after(f"import {module}") & HEAVY == set()


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
    assert loaded_after(code) & HEAVY == set()


@pytest.mark.parametrize(
    ("extra", "wanted"), [("local", "milvus-search-pipeline[local]"), (None, "milvus-search-pipeline")]
)
def test_a_missing_package_names_the_pip_command(extra, wanted):
    """The error gives the exact command; it names no extra if the package is a base dependency."""
    from milvus_pipeline import StageError
    from milvus_pipeline.plugin import require

    with pytest.raises(StageError) as caught:
        require("no_such_package.part", extra=extra, wanted_by="the stage bge")
    assert str(caught.value) == (
        "the stage bge needs the package 'no_such_package', which is not installed; "
        f'install it with: pip install "{wanted}"'
    )
