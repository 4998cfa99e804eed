"""The numbered steps between which a crash must change nothing, and the means to crash at each: see tests/faults."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from enum import StrEnum


class Step(StrEnum):
    """Where the runner has got to. A test kills it at every one and expects the same end (S1)."""

    SUBMIT_TAKEN = "submit-1"  # read from the socket, nothing written
    SUBMIT_WRITTEN = "submit-2"  # in the open transaction
    SUBMIT_COMMITTED = "submit-3"  # durable, not answered
    SUBMIT_ANSWERED = "submit-4"
    LAUNCH_WRITTEN = "launch-1"  # the attempt is in the open transaction
    LAUNCH_COMMITTED = "launch-2"  # durable, nothing done
    LAUNCH_DIRECTORIES = "launch-3"  # the job's directories are there
    LAUNCH_PREPARED = "launch-4"  # the control directory is there, its record locked
    LAUNCH_SPAWNED = "launch-5"  # the watcher is forked, its start not seen
    LAUNCH_BEGUN = "launch-6"  # its start is in the open transaction
    STOP_COMMITTED = "stop-1"  # the stop is durable, the watcher not told
    STOP_SENT = "stop-2"
    FINISH_READ = "finish-1"  # the last record is read, nothing written
    FINISH_WRITTEN = "finish-2"  # end and bill are in the open transaction
    FINISH_COMMITTED = "finish-3"  # durable, the control directory still there
    FINISH_MOVED = "finish-4"  # the log is moved away, the control directory still there
    PUBLISH_BEGUN = "publish-1"  # the element is saving, nothing in the store
    PUBLISH_STORED = "publish-2"  # the tree is in the store, no row leads to it
    PUBLISH_WRITTEN = "publish-3"  # the artifact is in the open transaction
    PUBLISH_COMMITTED = "publish-4"
    UPLOAD_DONE = "upload-1"  # the output is where its job wants it, no row says so
    MIRROR_COPIED = "mirror-1"  # the checkpoint is in the store, nothing of it elsewhere
    MIRROR_SENT = "mirror-2"  # all of it is at the place of its job, no note there says so
    MIRROR_NOTED = "mirror-3"  # it is the newest set there, no row says so
    MIRROR_WRITTEN = "mirror-4"  # the row is in the open transaction
    RESTORE_FETCHED = "restore-1"  # a checkpoint is in the store, its job has none
    RESTORE_COPIED = "restore-2"  # its copy is beside the directories of jobs
    RESTORE_PLACED = "restore-3"  # its job has it, no row says so


def pass_by(step: Step) -> None:
    """Go on."""


def stepper(environ: Mapping[str, str]) -> Callable[[Step], None]:
    """Return what is called at each step: nothing but where STOKER_CRASH_AT names a directory.

    There a file of the step's name is taken away and the process kills itself: once, so that its successor gets past.
    """
    directory = environ.get("STOKER_CRASH_AT")
    if not directory:
        return pass_by

    def crash(step: Step) -> None:
        try:
            os.unlink(f"{directory}/{step}")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return crash
