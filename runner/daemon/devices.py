"""The box's devices as the turn sees them: looked at off its thread and only when it matters, locked, and emptied."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from runner.core.errors import StokerError
from runner.core.job import Attempt, Ref
from runner.daemon.context import Context
from runner.daemon.loop import Loop
from runner.gpus import locks
from runner.gpus.reading import BoxReading, GpuReading, foreign_use
from runner.gpus.release import Again, Quarantine, Release, Released, next_step
from runner.service.desk import Change
from runner.state import jobs
from runner.telemetry import samples
from schedulers.resources import Device

FRESH_NS = 1_000_000_000
RELOOK_S = 2.0
SELF_CHECK_S = 60.0

log = logging.getLogger("stoker.devices")


class Probe(Protocol):
    """What looks at the box; `runner.gpus.nvml.Nvml` is one."""

    def read(self) -> BoxReading:
        """Return one look at every device; never raises."""
        ...


class Devices:
    """Readings, locks and releases. All methods belong to the turn's thread; a thread of its own asks the driver."""

    def __init__(self, context: Context, loop: Loop, probe: Probe) -> None:
        self.context = context
        self.loop = loop
        self.reading = BoxReading()
        self.quarantined: dict[str, str] = {}
        self._probe = probe
        self._looked_ns: int | None = None
        self._asked = threading.Event()
        self._looking = False
        self._descriptors: dict[str, int] = {}
        self._held: dict[str, tuple[int, Ref]] = {}
        self._releases: dict[str, Release] = {}
        self._relook_armed = False
        self._locked_by_others: set[str] = set()
        threading.Thread(target=self._look, name="devices", daemon=True).start()

    def model(self, uuid: str) -> str:
        """Return the model of a device ever seen."""
        return next((each.model for each in self.context.board.known if each.uuid == uuid), "")

    def refresh(self) -> None:
        """Ask for a look when a job waits for a device and the last look is old."""
        board = self.context.board
        if not board.known or not board.waits_for_devices():
            return
        age_ns = self.context.clock.monotonic_ns() - (self._looked_ns or 0)
        if self._looked_ns is None or age_ns > FRESH_NS:
            board.devices = tuple(
                Device(each.uuid, each.model, each.memory_bytes, each.index, each.holder or "being looked at")
                for each in board.devices
            )
            self.look()
        elif not self._relook_armed:
            # Something outside may leave a device at any time, and nothing tells us.
            self._relook_armed = True
            self.loop.after(RELOOK_S, self._relook)

    def look(self) -> None:
        """Ask for a look; its result arrives as a turn."""
        self._asked.set()

    def first_look(self) -> None:
        """Look once, now: before the runner serves."""
        with self.context.database.transaction():
            self._arrived(self.context.change(), self._probe.read())

    def lock(self, uuids: Iterable[str]) -> bool:
        """Take the box-wide locks of devices about to be given; all or none."""
        taken: dict[str, int] = {}
        for uuid in uuids:
            try:
                descriptor = locks.acquire(Path(self.context.config.gpu.lock_dir), uuid)
            except StokerError as error:
                log.warning("%s", error)
                descriptor = None
            if descriptor is None:
                self._locked_by_others.add(uuid)
                self._show()
                for other in taken.values():
                    os.close(other)
                return False
            taken[uuid] = descriptor
        for uuid, descriptor in taken.items():
            self._locked_by_others.discard(uuid)
            self._descriptors[uuid] = descriptor
            self.context.link.keep(uuid, descriptor)
        return True

    def keep_all(self) -> None:
        """Leave every lock with a spawner that has just come up."""
        for uuid, descriptor in self._descriptors.items():
            self.context.link.keep(uuid, descriptor)

    def usage(self, uuids: Sequence[str]) -> list[samples.GpuReading]:
        """Look at these devices now, from any thread: what they use, draw and have drawn."""
        found = {each.uuid: each for each in self._probe.read().devices if each.uuid in uuids and not each.error}
        return [
            samples.GpuReading(
                uuid=each.uuid,
                used_bytes=each.used_bytes,
                utilization_percent=each.utilization_percent,
                power_mw=each.power_mw,
                energy_mj=each.energy_mj,
            )
            for each in found.values()
        ]

    def descriptors(self, uuids: Iterable[str]) -> list[int]:
        """Return the lock descriptors that a watcher holds with us."""
        return [self._descriptors[uuid] for uuid in uuids if uuid in self._descriptors]

    def leave(self, change: Change, attempt: Attempt) -> None:
        """An attempt is over: its devices come back once they are empty by two looks."""
        for uuid in attempt.devices:
            self._held[uuid] = (attempt.id, attempt.ref)
            self._begin_release(uuid)
        if attempt.devices:
            self.look()
        del change

    def reload(self, held: dict[str, tuple[int, Ref]]) -> None:
        """Take up what the database says is given away: reopen the locks, empty what no attempt holds any more."""
        self._held = dict(held)
        for uuid in held:
            if uuid not in self._descriptors:
                self._reopen(uuid)
        for uuid in [uuid for uuid in self._descriptors if uuid not in held]:
            self._unlock(uuid)

    def recovered(self, running: set[int]) -> None:
        """Begin to empty the devices of attempts that ended before this runner came up."""
        for uuid, (attempt_id, _) in self._held.items():
            if attempt_id not in running:
                self._begin_release(uuid)
                self.look()

    def _reopen(self, uuid: str) -> None:
        descriptor = None
        with suppress(StokerError):
            descriptor = self.context.link.give(uuid)
        if descriptor is None:
            with suppress(StokerError):
                descriptor = locks.acquire(Path(self.context.config.gpu.lock_dir), uuid)
        if descriptor is not None:
            self._descriptors[uuid] = descriptor

    def _begin_release(self, uuid: str) -> None:
        self._releases.setdefault(
            uuid, Release(uuid, self.context.clock.monotonic_ns(), self.context.config.gpu.free_below_bytes)
        )

    def _relook(self) -> None:
        self._relook_armed = False
        if self.context.board.waits_for_devices():
            self._locked_by_others.clear()
            self.look()

    def _look(self) -> None:
        """The thread that asks the driver: one look a request, however many asked meanwhile."""
        while True:
            self._asked.wait()
            self._asked.clear()
            reading = self._probe.read()
            self.context.desk.put(partial(self._arrived, reading=reading))

    def _arrived(self, change: Change, reading: BoxReading) -> None:
        self.reading = reading
        self._looked_ns = self.context.clock.monotonic_ns()
        if reading.error:
            log.warning("%s", reading.error)
        self._remember(change)
        for release in list(self._releases.values()):
            self._step(change, release)
        self._show()

    def _remember(self, change: Change) -> None:
        """Keep every device ever seen: a job that fits one of them is not refused while it is away."""
        known = {each.uuid for each in self.context.board.known}
        for each in self.reading.devices:
            if each.uuid not in known and not each.error:
                change.connection.execute(
                    "INSERT INTO devices (uuid, model, memory_bytes, first_seen_us, last_seen_us)"
                    " VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (uuid) DO UPDATE SET last_seen_us = excluded.last_seen_us",
                    (each.uuid, each.model, each.memory_bytes, change.now_us, change.now_us),
                )
        rows = change.connection.execute(
            "SELECT uuid, model, memory_bytes, quarantine FROM devices ORDER BY first_seen_us, uuid"
        )
        excluded = set(self.context.config.gpu.exclude)
        seen = rows.fetchall()
        self.quarantined = {uuid: reason for uuid, _, _, reason in seen if reason}
        self.context.board.known = tuple(
            Device(uuid, model, memory) for uuid, model, memory, _ in seen if uuid not in excluded
        )

    def _step(self, change: Change, release: Release) -> None:
        uuid = release.uuid
        reading = self.reading.device(uuid)
        alive = {process.pid for process in (reading.processes if reading else None) or () if _alive(process.pid)}
        verdict = next_step(release, reading, alive, self.context.clock.monotonic_ns())
        match verdict:
            case Again():
                self._releases[uuid] = verdict.release
                self.loop.at(verdict.at_ns, self.look)
            case Released():
                del self._releases[uuid]
                self._free(change, uuid)
            case Quarantine():
                del self._releases[uuid]
                self._set_quarantine(change, uuid, verdict.reason)
                self.loop.after(SELF_CHECK_S, lambda: self._self_check(uuid))

    def _self_check(self, uuid: str) -> None:
        self._begin_release(uuid)
        self.look()

    def _free(self, change: Change, uuid: str) -> None:
        attempt_id, _ = self._held.pop(uuid, (None, None))
        if attempt_id is not None:
            jobs.release_devices(change.connection, attempt_id, [uuid], change.now_us)
        if uuid in self.quarantined:
            self._set_quarantine(change, uuid, None)
        self.context.board.release_device(uuid)
        self._unlock(uuid)

    def _set_quarantine(self, change: Change, uuid: str, reason: str | None) -> None:
        change.connection.execute("UPDATE devices SET quarantine = ? WHERE uuid = ?", (reason, uuid))
        jobs.note(
            change.connection,
            change.now_us,
            "quarantined" if reason else "device_back",
            None,
            {"uuid": uuid, "reason": reason},
        )
        if reason:
            self.quarantined[uuid] = reason
            log.warning("device %s is quarantined: %s", uuid, reason)
        else:
            self.quarantined.pop(uuid, None)

    def _unlock(self, uuid: str) -> None:
        descriptor = self._descriptors.pop(uuid, None)
        if descriptor is not None:
            with suppress(StokerError):
                self.context.link.drop(uuid)
            os.close(descriptor)

    def _show(self) -> None:
        """Put the devices on the board, each with who keeps it from being given."""
        excluded = set(self.context.config.gpu.exclude)
        self.context.board.devices = tuple(
            Device(each.uuid, each.model, each.memory_bytes, each.index, self._outside(each))
            for each in self.reading.devices
            if each.uuid not in excluded
        )

    def _outside(self, reading: GpuReading) -> str | None:
        if reading.uuid in self.quarantined:
            return f"quarantined: {self.quarantined[reading.uuid]}"
        if reading.error:
            return f"unreadable: {reading.error}"
        if reading.uuid in self._held or self.context.board.holder(reading.uuid):
            held = self._held.get(reading.uuid)
            return f"job {held[1].label}, emptying" if held and reading.uuid in self._releases else None
        if reading.uuid in self._locked_by_others:
            return "another runner of this box"
        use = foreign_use(reading, frozenset(), self.context.config.gpu.free_below_bytes)
        if not use.used:
            return None
        return ", ".join(process_name(each.pid) for each in use.holders) or "memory that no process explains"


def process_name(pid: int) -> str:
    """Return a process as a person knows it: `pid 812 (ollama)`."""
    try:
        return f"pid {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"pid {pid}"


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


