"""The box's devices as the turn sees them: looked at off its thread and only when it matters, locked, and emptied.

A device that this runner has just emptied goes to the next job at once. Any other is locked first and then looked at
twice: whoever had it before us may have died and left something on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from runner.core.job import Attempt, Ref
from runner.core.lifecycle import State
from runner.core.reasons import Ending
from runner.daemon.context import Context
from runner.daemon.device_locks import DeviceLocks
from runner.daemon.gpu_use import GpuUse, process_name
from runner.daemon.loop import Loop
from runner.executors.marks import belongs
from runner.gpus.reading import BoxReading, GpuReading, foreign_use
from runner.gpus.release import APART_NS, Again, Quarantine, Release, Released, empty_look, next_step
from runner.service.desk import Change
from runner.service.stop import stop_element
from runner.state import devices, jobs
from runner.telemetry import samples
from schedulers.resources import Device

FRESH_NS = 1_000_000_000
LOST_LOOKS = 2
ANSWER_NS = 5_000_000_000

log = logging.getLogger("stoker.devices")

Claim = Literal["ours", "looking", "taken"]


class Probe(Protocol):
    """What looks at the box; `runner.gpus.nvml.Nvml` is one."""

    def read(self) -> BoxReading:
        """Return one look at every device; never raises."""
        ...

    def reopen(self) -> None:
        """Ask the driver anew which devices there are, at the next look."""
        ...


class Devices:
    """Readings, claims and releases. Methods belong to the turn's thread but `usage`; a thread of its own looks."""

    def __init__(self, context: Context, loop: Loop, probe: Probe) -> None:
        self.context = context
        self.loop = loop
        self.locks = DeviceLocks(context)
        self.reading = BoxReading()
        self.quarantined: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self._use = GpuUse(context)
        self._probe = probe
        self._looked_ns = 0
        self._asked = threading.Event()
        self._relook_armed = self._watch_armed = False
        # Devices of attempts that are over, and how far each is emptied.
        self._left: dict[str, tuple[int, Ref]] = {}
        self._releases: dict[str, Release] = {}
        # Devices locked for a job that is about to start, and the looks at them so far.
        self._proofs: dict[str, Release] = {}
        self._wanted: set[str] = set()
        self._locked_by_others: dict[str, str] = {}
        self._lost: dict[str, int] = {}
        self._want_look: dict[int, int] = {}
        threading.Thread(target=self._run, name="devices", daemon=True).start()

    def model(self, uuid: str) -> str:
        """Return the model of a device ever seen."""
        return next((each.model for each in self.context.board.known if each.uuid == uuid), "")

    def look(self) -> None:
        """Ask for a look; its result arrives as a turn."""
        self._asked.set()

    def first_look(self) -> None:
        """Look once, now: before the runner serves."""
        looked_ns = self.context.clock.monotonic_ns()
        with self.context.database.transaction():
            self._arrived(self.context.change(), self._probe.read(), looked_ns)

    def usage(self, uuids: Sequence[str]) -> list[samples.GpuReading]:
        """Return what devices use, draw and have drawn, at most a second ago. May be called from any thread."""
        reading = self.reading
        if self.context.clock.monotonic_ns() - self._looked_ns > FRESH_NS:
            reading = self._look()
        return [
            samples.GpuReading(
                uuid=each.uuid,
                used_bytes=each.used_bytes,
                utilization_percent=each.utilization_percent,
                power_mw=each.power_mw,
                energy_mj=each.energy_mj,
            )
            for each in reading.devices
            if each.uuid in uuids and not each.error
        ]

    def refresh(self) -> None:
        """While a job waits for a device, look now and then: nothing tells us that somebody outside has left one."""
        board = self.context.board
        if self._relook_armed or not board.known or not board.waits_for_devices():
            return
        if self.context.clock.monotonic_ns() - self._looked_ns > FRESH_NS:
            self.look()
        self._relook_armed = True
        self.loop.after(self.context.config.gpu.look_every_s, self._relook)

    def claim(self, uuids: Sequence[str]) -> Claim:
        """Take devices for a job, all or none: `ours` may be given now; `looking` brings a turn once they were seen.

        `taken` by another runner: the board says so from now on, and the decision is to be made again.
        """
        missing = [uuid for uuid in uuids if uuid not in self.locks]
        refused = self.locks.take(missing)
        if refused:
            self._locked_by_others |= refused
            self._show()
            return "taken"
        self._wanted.update(uuids)
        for uuid in missing:
            self._proofs[uuid] = self._fresh(uuid)
            self.look()
        return "looking" if any(uuid in self._proofs for uuid in uuids) else "ours"

    def given(self, attempt: Attempt) -> None:
        """An attempt was given devices that were claimed."""
        if attempt.devices:
            self._use.begin(attempt, self.reading)

    def settle(self) -> None:
        """After the decisions of a turn: let go of what was claimed or emptied and nobody takes; watch what runs."""
        board = self.context.board
        for uuid in self.locks:
            if uuid not in self._wanted and uuid not in self._left and board.holder(uuid) is None:
                self.locks.drop(uuid)
                self._proofs.pop(uuid, None)
        self._wanted.clear()
        if not self._watch_armed and self._runs_on_devices():
            self._watch_armed = True
            self.loop.after(self.context.config.metrics.interval_s, self._watch)

    def lost(self, uuids: Iterable[str]) -> bool:
        """Say whether the last look found one of these devices gone."""
        return any(uuid in self._lost for uuid in uuids)

    def look_before_end(self, attempt: Attempt, end_ns: int) -> bool:
        """See to it that an attempt's devices were looked at after it ended; False when it is to be looked at again."""
        if not attempt.devices or self._looked_ns > end_ns:
            return True
        now_ns = self.context.clock.monotonic_ns()
        asked_ns = self._want_look.setdefault(attempt.id, now_ns)
        if now_ns - asked_ns >= ANSWER_NS:  # the driver hangs, and an end must be written down all the same
            del self._want_look[attempt.id]
            return True
        self.loop.at(asked_ns + ANSWER_NS, lambda: self.loop.look_at(attempt.id))
        self.look()
        return False

    def leave(self, attempt: Attempt) -> None:
        """An attempt is over: its devices come back once they are empty by two looks."""
        for uuid in attempt.devices:
            self._left[uuid] = (attempt.id, attempt.ref)
            self._releases[uuid] = self._fresh(uuid)
            self._lost.pop(uuid, None)
        if attempt.devices:
            self._use.end(attempt.id, self.context.clock.monotonic_ns())
            self.look()

    def reload(self, held: dict[str, tuple[int, Ref]], running: dict[int, Attempt]) -> None:
        """Take up what the database says is given away: hold the locks again, empty what no attempt has any more."""
        self._left = {uuid: holder for uuid, holder in held.items() if holder[0] not in running}
        self._releases = {uuid: self._fresh(uuid) for uuid in self._left}
        self._proofs.clear()
        self._wanted.clear()
        self._use.reload(attempt for attempt in running.values() if attempt.devices)
        for uuid, (attempt_id, _) in held.items():
            self.locks.regain(uuid, attempt_id)
        self.locks.drop_all_but(held)
        if self._left:
            self.look()
        self._show()

    def _fresh(self, uuid: str) -> Release:
        gpu = self.context.config.gpu
        now_ns = self.context.clock.monotonic_ns()
        return Release(uuid, now_ns, gpu.free_below_bytes, patience_ns=int(gpu.quarantine_after_s * 1e9))

    def _runs_on_devices(self) -> bool:
        return any(each.allocation.devices for each in self.context.board.running.values())

    def _relook(self) -> None:
        self._relook_armed = False
        if self.context.board.waits_for_devices():
            self._locked_by_others.clear()
            self.look()

    def _watch(self) -> None:
        self._watch_armed = False
        if self._runs_on_devices():
            self.look()

    def _run(self) -> None:
        """The thread that asks the driver: one look a request, however many asked meanwhile."""
        while True:
            self._asked.wait()
            self._asked.clear()
            self._look()

    def _look(self) -> BoxReading:
        looked_ns = self.context.clock.monotonic_ns()
        reading = self._probe.read()
        self.context.desk.put(partial(self._arrived, reading=reading, looked_ns=looked_ns))
        return reading

    def _arrived(self, change: Change, reading: BoxReading, looked_ns: int) -> None:
        if looked_ns < self._looked_ns:  # two threads looked at once, and the later look arrived first
            return
        if reading.error and reading.error != self.reading.error:
            log.warning("%s", reading.error)
        self.reading = reading
        self._looked_ns = looked_ns
        self._remember(change)
        self._use.looked(change, reading, looked_ns)
        self._mind_running(change)
        for release in list(self._releases.values()):
            self._step(change, release)
        for proof in list(self._proofs.values()):
            self._prove(proof)
        for attempt_id in self._want_look:
            self.loop.look_at(attempt_id)
        self._want_look.clear()
        self._show()

    def _remember(self, change: Change) -> None:
        """Keep every device ever seen: a job that fits one of them is not refused while it is away."""
        known = {each.uuid for each in self.context.board.known}
        for each in self.reading.devices:
            if each.uuid not in known and not each.error and not self._is_excluded(each):
                devices.remember(change.connection, each.uuid, each.model, each.memory_bytes, change.now_us)
        rows = devices.ever_seen(change.connection)
        # A GPU that was cut into instances is no device any more.
        away = set(self.context.config.gpu.exclude) | {each.mig_parent for each in self.reading.devices}
        self.quarantined = {uuid: reason for uuid, _, _, reason in rows if reason}
        self.context.board.known = tuple(
            Device(uuid, model, memory) for uuid, model, memory, _ in rows if uuid not in away
        )

    def _mind_running(self, change: Change) -> None:
        """End attempts whose device went away: not there, or lost by the driver's own word, in two looks in a row."""
        for running in list(self.context.board.running.values()):
            for uuid in running.allocation.devices:
                gone = self._is_gone(uuid)
                self._lost[uuid] = self._lost.get(uuid, 0) + 1 if gone else 0
                if not gone:
                    del self._lost[uuid]
                elif self._lost[uuid] < LOST_LOOKS:
                    self.loop.at(self.context.clock.monotonic_ns() + APART_NS, self.look)
                elif running.state in {State.STARTING, State.RUNNING}:
                    self._end_lost(change, running.ref, uuid)
                    break

    def _is_gone(self, uuid: str) -> bool:
        device = self.reading.device(uuid)
        if device is not None:
            return device.lost
        # A driver that does not answer at all says nothing about a device.
        return bool(self.reading.driver_version)

    def _end_lost(self, change: Change, ref: Ref, uuid: str) -> None:
        element = jobs.element(change.connection, ref)
        if element is not None and element.state in {State.STARTING, State.RUNNING}:
            log.warning("job %s is stopped: its device %s went away", ref.label, uuid)
            self._set_quarantine(change, uuid, "it went away while a job ran on it")
            stop_element(change, element, Ending.GPU_LOST, None)

    def _step(self, change: Change, release: Release) -> None:
        uuid = release.uuid
        if self._looked_ns < release.since_ns:  # the look began before the job's end was known
            self.look()
            return
        reading = self.reading.device(uuid)
        verdict = next_step(release, reading, self._others_on(change, uuid, reading), self.context.clock.monotonic_ns())
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
                self.loop.after(self.context.config.gpu.quarantine_after_s, lambda: self._self_check(uuid))

    def _others_on(self, change: Change, uuid: str, reading: GpuReading | None) -> set[int]:
        """Return the pids on a device that are alive and not of the attempt that left it."""
        pids = {process.pid for process in (reading.processes if reading else None) or ()}
        if not pids:
            return pids
        attempt_id, _ = self._left[uuid]
        token, group = jobs.marks_of(change.connection, attempt_id)
        return {pid for pid in pids if Path(f"/proc/{pid}").exists() and not belongs(pid, token, group)}

    def _prove(self, proof: Release) -> None:
        """Judge one look at a device that we have locked and not emptied ourselves."""
        uuid = proof.uuid
        reading = self.reading.device(uuid)
        if self._looked_ns < proof.since_ns:  # the look began before the device was locked
            self.look()
            return
        if reading is None or foreign_use(reading, frozenset(), proof.free_below_bytes).used:
            del self._proofs[uuid]
            self.locks.drop(uuid)
            return
        verdict = empty_look(proof, self.context.clock.monotonic_ns())
        if isinstance(verdict, Again):
            self._proofs[uuid] = verdict.release
            self.loop.at(verdict.at_ns, self.look)
        else:
            del self._proofs[uuid]

    def _self_check(self, uuid: str) -> None:
        if uuid in self._left:
            self._releases[uuid] = self._fresh(uuid)
            self._probe.reopen()
            self.look()

    def _free(self, change: Change, uuid: str) -> None:
        """Close a device's allocation; its lock stays ours until the turn has decided who takes it next."""
        attempt_id, _ = self._left.pop(uuid)
        jobs.release_devices(change.connection, attempt_id, [uuid], change.now_us)
        if uuid in self.quarantined:
            self._set_quarantine(change, uuid, None)
        self.context.board.release_device(uuid)

    def _set_quarantine(self, change: Change, uuid: str, reason: str | None) -> None:
        devices.set_quarantine(change.connection, uuid, reason)
        kind = "quarantined" if reason else "device_back"
        jobs.note(change.connection, change.now_us, kind, None, {"uuid": uuid, "reason": reason})
        if reason:
            self.quarantined[uuid] = reason
            log.warning("device %s is quarantined: %s", uuid, reason)
        else:
            self.quarantined.pop(uuid, None)

    def _show(self) -> None:
        """Put the devices on the board that could be given away, each with who keeps it from that."""
        here = {each.uuid: each for each in self.reading.devices if not self._is_excluded(each)}
        self.absent = {each.uuid: "not there now" for each in self.context.board.known if each.uuid not in here}
        self.absent |= {uuid: f"unreadable: {each.error}" for uuid, each in here.items() if each.error}
        self.absent |= {uuid: f"quarantined: {why}" for uuid, why in self.quarantined.items()}
        self.context.board.devices = tuple(
            Device(each.uuid, each.model, each.memory_bytes, each.index, self._outside(each))
            for each in here.values()
            if each.uuid not in self.absent
        )

    def _is_excluded(self, reading: GpuReading) -> bool:
        excluded = self.context.config.gpu.exclude
        return reading.uuid in excluded or reading.mig_parent in excluded

    def _outside(self, reading: GpuReading) -> str | None:
        """Return who keeps a device from being given, other than a running job."""
        uuid = reading.uuid
        if uuid in self._left:
            return f"job {self._left[uuid][1].label} (emptying)"
        if self.context.board.holder(uuid) is not None:
            return None
        if uuid in self._locked_by_others:
            return self._locked_by_others[uuid]
        use = foreign_use(reading, frozenset(), self.context.config.gpu.free_below_bytes)
        if not use.used:
            return None
        return ", ".join(process_name(each.pid) for each in use.holders) or "memory that no process explains"
