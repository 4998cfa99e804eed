"""What only the running daemon knows and readers ask for: readiness, devices, progress. Filled in by bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.core.job import Ref
from runner.core.reasons import WaitReason
from schedulers.resources import Inventory


@dataclass(frozen=True, slots=True)
class LiveFacts:
    """Questions to the daemon. Each answer is a snapshot; each may be asked from any thread."""

    preparing: Callable[[int], WaitReason | None]
    saving: Callable[[Ref], WaitReason | None]
    making: Callable[[int], WaitReason | None]
    explain: Callable[[int], WaitReason | None]
    inventory: Callable[[], Inventory]
    devices: Callable[[], dict[str, Any]]
    admission: Callable[[], str]
    stalled: Callable[[], str]
    enforced: Callable[[], dict[str, bool]]
    ways: Callable[[], dict[str, bool]]
