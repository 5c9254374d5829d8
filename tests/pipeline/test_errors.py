"""The parts of errors: rendered once, kept by wrappers and pickling."""

import pickle

import pytest

from milvus_pipeline import CircuitOpenError, ConfigError, PipelineError, ServiceError, StageError
from milvus_pipeline.errors import Problem
from milvus_pipeline.text import error_parts

ONE = Problem(("stages", 1, "limit"), "must be at least 1", "raise it", line=4)
TWO = Problem(("name",), "is missing", line=1)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StageError("is empty"), "is empty"),
        (StageError("is empty", "fill it"), "is empty; fill it"),
        (StageError("is empty", "fill it", place="papers").at("file"), "file: papers: is empty; fill it"),
        (ConfigError(problems=[ONE]), "stages[1].limit: must be at least 1; raise it (line 4)"),
        (
            ConfigError(problems=[ONE, TWO], place="x.yaml"),
            "x.yaml: stages[1].limit: must be at least 1; raise it (line 4)\nx.yaml: name: is missing (line 1)",
        ),
        (CircuitOpenError("circuit open", retry_after=2.0), "circuit open"),
    ],
)
def test_an_error_is_rendered_from_its_parts(error, text):
    """``str`` has place, what and next step; a pickled error has the same parts."""
    assert str(error) == text
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert str(copy) == text
    assert copy.__dict__ == error.__dict__


def test_a_service_error_adds_its_attempts():
    """A wrapper that takes the parts of a ServiceError keeps how often it was tried, and why not again."""
    error = ServiceError("answered 503", "try later", place="cohere", status=503, retryable=True)
    error.attempts, error.waited, error.given_up = 3, 1.5, "the time is over"
    what, next_step = error_parts(error)
    assert what == "cohere: answered 503"
    attempts = "(3 attempts, the last after a wait of 1.5 s)"
    assert next_step == f"try later {attempts}; not tried again: the time is over"
    assert str(error) == f"{what}; {next_step}"
    error.next_step = ""
    assert str(error) == f"cohere: answered 503 {attempts}; not tried again: the time is over"


def test_the_parts_of_configuration_problems():
    """One problem gives its own parts; of several each keeps its next step in the text."""
    assert error_parts(ConfigError(problems=[ONE])) == ("stages[1].limit: must be at least 1 (line 4)", "raise it")
    what, next_step = error_parts(ConfigError(problems=[ONE, TWO]))
    assert "raise it" in what
    assert next_step == ""


def test_parts_of_a_foreign_error():
    """Its class and message are what is wrong; there is no next step."""
    assert error_parts(OSError("no such device\nand more")) == ("OSError: no such device", "")
    assert issubclass(ConfigError, PipelineError)
