"""How a job begins: what stands at its output is looked at, claimed for this job alone, and judged before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.queries import source_file
from milvus_pipeline.jobs.manifest import Manifest, Options, Output, fresh_path, manifest_path, read_manifest
from milvus_pipeline.jobs.output import OutputFile
from milvus_pipeline.text import short_repr


def differences(was: Any, now: Any, place: str = "") -> Iterator[str]:
    """Each place at which two pieces of plain data differ: ``stages[1].limit: was 100, is 50``.

    Args:
        was: mappings, lists, texts, numbers.
        now: the same later.
        place: what leads every place.
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
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for position, (before, after) in enumerate(zip(was, now, strict=True)):
            yield from differences(before, after, f"{place}[{position}]")
    elif isinstance(was, list) and isinstance(now, list):
        yield f"{place}: had {len(was)} entries, has {len(now)}"
        for position, (before, after) in enumerate(zip(was, now, strict=False)):
            yield from differences(before, after, f"{place}[{position}]")
    elif was != now or isinstance(was, bool) != isinstance(now, bool):
        yield f"{place}: was {short_repr(was)}, is {short_repr(now)}"


_NO_MATTER: Final = ("sweep", "collection")
"""Parts of a configuration that only other commands read: what ``evaluate`` compares, what ``ingest`` makes."""


class ResumeError(InputError):
    """A job cannot be resumed, as it is no longer the same.

    Attributes:
        differences: place by place, what was and what is.
    """

    def __init__(self, message: str, differences: list[str]) -> None:
        super().__init__(message)
        self.differences = differences


class Claim(NamedTuple):
    """The output of a job that may begin or go on.

    Args:
        path: the output.
        manifest_at: where its manifest stands.
        output: the file, locked; None where it is not there yet.
        manifest: of the job to go on with; None where one begins.
    """

    path: Path
    manifest_at: Path
    output: OutputFile | None
    manifest: Manifest | None


def claimed(path: Path, queries: Path | None, *, resume: bool, overwrite: bool) -> Claim:
    """Lock the output, where there is one, and read the manifest of the job to go on with.

    Raises:
        InputError: the job can neither begin nor go on here; nothing was changed.
    """
    check_place(path, queries, resume=resume, overwrite=overwrite)
    manifest_at = manifest_path(path)
    try:
        output = OutputFile(path, new=False)
    except FileNotFoundError:
        output = None
    if not resume:
        return Claim(path, manifest_at, output, None)
    try:
        return Claim(path, manifest_at, output, _manifest_of(path, output))
    except BaseException:
        if output is not None:
            output.close()
        raise


def check_place(path: Path, queries: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Find out before any work whether a job can begin, or may be gone on with, at this place.

    Args:
        path: the output.
        queries: the file of queries, or the folder in BEIR's shape; None where they come from elsewhere.
        resume: go on with a job.
        overwrite: begin anew.

    Raises:
        InputError: it cannot; what can be done about it is told.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a job, and --overwrite begins it anew", "pass one of them")
    _check_name(path)
    if path.is_dir():
        raise InputError("is a folder", "give the name of a file in it", place=str(path))
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist", "make it first", place=str(path))
    if queries is not None and path.exists() and (source := source_file(queries)).exists() and path.samefile(source):
        raise InputError("is the file of queries itself", "write to another file", place=str(path))
    if path.exists() and not path.is_file():
        raise InputError("is no ordinary file, in which a job could go back", place=str(path))
    if path.is_symlink() and not path.exists():
        raise InputError(f"is a link to {path.readlink()}, which does not exist", "remove the link", place=str(path))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"the folder {path.parent} cannot be written, in which its manifest would stand", place=str(path)
        )
    if not resume and not overwrite:
        _check_absent(path)


def _check_name(path: Path) -> None:
    """InputError where there can be no manifest beside the output."""
    try:
        fresh_path(manifest_path(path)).exists()  # the longest name
    except OSError as error:
        raise InputError(
            f"there can be no manifest beside it: {error.strerror}", "take another name", place=str(path)
        ) from error


def _check_absent(path: Path) -> None:
    manifest_at = manifest_path(path)
    if not path.exists():
        if manifest_at.exists():
            raise InputError(
                "exists already, without its output", "remove it, or pass --overwrite", place=str(manifest_at)
            )
        return
    manifest = None
    with suppress(InputError):
        manifest = read_manifest(manifest_at)
    if manifest is None or manifest.state == "complete":
        raise InputError("exists already", "choose another file, or pass --overwrite", place=str(path))
    raise InputError(
        (f"exists already, of a job that is not complete (done so far: {manifest.progress.queries})"),
        "pass --resume to go on with it, or --overwrite to begin anew",
        place=str(path),
    )


def _manifest_of(path: Path, output: OutputFile | None) -> Manifest | None:
    """The manifest of the job to go on with; None where nothing was done yet."""
    manifest_at = manifest_path(path)
    manifest = read_manifest(manifest_at)
    if manifest is None:
        if output is not None and output.size:
            raise InputError(
                f"cannot be resumed, as its manifest {manifest_at} is not there",
                "put it back, choose another file, or begin anew with --overwrite",
                place=str(path),
            )
        return None
    if output is None:
        if manifest.progress.queries:
            raise InputError(
                (
                    f"is not there, though its manifest {manifest_at} tells of {manifest.progress.queries}"
                    " queries that are done"
                ),
                "put it back, or begin anew with --overwrite",
                place=str(path),
            )
        return None
    return manifest


# -- what must be the same -------------------------------------------------------------------------------------------


def check_same_job(path: Path, manifest: Manifest, config: Mapping[str, Any], options: Options, output: Output) -> None:
    """ResumeError where configuration, options or format are not those that the job began with."""
    was, now = ({key: value for key, value in of.items() if key not in _NO_MATTER} for of in (manifest.config, config))
    found = [
        *differences(was, now),
        *differences(manifest.options.model_dump(), options.model_dump(), "options"),
        *differences(_form(manifest.output), _form(output), "output"),
    ]
    if found:
        _refuse(path, found, "run it as it was begun, or begin anew with --overwrite")


def _form(output: Output) -> dict[str, Any]:
    return output.model_dump(exclude={"path"})


def check_same_identity(path: Path, was: Mapping[str, Any], now: Mapping[str, Any], accepted: bool) -> list[str]:
    """What differs in what the stages work with. ResumeError where something does, unless that is accepted."""
    found = list(differences(was, now))
    if found and not accepted:
        _refuse(path, found, "pass --accept-changes to go on all the same, or begin anew with --overwrite")
    return found


def _refuse(path: Path, found: list[str], advice: str) -> NoReturn:
    lines = "\n".join(f"  {line}" for line in found)
    raise ResumeError(f"{path}: cannot be resumed, as the job is no longer the same:\n{lines}\n{advice}", found)


def check_output(output: OutputFile, manifest: Manifest) -> None:
    """InputError where the output does not hold what the job has written."""
    size, sha256 = manifest.progress.bytes, manifest.progress.output_sha256
    if output.size < size:
        what = f"is shorter than what the job has written ({output.size} bytes of {size})"
    elif output.digest(size).hexdigest() != sha256:
        what = f"was changed: its first {size} bytes are not what the job has written"
    elif manifest.state == "complete" and output.size > size:
        what = f"was changed: the job was complete with {size} bytes, and it has {output.size}"
    else:
        return
    raise InputError(str(what), "put it back as it was, or begin anew with --overwrite", place=str(output.path))
