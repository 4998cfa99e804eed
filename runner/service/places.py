"""`--output DIR` and `--checkpoint DIR` where mounts are not permitted: DIR is a link to the job's own directory.

The link is made when the job is accepted, so that no two jobs in one working directory ever share one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from runner.core.errors import UsageError
from runner.core.spec import JobSpec

_DIGITS_MAX = 18
_HINT = "name one that does not exist yet, or have the job write to {variable}"


def reserve(
    spec: JobSpec, job_id: int, *, jobs_dir: str, is_array: bool, unfinished: Callable[[int], JobSpec | None]
) -> None:
    """Make the links of a new job. Refuse a DIR that is there, but for a link that no job needs.

    `unfinished` returns what a job asks for that is not over. A link may also be of a job that was never written down:
    its transaction was rolled back, or its runner killed, and its number went to this job or another.
    """
    wanted = [
        ("--output", spec.output, f"{jobs_dir}/{job_id}/attempt-1/output", "STOKER_OUTPUT_DIR"),
        ("--checkpoint", spec.checkpoint, f"{jobs_dir}/{job_id}/checkpoint", "STOKER_CHECKPOINT_DIR"),
    ]
    made: list[str] = []
    try:
        for flag, directory, target, variable in wanted:
            if directory is None:
                continue
            hint = _HINT.format(variable="$" + variable)
            if is_array:
                raise UsageError(
                    f"this runner may not mount, and the elements of an array cannot share {flag}", hint=hint
                )
            path = os.path.join(spec.cwd or "/", directory)
            holder = _holder(path, jobs_dir)
            if holder is not None and holder != job_id and _claims(unfinished(holder), path):
                raise UsageError(f"job {holder} has {flag} {directory!r} in this directory", hint=hint)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if holder is not None and path not in made:
                    os.unlink(path)
                os.symlink(target, path)
            except FileExistsError:
                message = f"{flag} {directory!r} exists, and this runner may not mount over it"
                raise UsageError(message, hint=hint) from None
            except OSError as error:
                raise UsageError(f"{flag} {directory!r} cannot be made: {error.strerror}", hint=hint) from None
            made.append(path)
    except UsageError:
        for path in made:
            os.unlink(path)
        raise


def point(path: str, target: str, job_dir: str) -> None:
    """Let the link of a job lead to its next attempt. FileExistsError where something else stands there now."""
    if os.path.islink(path) and os.readlink(path).startswith(job_dir + "/"):
        temporary = f"{path}.{os.path.basename(job_dir)}.tmp"
        with suppress(FileNotFoundError):  # a runner that was killed here left it
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, path)
    else:
        os.symlink(target, path)


def _holder(path: str, jobs_dir: str) -> int | None:
    """Return the job that a link of ours belongs to."""
    if not os.path.islink(path):
        return None
    inside = os.readlink(path).removeprefix(jobs_dir + "/")
    number = inside.partition("/")[0]
    is_number = number.isascii() and number.isdecimal() and len(number) <= _DIGITS_MAX
    return int(number) if is_number and not inside.startswith("/") else None


def _claims(spec: JobSpec | None, path: str) -> bool:
    """Say whether a job that is not over asks for `path`."""
    if spec is None:
        return False
    named = [os.path.join(spec.cwd or "/", each) for each in (spec.output, spec.checkpoint) if each is not None]
    return _place(path) in map(_place, named)


def _place(path: str) -> str:
    """Return the one spelling of a path whose last part may be a link that is meant itself."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
