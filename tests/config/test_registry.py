"""The registry: stages by decorator and by entry point, clashes and suggestions."""

import sys
from importlib.metadata import EntryPoint

import pytest

from milvus_pipeline import ConfigError
from milvus_pipeline.config.file import registry
from milvus_pipeline.config.registry import Registry
from milvus_pipeline.plugin import Reranker, Stage, register
from support.fake_stages.basic import ListedSearch

BUILT_IN = {"bge", "cross_encoder", "encode", "late_interaction", "milvus_search", "truncate"}


def test_the_stages_of_the_project_are_registered_by_entry_points():
    """The built-in stages are found as those of any other package."""
    assert set(registry.names()) >= BUILT_IN
    for name in BUILT_IN:
        assert registry.get(name).type == name


def own_points(monkeypatch, *points: EntryPoint) -> Registry:
    """Return a registry that sees these entry points."""
    monkeypatch.setattr(sys.modules["milvus_pipeline.config.registry"], "entry_points", lambda group: points)
    return Registry()


def test_a_decorated_class_is_found(monkeypatch):
    """`@register` sets the type and the name, and a notebook cell may define the same class again."""
    own = own_points(monkeypatch)

    def cell():
        @own.register("mine")
        class Mine(Stage):
            pass

        return Mine

    cell()
    again = cell()
    assert own.get("mine") is again
    assert again().type == again().name == "mine"
    assert own.names() == ["mine"]


def test_a_name_is_taken_once(monkeypatch):
    """A second class with a name is an error that names both, also if the first is from a package."""
    own = own_points(monkeypatch)

    @own.register("mine")
    class First(Stage):
        pass

    with pytest.raises(ConfigError, match=r"Second: the stage type 'mine' is already taken by .*First"):

        @own.register("mine")
        class Second(Stage):
            pass

    with pytest.raises(ConfigError, match=r"the stage type 'bge' is already taken by milvus_stages.rerank.bge:BGE"):

        @register("bge")
        class Other(Reranker):
            pass


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("truncat", "did you mean 'truncate'?"),
        ("Milvus-Search", "did you mean 'milvus_search'?"),
        ("zz", "known are bge"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, expected):
    """A near miss gets the nearest name, any other all names."""
    with pytest.raises(ConfigError) as caught:
        registry.get(name)
    assert str(caught.value).startswith(f"no stage is named {name!r}; ")
    assert expected in str(caught.value)


def test_two_packages_cannot_claim_one_name(monkeypatch):
    """Two entry points with one name are an error that names both, whichever stage is looked up."""
    own = own_points(monkeypatch, EntryPoint("x", "a:A", "g"), EntryPoint("x", "b:B", "g"))
    with pytest.raises(ConfigError, match=r"'x' is claimed by a:A .* and by b:B .*; uninstall one"):
        own.get("y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("no_such_module:A", "cannot be imported: ModuleNotFoundError"),
        ("support.fake_stages.basic:NoSuchClass", "cannot be imported: AttributeError"),
        ("support.fake_stages.basic:DOCUMENTS", "is not a subclass of Stage"),
        (
            "support.fake_stages.basic:ListedSearch",
            "has the type 'listed_search'; make its `type` and the name of its entry point",
        ),
    ],
)
def test_a_broken_entry_point_is_named(monkeypatch, value, expected):
    """A broken plugin is reported with its name."""
    assert "support.fake_stages.basic" in sys.modules
    own = own_points(monkeypatch, EntryPoint("broken", value, "g"))
    assert own.names() == ["broken"]
    with pytest.raises(ConfigError, match=f"the stage 'broken' of {value}.*{expected}"):
        own.get("broken")


def test_an_entry_point_and_a_decorator_may_agree(monkeypatch):
    """A plugin may use both an entry point and the decorator for one class."""
    own = own_points(monkeypatch, EntryPoint("listed_search", "support.fake_stages.basic:ListedSearch", "g"))
    assert own.register("listed_search")(ListedSearch) is ListedSearch
    assert own.get("listed_search") is ListedSearch
