"""Whether a job can start or go on at its output: what is there, and whether the job is still the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.output import check_target
from milvus_pipeline.files.queries import source_file
from milvus_pipeline.jobs.manifest import Manifest, Options, Output, fresh_path, manifest_path, read_manifest
from milvus_pipeline.jobs.output import OutputFile
from milvus_pipeline.text import short_repr

_OTHERS_ONLY: Final = ("sweep", "collection")
"""Sections of a configuration that only other commands read."""

_START_AGAIN: Final = "start again with --overwrite"


class ResumeError(InputError):
    """A job cannot be resumed, because it is no longer the same.

    Attributes:
        differences: place by place, what was and what is.
    """

    def __init__(self, differences: Sequence[str], next_step: str, *, place: str) -> None:
        what = "cannot be resumed, because the job is no longer the same"
        super().__init__(what, f"{next_step}, or {_START_AGAIN}", place=place)
        self.differences = list(differences)

    def __str__(self) -> str:
        return "\n".join([f"{self.place}: {self.what}:", *(f"  {line}" for line in self.differences), self.next_step])


def check_place(path: Path, queries: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Check before any work whether a job can start, or may be resumed, at this place.

    Args:
        path: the output.
        queries: the file of queries, or the folder in BEIR's layout; None if they come from elsewhere.
        resume: go on with a job.
        overwrite: start again.

    Raises:
        InputError: it cannot; with what to do about it.
    """
    place = str(path)
    if resume and overwrite:
        raise InputError("--resume goes on with a job, and --overwrite starts it again", "pass one of them")
    try:
        fresh_path(manifest_path(path)).exists()  # the longest name
    except OSError as error:
        what = f"no manifest can be written next to it: {error.strerror}"
        raise InputError(what, "choose another name", place=place) from error
    check_target(path, source_file(queries) if queries is not None and path.exists() else None)
    if path.exists() and not path.is_file():
        raise InputError("is not a regular file, so a job cannot go back in it", place=place)
    if path.is_symlink() and not path.exists():
        raise InputError(f"is a link to {path.readlink()}, which does not exist", "remove the link", place=place)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"the folder {path.parent} cannot be written, so there can be no manifest", place=place)
    if resume or overwrite:
        return
    for existing in (path, manifest_path(path)):
        if existing.exists():
            step = "choose another file, resume its job with --resume, or replace it with --overwrite"
            raise InputError("exists already", step, place=str(existing))


def manifest_of(path: Path, output: OutputFile | None) -> Manifest | None:
    """Return the manifest of the job to resume; None if nothing was done yet.

    Raises:
        InputError: either the manifest or the output of a job is missing.
    """
    manifest = read_manifest(manifest_path(path))
    step = f"put it back, or {_START_AGAIN}"
    if manifest is None and output is not None and output.size:
        raise InputError(f"cannot be resumed without its manifest {manifest_path(path)}", step, place=str(path))
    if manifest is not None and output is None and manifest.progress.queries:
        what = f"does not exist, but according to its manifest {manifest.progress.queries} queries are done"
        raise InputError(what, step, place=str(path))
    return None if output is None else manifest


# -- what must be the same -------------------------------------------------------------------------------------------


def differences(was: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield each place at which two pieces of plain data differ: ``stages[1].limit: was 100, is 50``.

    Args:
        was: mappings, lists, strings, numbers.
        now: the same later.
        place: the beginning of every place.
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*was, *now]):
            inner = f"{place}.{key}" if place else str(key)
            if key not in now:
                yield f"{inner}: was {short_repr(was[key])}, is not set"
            elif key not in was:
                yield f"{inner}: was not set, is {short_repr(now[key])}"
            else:
                yield from differences(was[key], now[key], inner)
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{place}: had {len(was)} entries, has {len(now)}"
        for position, (before, after) in enumerate(zip(was, now, strict=False)):
            yield from differences(before, after, f"{place}[{position}]")
    elif was != now or isinstance(was, bool) != isinstance(now, bool):
        yield f"{place}: was {short_repr(was)}, is {short_repr(now)}"


def check_same_job(path: Path, manifest: Manifest, config: Mapping[str, Any], options: Options, output: Output) -> None:
    """Raise ResumeError if configuration, options or format are not those that the job started with."""
    was = _what_it_does(manifest.config, manifest.options, manifest.output)
    if found := list(differences(was, _what_it_does(config, options, output))):
        raise ResumeError(found, "run it as it was started", place=str(path))


def _what_it_does(config: Mapping[str, Any], options: Options, output: Output) -> dict[str, Any]:
    own = {key: value for key, value in config.items() if key not in _OTHERS_ONLY}
    return {
        **own,
        "options": options.model_dump(mode="json"),
        "output": output.model_dump(mode="json", exclude={"path"}),
    }


def check_output(output: OutputFile, manifest: Manifest) -> None:
    """Raise InputError if the output does not contain what the job has written."""
    size, sha256 = manifest.progress.bytes, manifest.progress.output_sha256
    complete = manifest.state == "complete"
    if output.size < size or (complete and output.size > size):
        what = f"has {output.size} bytes, but the job has written {size}"
    elif output.digest(size).hexdigest() != sha256:
        what = f"was changed: its first {size} bytes are not what the job has written"
    else:
        return
    raise InputError(what, f"put it back as it was, or {_START_AGAIN}", place=str(output.path))
