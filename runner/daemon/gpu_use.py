"""What running attempts make of their devices, from looks at them: their processes, their peak memory, their energy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from runner.core.job import Attempt
from runner.daemon.context import Context
from runner.executors.marks import belongs
from runner.gpus.reading import BoxReading
from runner.identity.users import user_name
from runner.service.desk import Change
from runner.state import jobs, measurements


@dataclass(slots=True)
class _Tally:
    """One attempt: its devices' energy counters before it began, the most memory seen, the devices it was seen on."""

    attempt: Attempt
    counters_mj: dict[str, int]
    peak_bytes: int | None = None
    seen_on: set[str] = field(default_factory=set)
    ended_ns: int | None = None


class GpuUse:
    """The tallies of attempts with devices. Used by the turn's thread only."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._tallies: dict[int, _Tally] = {}

    def begin(self, attempt: Attempt, reading: BoxReading | None) -> None:
        """Begin to count; `reading` is the look that found its devices empty, None for an attempt taken up later."""
        counters = _counters(reading, attempt.devices) if reading is not None else {}
        self._tallies.setdefault(attempt.id, _Tally(attempt, counters))

    def end(self, attempt_id: int, now_ns: int) -> None:
        """Settle an attempt at the next look."""
        tally = self._tallies.get(attempt_id)
        if tally is not None:
            tally.ended_ns = now_ns

    def reload(self, running: Iterable[Attempt]) -> None:
        """Count these attempts and no others: what else was begun or ended was never written down."""
        known, self._tallies = self._tallies, {}
        for attempt in running:
            self.begin(attempt, None)
            if attempt.id in known:
                self._tallies[attempt.id] = known[attempt.id]
                known[attempt.id].ended_ns = None

    def looked(self, change: Change, reading: BoxReading, looked_ns: int) -> None:
        """Take one look into account, and write down what was over before it."""
        for attempt_id, tally in list(self._tallies.items()):
            if tally.ended_ns is not None:
                if looked_ns < tally.ended_ns:
                    continue
                del self._tallies[attempt_id]
                measurements.set_gpu_use(change.connection, attempt_id, tally.peak_bytes, _energy_mj(tally, reading))
                continue
            here = [each for uuid in tally.attempt.devices if (each := reading.device(uuid)) and not each.error]
            used = sum(each.used_bytes for each in here)
            if here:
                tally.peak_bytes = max(tally.peak_bytes or 0, used)
            for device in here:
                if device.uuid not in tally.seen_on:
                    self._verify(change, tally, device.uuid, [each.pid for each in device.processes or ()])

    def _verify(self, change: Change, tally: _Tally, uuid: str, pids: Iterable[int]) -> None:
        """Write down, once, that processes of the attempt sit on the device it was given."""
        pids = list(pids)
        if not pids:
            return
        start = self.context.executor.look(self.context.control_dir(tally.attempt.id)).start
        mine = [pid for pid in pids if belongs(pid, tally.attempt.token, start.cgroup if start else None)]
        if mine:
            tally.seen_on.add(uuid)
            data = {"device": uuid, "pids": mine}
            jobs.note(change.connection, change.now_us, "verified", tally.attempt.ref, data)


def process_name(pid: int) -> str:
    """Return a process as a person knows it: `pid 812 (ollama) of alice`."""
    directory = Path(f"/proc/{pid}")
    try:
        name, uid = (directory / "comm").read_text(errors="replace").strip(), directory.stat().st_uid
    except OSError:
        return f"pid {pid}"
    return f"pid {pid} ({name}) of {user_name(uid) or f'uid {uid}'}"


def _counters(reading: BoxReading, uuids: Iterable[str]) -> dict[str, int]:
    devices = [each for uuid in uuids if (each := reading.device(uuid)) and not each.error]
    return {each.uuid: each.energy_mj for each in devices if each.energy_mj is not None}


def _energy_mj(tally: _Tally, reading: BoxReading) -> int | None:
    after = _counters(reading, tally.attempt.devices)
    drawn = [after[uuid] - before for uuid, before in tally.counters_mj.items() if after.get(uuid, -1) >= before]
    return sum(drawn) if drawn else None
