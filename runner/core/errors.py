"""The error tree: every refusal a user can meet, its exit code and its HTTP status.

    StokerError
    ├── UsageError        2  bad input: a flag, a document, a missing local path
    ├── NotFound          3  a job, artifact, key or account that is not there, or not yours
    ├── Refused           4  permission, another uid, uid 0
    ├── Conflict          5  wrong state, name taken, same key with another body
    ├── NeverFits         6  more than every device ever seen on this box
    ├── NoRunner          7  the runner cannot be reached or may not start
    ├── Unavailable       1  the runner is there but cannot take this now (full disk)
    ├── WaitTimedOut    124  `wait --timeout` ran out
    └── Bug              70  the runner met a fault of its own

The client imports this module on every command: standard library only.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class StokerError(Exception):
    """What went wrong (`message`), to which job it happened, and what to do next (`hint`)."""

    code = "error"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def document(self) -> dict[str, Any]:
        """Return the problem+json document (RFC 9457) that crosses the wire."""
        return {
            "type": "about:blank",
            "title": self.message,
            "status": self.http_status,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }


class UsageError(StokerError):
    """The request itself is wrong: nothing was queued."""

    code = "usage"
    exit_code = 2
    http_status = 400


class NotFound(StokerError):
    """No such thing, or none that the caller may see."""

    code = "not_found"
    exit_code = 3
    http_status = 404


class Refused(StokerError):
    """The caller may not do this."""

    code = "refused"
    exit_code = 4
    http_status = 403


class Conflict(StokerError):
    """The thing is in a state that does not allow it."""

    code = "conflict"
    exit_code = 5
    http_status = 409


class NeverFits(StokerError):
    """No device that this box ever had could run the job."""

    code = "never_fits"
    exit_code = 6
    http_status = 422


class NoRunner(StokerError):
    """The runner is not there and was not started."""

    code = "no_runner"
    exit_code = 7
    http_status = 503


class Unavailable(StokerError):
    """The runner lives but cannot take this now."""

    code = "unavailable"
    exit_code = 1
    http_status = 503


class WaitTimedOut(StokerError):
    """The wait ran out before the job did."""

    code = "wait_timed_out"
    exit_code = 124
    http_status = 504


class Bug(StokerError):
    """The runner met a fault of its own; the hint names the report."""

    code = "bug"
    exit_code = EXIT_BUG


KINDS: dict[str, type[StokerError]] = {
    kind.code: kind
    for kind in (UsageError, NotFound, Refused, Conflict, NeverFits, NoRunner, Unavailable, WaitTimedOut, Bug)
}


def from_document(document: dict[str, Any]) -> StokerError:
    """Rebuild the error that a runner sent; an unknown code stays a plain `StokerError`."""
    kind = KINDS.get(str(document.get("code")), StokerError)
    error = kind(str(document.get("message") or document.get("title") or "the runner refused"))
    error.code = str(document.get("code") or error.code)
    error.hint = str(document.get("hint") or "")
    details = document.get("details")
    error.details = details if isinstance(details, dict) else {}
    return error
