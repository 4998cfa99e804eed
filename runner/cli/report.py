"""The report of a bug of ours: a file with the traceback instead of a traceback on the terminal."""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback

from runner.cli.out import Out
from runner.cli.verbs import ALIASES, VERBS, VERSION
from runner.core.errors import StokerError
from runner.paths import Paths, state_dir


def report_bug(error: Exception, out: Out, code: int) -> int:
    """Write the report, say where it is, and return `code`."""
    trace = "".join(traceback.format_exception(error))
    # Only words of ours: a value or the job's command may hold a secret.
    known = {*VERBS, *ALIASES, *(name for verb in VERBS.values() for flag in verb.flags for name in flag.names)}
    words = " ".join(word.split("=")[0] for word in sys.argv[1:] if word.split("=")[0] in known)
    text = f"stoker {VERSION}\npython {platform.python_version()} on {platform.platform()}\nwords: {words}\n\n{trace}"
    try:
        folder = Paths(state_dir(os.environ)).reports_dir
        os.makedirs(os.path.dirname(os.path.dirname(folder)), exist_ok=True)
        for path in (os.path.dirname(folder), folder):
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
        path = f"{folder}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.txt"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        where = f"the report is in {path}; please send it to us"
    except (OSError, StokerError):
        where = "the report could not be written; --debug shows it"
    out.error(f"this is a bug of stoker's: {type(error).__name__}", where)
    if out.debug or "--debug" in sys.argv or os.environ.get("STOKER_DEBUG") == "1":
        for line in trace.splitlines():
            out.say(line)
    return code
