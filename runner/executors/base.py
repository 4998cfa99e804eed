"""What every executor offers the daemon: launch one attempt, command it, ask the disk about it, clear up after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from runner.core.plan import LaunchPlan
from runner.executors.records import FinalRecord, RankExit, StartRecord

Lock = Literal["held", "free", "absent"]
Fate = Literal["alive", "finished", "lost", "never_ran"]
Environments = Sequence[Mapping[str, str]]
NO_KEYS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A control directory whose record is locked, and the plan as JSON; launch or abandon closes both descriptors."""

    control_dir: Path
    plan: LaunchPlan
    document: str
    record_fd: int
    fifo_fd: int


@dataclass(frozen=True, slots=True)
class Launched:
    """A watcher that runs; the caller closes `pidfd`, which becomes readable when the watcher ends."""

    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """All the disk knows of an attempt at one look; `beat_ns` is monotonic, of the boot in `start`.

    `newer` says that a later release wrote what we cannot read: it may well have run.
    """

    control_dir: Path
    lock: Lock
    start: StartRecord | None
    ranks: tuple[RankExit | None, ...]
    final: FinalRecord | None
    beat_ns: int | None
    newer: bool = False

    @property
    def fate(self) -> Fate:
        """What became of it. A watcher with an undead tree is alive; `never_ran` may safely be launched again."""
        if self.final is not None and not self.final.undead:
            return "finished"
        if self.lock == "held":
            return "alive"
        if self.final is not None:
            return "finished"
        return "lost" if self.start is not None or self.newer else "never_ran"


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep left: `empty` when nothing of the attempt is alive, `unprovable` when something may be ours."""

    empty: bool
    killed: int
    unprovable: bool


class Executor(Protocol):
    """One way to run an attempt. Every method may be repeated after a crash of the runner."""

    def prepare(self, attempt_id: int, plan: LaunchPlan) -> Prepared:
        """Make the attempt's control directory and take its lock; nothing runs yet."""
        ...

    def launch(
        self,
        prepared: Prepared,
        environments: Environments,
        device_lock_fds: Sequence[int] = (),
        key_files: Mapping[str, str] = NO_KEYS,
    ) -> Launched:
        """Hand the attempt to a watcher of its own; one environment a worker. Closes what prepare opened.

        `key_files` is the content of each file below the plan's `keys_dir`.
        """
        ...

    def abandon(self, prepared: Prepared) -> None:
        """Close what prepare opened, for an attempt that will not be launched."""
        ...

    def stop(self, control_dir: Path, number: int, grace_s: float) -> bool:
        """Signal every process, SIGKILL after the grace; False when no watcher is there to do it."""
        ...

    def kill(self, control_dir: Path) -> bool:
        """SIGKILL the tree now; False when no watcher is there to do it."""
        ...

    def look(self, control_dir: Path) -> AttemptRecord:
        """Ask the disk: is the lock held, what was written.

        Right after a watcher was killed while it forked, a worker on its way out may hold the lock for some instants
        more: an `alive` whose watcher is gone is looked at again.
        """
        ...

    def clear(self, control_dir: Path) -> None:
        """Remove the control directory of an attempt that is ingested, its logs taken away."""
        ...

    def trouble(self, control_dir: Path) -> str:
        """Return what a watcher said that could not begin; "" when nothing."""
        ...

    def reopen(self, record: AttemptRecord) -> int | None:
        """Return a pidfd of the attempt's watcher, None when it is gone; the caller closes it."""
        ...

    def sweep(self, record: AttemptRecord) -> Swept:
        """Kill what a dead watcher left, as far as it is provably ours."""
        ...
