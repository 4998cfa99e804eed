"""What the scheduler says. Decisions are values; the runner applies them."""

from __future__ import annotations

from dataclasses import dataclass

from schedulers.resources import Allocation


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job waits: the kind is a word of the design, `what` a sentence's worth of data.

    kind is one of `resources`, `queue`, `array_limit`, `quota`. `lacks` names what is missing ("2 GPUs",
    "1.5 cores"), `holders` who has it, `behind` the waiting head that this job may not pass (0: none).
    """

    kind: str
    lacks: str = ""
    holders: tuple[str, ...] = ()
    behind: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Start one more element of `job_id` on `allocation`; `why` tells how the devices were chosen."""

    job_id: int
    allocation: Allocation
    why: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """`job_id` stays pending for `reason`."""

    job_id: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Preempt:
    """Take `attempt_id` off its devices for `job_id`."""

    attempt_id: int
    job_id: int


Decision = Start | Wait | Preempt
