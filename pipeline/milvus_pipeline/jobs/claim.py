"""How a job starts: it examines what is at its output, claims it for itself, and decides whether it can go on there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

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

    def __init__(
        self, what: str = "", next_step: str = "", *, place: str = "", differences: Sequence[str] = ()
    ) -> None:
        super().__init__(what, next_step, place=place)
        self.differences = list(differences)

    def __str__(self) -> str:
        return "\n".join([f"{self.place}: {self.what}:", *(f"  {line}" for line in self.differences), self.next_step])


def changed_job(path: Path, differences: Sequence[str], next_step: str) -> ResumeError:
    """Return the error of a job with this output, from which what is asked now differs."""
    what = "cannot be resumed, because the job is no longer the same"
    return ResumeError(what, f"{next_step}, or {_START_AGAIN}", place=str(path), differences=differences)


class Claim(NamedTuple):
    """The output of a job that may start or go on.

    Args:
        path: the output.
        manifest_at: the path of its manifest.
        output: the file, locked; None if it does not exist yet.
        manifest: of the job to resume; None if a new one starts.
    """

    path: Path
    manifest_at: Path
    output: OutputFile | None
    manifest: Manifest | None


def claim_output(path: Path, queries: Path | None, *, resume: bool, overwrite: bool) -> Claim:
    """Lock the output if it exists, and read the manifest of the job to resume.

    Raises:
        InputError: a job can neither start nor go on here; nothing was changed.
    """
    check_place(path, queries, resume=resume, overwrite=overwrite)
    try:
        output = OutputFile(path, new=False)
    except FileNotFoundError:
        output = None
    try:
        return Claim(path, manifest_path(path), output, _manifest_of(path, output) if resume else None)
    except BaseException:
        if output is not None:
            output.close()
        raise


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
    if not resume and not overwrite:
        _check_absent(path)


def _check_absent(path: Path) -> None:
    manifest_at = manifest_path(path)
    if not path.exists():
        if manifest_at.exists():
            step = "remove it, or pass --overwrite"
            raise InputError("exists already, without its output", step, place=str(manifest_at))
        return
    manifest = None
    with suppress(InputError):
        manifest = read_manifest(manifest_at)
    if manifest is None or manifest.state == "complete":
        raise InputError("exists already", "choose another file, or pass --overwrite", place=str(path))
    raise InputError(
        f"exists already, from a job that is not complete ({manifest.progress.queries} queries done)",
        "pass --resume to go on with it, or --overwrite to start again",
        place=str(path),
    )


def _manifest_of(path: Path, output: OutputFile | None) -> Manifest | None:
    """Return the manifest of the job to resume; None if nothing was done yet."""
    manifest_at = manifest_path(path)
    manifest = read_manifest(manifest_at)
    step = f"put it back, or {_START_AGAIN}"
    if manifest is None:
        if output is not None and output.size:
            raise InputError(f"cannot be resumed without its manifest {manifest_at}", step, place=str(path))
        return None
    if output is None:
        done = manifest.progress.queries
        if done:
            what = f"does not exist, but according to its manifest {manifest_at} {done} queries are done"
            raise InputError(what, step, place=str(path))
        return None
    return manifest


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
    was, now = (
        {key: value for key, value in of.items() if key not in _OTHERS_ONLY} for of in (manifest.config, config)
    )
    found = [
        *differences(was, now),
        *differences(manifest.options.model_dump(), options.model_dump(), "options"),
        *differences(manifest.output.model_dump(exclude={"path"}), output.model_dump(exclude={"path"}), "output"),
    ]
    if found:
        raise changed_job(path, found, "run it as it was started")


def check_same_identity(path: Path, was: Mapping[str, Any], now: Mapping[str, Any], accepted: bool) -> list[str]:
    """Return what differs in what the stages work with. Raise ResumeError if something does and is not accepted."""
    found = list(differences(was, now))
    if found and not accepted:
        raise changed_job(path, found, "pass --accept-changes to go on anyway")
    return found


def check_output(output: OutputFile, manifest: Manifest) -> None:
    """Raise InputError if the output does not contain what the job has written."""
    size, sha256 = manifest.progress.bytes, manifest.progress.output_sha256
    if output.size < size:
        what = f"is shorter than what the job has written ({output.size} bytes of {size})"
    elif output.digest(size).hexdigest() != sha256:
        what = f"was changed: its first {size} bytes are not what the job has written"
    elif manifest.state == "complete" and output.size > size:
        what = f"was changed: the job was complete with {size} bytes, and it has {output.size}"
    else:
        return
    raise InputError(what, f"put it back as it was, or {_START_AGAIN}", place=str(output.path))
