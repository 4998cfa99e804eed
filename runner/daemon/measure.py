"""What running jobs use and report, read now and then on a thread of its own, which sleeps while none runs."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from runner.core.job import Attempt, Ref
from runner.daemon.context import Context
from runner.daemon.guard import safely
from runner.daemon.launch import attempt_dir
from runner.daemon.loop import Loop
from runner.executors.base import AttemptRecord
from runner.service.desk import Change
from runner.state import measurements
from runner.telemetry.logs import read_log
from runner.telemetry.metrics import Extractor, MetricsFile, Patterns, Point, Steps, compile_patterns, open_regular
from runner.telemetry.samples import (
    Energy,
    GpuReading,
    Peak,
    Sample,
    Usage,
    process_tree,
    read_cgroup,
    read_processes,
    sample,
)

# What one look reads of a log, how many such pieces before the others have their turn, and how many points of them
# make one transaction: a job may have written anything while no runner was there.
LOG_LOOK_BYTES = 1 << 20
PIECES_MAX = 16
POINTS_MAX = 5000

Readings = Callable[[Sequence[str]], Sequence[GpuReading]]


@dataclass(slots=True)
class _Subject:
    """One attempt being measured. A restarted runner reads its files anew: points are known by their step."""

    attempt_id: int
    ref: Ref
    cgroup: str | None
    pids: tuple[int, ...]
    devices: tuple[str, ...]
    log_paths: tuple[Path, Path]
    patterns: Patterns
    file: MetricsFile
    file_path: Path
    extractor: Extractor | None
    log_offset: int = 0
    before: tuple[int, Usage] | None = None
    peak: Peak = field(default_factory=Peak)
    energy: Energy = field(default_factory=Energy)
    over: bool = False


class Measurer:
    """Samples and metrics of running attempts. `began` and `ended` belong to the turn's thread."""

    def __init__(self, context: Context, loop: Loop, readings: Readings) -> None:
        self.context = context
        self.loop = loop
        self._readings = readings
        self._lock = threading.Lock()
        self._subjects: dict[int, _Subject] = {}
        self._wake = threading.Event()
        self._armed = False
        threading.Thread(target=self._run, name="measure", daemon=True).start()

    def began(self, attempt: Attempt, record: AttemptRecord, *, over: bool = False) -> None:
        """Take up an attempt whose workers run, or (`over`) ran; nothing where it was taken up before."""
        start = record.start
        if start is None or attempt.id in self._subjects:
            return
        file_path = attempt_dir(self.context.paths, attempt.ref, attempt.number) / "metrics.jsonl"
        patterns = compile_patterns(self.context.facts(attempt.ref.job_id).spec.metrics)
        steps = Steps()
        subject = _Subject(
            attempt_id=attempt.id,
            ref=attempt.ref,
            cgroup=None if over else start.cgroup,
            pids=() if over else tuple(worker.pid for worker in start.workers),
            devices=attempt.devices,
            log_paths=(self.context.control_dir(attempt.id) / "log.0", Path(self.context.paths.job_log(attempt.id, 0))),
            patterns=patterns,
            file=MetricsFile(partial(open_regular, str(file_path)), steps),
            file_path=file_path,
            extractor=Extractor(patterns, steps) if patterns else None,
        )
        with self._lock:
            self._subjects[attempt.id] = subject

    def ended(self, attempt_id: int) -> None:
        """Let go of an attempt; what it wrote last is read once more, where it writes metrics at all."""
        with self._lock:
            subject = self._subjects.get(attempt_id)
            if subject is None:
                return
            if subject.extractor is None and subject.before is None and not os.path.exists(subject.file_path):
                del self._subjects[attempt_id]
                return
            subject.over = True
        self._wake.set()

    def arm(self) -> None:
        """See to it that the next look comes, while anything runs; a job of an instant is never looked at."""
        if not self._armed and self._subjects:
            self._armed = True
            self.loop.after(self.context.config.metrics.interval_s, self._due)

    def _due(self) -> None:
        self._armed = False
        if self._subjects:
            self._wake.set()
            self.arm()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                looks = [(subject, subject.over) for subject in self._subjects.values()]
                for subject, over in looks:
                    if over:
                        del self._subjects[subject.attempt_id]
            for subject, over in looks:
                safely(f"measure job {subject.ref.label}", partial(self._look, subject, over=over))

    def _look(self, subject: _Subject, *, over: bool) -> None:
        """Take a sample and read what was written since; to its end where nothing more will be."""
        if not over:
            taken = self._sample(subject, self.context.clock.now_us())
            if taken is not None:
                self.context.desk.put(partial(_write_sample, subject, taken))
        for _ in itertools.count() if over else range(PIECES_MAX):
            points, more = self._read(subject, over=over)
            for first in range(0, len(points), POINTS_MAX):
                self.context.desk.insist(partial(_write_points, subject, points[first : first + POINTS_MAX]))
            if not more:
                break
        if over:
            self.context.desk.put(partial(_write_peaks, subject))

    def _read(self, subject: _Subject, *, over: bool) -> tuple[list[Point], bool]:
        """Return the points in the next piece of what was written, and whether there may be more of it."""
        now_us = self.context.clock.now_us()
        before = subject.file.offset, subject.log_offset
        points = subject.file.look(now_us, final=over)
        if subject.extractor is not None:
            points += self._read_log(subject, subject.extractor, now_us)
        more = (subject.file.offset, subject.log_offset) != before
        if over and not more and subject.extractor is not None:
            points += subject.extractor.finish(now_us)
        return points, more

    def _sample(self, subject: _Subject, now_us: int) -> Sample | None:
        usage = read_cgroup(subject.cgroup) if subject.cgroup else None
        if usage is None:
            usage = read_processes(process_tree(subject.pids))
        if usage is None:
            return None
        readings = self._readings(subject.devices) if subject.devices else ()
        taken = sample(now_us, usage, readings, before=subject.before)
        subject.before = (now_us, usage)
        subject.peak = subject.peak.with_sample(taken, usage)
        subject.energy = subject.energy.with_readings(readings, now_us)
        return taken

    def _read_log(self, subject: _Subject, extractor: Extractor, now_us: int) -> list[Point]:
        points: list[Point] = []
        for path in subject.log_paths:
            try:
                piece = read_log(str(path), start=subject.log_offset, end=subject.log_offset + LOG_LOOK_BYTES)
            except FileNotFoundError:
                continue
            for data in piece:
                points += extractor.feed(data, now_us)
            subject.log_offset = piece.end
            break
        return points


def _write_points(subject: _Subject, points: Sequence[Point], change: Change) -> None:
    rows = ((each.name, each.step, each.value, each.at_us) for each in points)
    measurements.add_points(change.connection, subject.attempt_id, rows)
    change.touched.add(subject.ref)


def _write_sample(subject: _Subject, taken: Sample, change: Change) -> None:
    row = (taken.cpu_percent, taken.memory_bytes, taken.gpu_memory_bytes, taken.gpu_utilization, taken.power_mw)
    measurements.add_sample(change.connection, subject.attempt_id, taken.at_us, row)
    change.touched.add(subject.ref)


def _write_peaks(subject: _Subject, change: Change) -> None:
    energy_mj = round(subject.energy.joules * 1000) if subject.devices else None
    peak = subject.peak
    measurements.set_peaks(change.connection, subject.attempt_id, peak.memory_bytes, peak.gpu_memory_bytes, energy_mj)
    change.touched.add(subject.ref)
