"""Why a job waits and how an attempt ended: two closed lists (DESIGN 3), with what a user should do next."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Waiting(StrEnum):
    """Why a job is pending."""

    STAGING = "staging"
    ENVIRONMENT = "environment"
    UPLOAD = "upload"
    DEPENDENCY = "dependency"
    RESOURCES = "resources"
    CREDITS = "credits"
    DISK = "disk"
    QUOTA = "quota"
    QUEUE = "queue"
    ARRAY_LIMIT = "array_limit"
    HELD = "held"
    BACKOFF = "backoff"
    STARTS_AT = "starts_at"


@dataclass(frozen=True, slots=True)
class WaitReason:
    """One answer to "why is it not running": the kind, its data and one sentence for people."""

    kind: Waiting
    sentence: str
    data: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"kind": str(self.kind), "sentence": self.sentence, "data": self.data}


class Ending(StrEnum):
    """How an attempt ended, apart from where its job is."""

    COMPLETED = "completed"
    STOPPED_BY_USER = "stopped_by_user"
    OUT_OF_CREDITS = "out_of_credits"
    COST_LIMIT = "cost_limit"
    TIMED_OUT = "timed_out"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    GPU_LOST = "gpu_lost"
    LAUNCH_FAILED = "launch_failed"
    NONZERO_EXIT = "nonzero_exit"
    SIGNALLED = "signalled"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    CUDA_OUT_OF_MEMORY = "cuda_out_of_memory"
    GPU_MEMORY_EXCEEDED = "gpu_memory_exceeded"
    STRAY_PROCESS = "stray_process"
    DISK_FULL = "disk_full"
    INPUT_FAILED = "input_failed"
    ENVIRONMENT_FAILED = "environment_failed"
    OUTPUT_FAILED = "output_failed"
    DEPENDENCY_FAILED = "dependency_failed"
    LOST = "lost"
    UNKILLABLE = "unkillable"


class Becomes(StrEnum):
    """Where an ending leads."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    PENDING = "pending"
    FAILED = "failed"


# How often an ending may send a job back to pending by itself; None is without limit.
REQUEUE_BUDGET: dict[Ending, int | None] = {
    Ending.PREEMPTED: None,
    Ending.INTERRUPTED: None,
    Ending.GPU_LOST: 2,
    Ending.LAUNCH_FAILED: 2,
}

_STOPPED = {Ending.STOPPED_BY_USER, Ending.OUT_OF_CREDITS, Ending.COST_LIMIT, Ending.TIMED_OUT}

# An ending that the job's own code brought about, which `--retries` may try again.
RETRYABLE = {
    Ending.NONZERO_EXIT,
    Ending.SIGNALLED,
    Ending.HOST_OUT_OF_MEMORY,
    Ending.CUDA_OUT_OF_MEMORY,
    Ending.LOST,
}


def stays_stopped(ending: Ending) -> bool:
    """Say whether a stop for this reason is the end of the job, and not of its attempt alone."""
    return ending in _STOPPED


def becomes(ending: Ending, *, requeues_spent: int, retries_left: int, requeue: str | None) -> Becomes:
    """Say where a job goes after `ending`.

    `requeues_spent` counts earlier attempts with this same ending; `requeue` is the job's own word, `never`
    keeps it from going back by itself. An interrupted job that may not be requeued is held, not failed:
    the caller tells that from PENDING with `requeue` None.
    """
    if ending is Ending.COMPLETED:
        return Becomes.SUCCEEDED
    if ending in _STOPPED:
        return Becomes.STOPPED
    if ending in REQUEUE_BUDGET:
        budget = REQUEUE_BUDGET[ending]
        if requeue == "never" and ending is not Ending.INTERRUPTED:
            return Becomes.FAILED
        return Becomes.PENDING if budget is None or requeues_spent < budget else Becomes.FAILED
    if ending in RETRYABLE and retries_left > 0:
        return Becomes.PENDING
    return Becomes.FAILED


def outcome_code(ending: Ending | None, exit_code: int | None, signal: int | None) -> int:
    """Return the code that `run`, `attach` and `wait` give (DESIGN 4): 0 only when the job succeeded."""
    if ending is Ending.COMPLETED:
        return 0
    if signal is not None:
        return 128 + signal
    return exit_code or 125


HINTS: dict[Ending, str] = {
    Ending.STOPPED_BY_USER: "`stoker start {job}` takes it up again",
    Ending.OUT_OF_CREDITS: "add credits, then `stoker start {job}`",
    Ending.COST_LIMIT: "raise the job's limit and `stoker start {job}`",
    Ending.TIMED_OUT: "give it more --time, or a --checkpoint and `stoker start {job}`",
    Ending.NONZERO_EXIT: "`stoker logs {job}` shows what it said",
    Ending.SIGNALLED: "`stoker logs {job}` shows what it said",
    Ending.HOST_OUT_OF_MEMORY: "ask for more --mem, or use a smaller batch",
    Ending.CUDA_OUT_OF_MEMORY: "use a smaller batch or a device with more memory",
    Ending.DISK_FULL: "free some space (`stoker doctor` says where), then `stoker start {job}`",
    Ending.INPUT_FAILED: "`stoker show {job}` names the input; mend it, then `stoker start {job}`",
    Ending.ENVIRONMENT_FAILED: "`stoker logs {job}` has the build's output",
    Ending.OUTPUT_FAILED: "the files are kept on this box; `stoker start {job}` tries again",
    Ending.LOST: "its watcher was killed, so its exit code is unknown; `stoker start {job}` runs it again",
    Ending.LAUNCH_FAILED: "`stoker doctor` checks what a launch needs",
    Ending.GPU_LOST: "`stoker gpu ls` shows the device",
    Ending.UNKILLABLE: "a process would not die; its device stays quarantined until it does",
    Ending.INTERRUPTED: "`stoker start {job}` runs it again",
}
