"""Addresses that a user names: where inputs come from, where outputs go, as far as text and disk tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath

from runner.core import addresses
from runner.core.errors import UsageError
from runner.core.spec import Input, JobSpec, Upload
from storage import uri as uris
from storage.destinations import check_destination
from storage.errors import StorageError
from storage.filesystems import check_package
from storage.manifest import check_path


def source_of(what: str, stated: Input, cwd: str, env: Mapping[str, str]) -> uris.Uri:
    """Return the address of a source, a relative path being relative to `cwd`.

    A local one must be there, unless the digest says what it was: the store may have that.
    """
    try:
        text = uris.of_type(stated.uri, stated.source_kind, stated.source_type)
        parsed = uris.parse(text, PurePath(cwd), stated.source_kind, env)
        uris.check_endpoint(parsed, stated.endpoint)
        check_package(parsed)
    except StorageError as error:
        raise UsageError(f"{what}: {error.message}", hint=error.hint) from None
    if parsed.is_local and stated.digest is None and not os.path.exists(parsed.path):
        raise UsageError(
            f"there is no input at {parsed.shown!r}", hint="check the path; a trailing / copies a directory"
        )
    return parsed


def destination_of(what: str, stated: Upload | None, cwd: Path) -> uris.Uri | None:
    """Return where an output or a checkpoint is written to, None for nowhere; its places are still open."""
    if stated is None:
        return None
    addresses.check(stated.uri, what)
    return place_of(what, stated, cwd)


def place_of(what: str, stated: Upload, cwd: Path) -> uris.Uri:
    """Return where something is written to; raise `UsageError` where nothing can be, naming `what` it was for."""
    try:
        parsed = uris.parse(stated.uri, cwd, stated.source_kind)
        check_destination(parsed)
        uris.check_endpoint(parsed, stated.endpoint)
    except StorageError as error:
        raise UsageError(f"{what}: {error.message}", hint=error.hint) from None
    return parsed


def checked_part(name: str, path: str | None, source: uris.Uri | None) -> str | None:
    """Return what of an artifact an input is, as trees have it; of a local directory it must be there.

    `source` is None for an artifact that is here already.
    """
    if path is None:
        return None
    part = path.removesuffix("/")
    try:
        check_path(part)
    except StorageError as error:
        raise UsageError(f"--input {name}: {error.message}", hint="name a part of it: ,path=sub/dir") from None
    local = source is not None and source.scheme == "file" and os.path.isdir(source.path)
    if source is not None and local and not os.path.lexists(os.path.join(source.path, part)):
        raise UsageError(
            f"--input {name}: there is no {part!r} in {source.shown!r}", hint="`,path=` names a directory or file of it"
        )
    return part


def below(directory: str | None, cwd: Path, flag: str) -> str | None:
    """Return a directory that a flag names, which must be below the working directory."""
    if directory is None:
        return None
    parts = PurePath(directory).parts
    if not parts or PurePath(directory).is_absolute() or ".." in parts or parts == (".",):
        raise UsageError(
            f"{flag} {directory!r} is not a directory below {str(cwd)!r}", hint=f"give a relative one: {flag} out"
        )
    return str(PurePath(directory))


def directories_of(spec: JobSpec, cwd: Path) -> dict[str, str | None]:
    """Return the output and checkpoint of a job, which must neither hide each other nor stand where a file does."""
    output, checkpoint = below(spec.output, cwd, "--output"), below(spec.checkpoint, cwd, "--checkpoint")
    if output is not None and checkpoint is not None:
        one, other = PurePath(output), PurePath(checkpoint)
        if one.is_relative_to(other) or other.is_relative_to(one):
            message = f"--output {output!r} and --checkpoint {checkpoint!r} are one inside the other"
            raise UsageError(message, hint="give each a directory of its own: --output out --checkpoint ckpt")
    for flag, directory in (("--output", output), ("--checkpoint", checkpoint)):
        if directory is None or spec.git is not None:  # what a checkout holds is not known yet
            continue
        for each in (PurePath(directory), *PurePath(directory).parents):
            if os.path.exists(cwd / each) and not os.path.isdir(cwd / each):
                message = f"{flag} {directory!r}: {str(cwd / each)!r} is a file, and a directory is to stand there"
                raise UsageError(message, hint=f"give {flag} another name, or move the file away")
    return {"output": output, "checkpoint": checkpoint}


def requirements_of(file: str | None, cwd: Path) -> str | None:
    """Return the whole path of a requirements file, which must be there."""
    if file is None:
        return None
    path = cwd / file
    if not os.path.isfile(path):
        raise UsageError(f"there is no requirements file {str(path)!r}", hint="give --requirements a file that exists")
    return str(path)
