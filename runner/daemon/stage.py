"""What one job needs before it can start, made in a worker's thread: its inputs, its environment, its copies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from runner.core.errors import StokerError
from runner.core.job import Ref
from runner.core.reasons import Ending, Waiting, WaitReason
from runner.core.units import format_duration, format_size
from runner.daemon import cache
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, NoRoom, Wanted
from runner.daemon.handout import handed_out, notice
from runner.daemon.launch import COPIED, Handed, JobFacts, attempt_dir
from runner.executors.environments import Builder, EnvironmentFailed, probe
from runner.service.desk import Enqueue
from runner.service.submit import interpreter_of
from runner.state import jobs
from runner.telemetry.tail import LogTail
from storage.checkout import Way, checkout
from storage.download import Fetched
from storage.errors import Cancelled, DiskFull, SourceFailed, StorageError, WrongBytes
from storage.leases import Lease
from storage.uri import parse


@dataclass(slots=True)
class Preparation:
    """One job being prepared.

    `waiting` and `attempts` (elements and how often each was tried) are the turn's; `needs`, what it has to fetch or
    build, and the rest are its worker's and only shown by others.
    """

    enqueue: Enqueue
    waiting: set[int]
    attempts: dict[int, int] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    reason: WaitReason = WaitReason(Waiting.STAGING, "waiting for its turn to be staged")
    cancelled: bool = False

    @property
    def job_id(self) -> int:
        """The job's number."""
        return self.enqueue.job_id

    @property
    def order(self) -> tuple[int, int, int]:
        """Where it stands: as the scheduler would start it."""
        return -self.enqueue.priority, self.enqueue.queued_us, self.job_id


@dataclass(frozen=True, slots=True)
class Source:
    """One input of a job: where it comes from, and the tree it was found to be for an earlier attempt."""

    name: str
    wanted: Wanted
    pinned: Fetched | None


@dataclass(frozen=True, slots=True)
class Staged:
    """An input in the store; `key` is the name under which its address is remembered.

    `way` is how the job gets it, `notice` what the job is told about that.
    """

    key: str
    fetched: Fetched
    way: Way
    notice: str | None = None


class Failed(Exception):
    """The job cannot be prepared: why, and which input it was."""

    def __init__(self, ending: Ending, sentence: str, *, name: str | None = None, lines: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.ending, self.sentence, self.name, self.lines = ending, sentence, name, lines


class Stager:
    """The work itself; used by several threads, each with a preparation of its own."""

    def __init__(self, context: Context, fetcher: Fetcher, tail: LogTail) -> None:
        self.context = context
        self.fetcher = fetcher
        self.tail = tail
        self._builder = Builder(Path(context.paths.environments_dir))

    def sources(self, facts: JobFacts) -> list[Source]:
        """Return the inputs of a job, by name."""
        found = []
        rows = jobs.staged(self.context.database.reader(), facts.job_id)
        for name, address, key_name, digest, size_bytes, files, pins in rows:
            pinned = Fetched(digest, size_bytes, files, json.loads(pins)) if digest else None
            stated = facts.spec.inputs[name]
            opened_by = (facts.owner_uid, key_name) if key_name is not None else None
            uri = parse(facts.secret_sources.get(name, address), PurePath("/"), stated.source_kind)
            wanted = Wanted(
                uri,
                self.fetcher.remembered(uri, endpoint=stated.endpoint, extract=stated.extract, opened_by=opened_by),
                home=facts.variables.get("HOME"),
                refresh=stated.refresh,
                endpoint=stated.endpoint,
                extract=stated.extract,
                opened_by=opened_by,
            )
            found.append(Source(name, wanted, pinned))
        return found

    def needs(self, facts: JobFacts, lease: Lease) -> frozenset[str]:
        """Return what must be read, fetched or built for a job: empty where everything is there."""
        needs = {source.wanted.key for source in self.sources(facts) if self._known(source, lease) is None}
        if facts.spec.requirements is not None and not self._is_built(facts):
            needs.add(f"requirements {facts.spec.requirements}")
        return frozenset(needs)

    def stage(self, preparation: Preparation, facts: JobFacts, lease: Lease) -> dict[str, Staged]:
        """Bring every input into the store, its read-only view with it."""
        found: dict[str, tuple[Source, Fetched]] = {}
        handed: dict[str, Handed] = {}
        base = 0
        for source in self.sources(facts):
            try:
                fetched = self._known(source, lease) or self._fetch(preparation, source, base)
                _same(source, fetched)
                found[source.name] = source, fetched
                handed = handed_out(self.context, facts, {name: each.tree_digest for name, (_, each) in found.items()})
            except (Cancelled, DiskFull):
                raise
            except (StorageError, OSError) as error:
                raise Failed(Ending.INPUT_FAILED, _sentence(source, error), name=source.name) from error
            base += fetched.size_bytes
        return {name: self._staged(facts, *each, handed[name].way) for name, each in found.items()}

    def build(self, preparation: Preparation, facts: JobFacts) -> str | None:
        """Build the environment a job names; None where it names none."""
        if facts.spec.requirements is None:
            return None
        if self._is_built(facts):
            return facts.environment_dir
        self.fetcher.check_room("its environment")
        step = "building its environment"
        self.tell(preparation, WaitReason(Waiting.ENVIRONMENT, step, {"step": step}))
        cwd = facts.spec.cwd or "/"
        path = Path(self.context.paths.environment_log(facts.job_id))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            built = self._builder.build(
                Path(facts.spec.requirements),
                interpreter=probe(interpreter_of(facts.variables, cwd), environ=facts.variables, cwd=Path(cwd)),
                environ=facts.variables,
                log_fd=descriptor,
                cancelled=lambda: preparation.cancelled,
            )
        except EnvironmentFailed as error:
            lines = tuple(error.details.get("lines", ()))
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            raise Failed(
                Ending.ENVIRONMENT_FAILED, f"{error.message}: {last}" if last else error.message, lines=lines
            ) from error
        except (StokerError, OSError) as error:
            raise Failed(Ending.ENVIRONMENT_FAILED, str(error)) from error
        finally:
            os.close(descriptor)
            self.tail.finish(str(path))
        return str(built)

    def copy(self, preparation: Preparation, facts: JobFacts, staged: Mapping[str, Staged], index: int) -> None:
        """Make the copies of inputs that are handed out so, for the attempt that an element begins next."""
        number = preparation.attempts.get(index, 0) + 1
        directory = attempt_dir(self.context.paths, Ref(facts.job_id, index), number) / "input"
        for name, each in staged.items():
            target = directory / name
            if each.way not in COPIED or (target.exists() and any(target.iterdir())):
                continue
            fetched = each.fetched
            self.fetcher.check_room(f"its copy of input {name}")
            self.tell(preparation, WaitReason(Waiting.STAGING, f"copying input {name}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                part = facts.spec.inputs[name].path or ""
                checkout(self.context.store, fetched.tree_digest, target, writable=True, part=part)
            except DiskFull:
                raise NoRoom(
                    f"its copy of input {name}", fetched.size_bytes, cache.room_on_disk(self.context)
                ) from None
            except (StorageError, OSError) as error:
                raise Failed(Ending.INPUT_FAILED, f"input {name}: {error}", name=name) from error

    def _staged(self, facts: JobFacts, source: Source, fetched: Fetched, way: Way) -> Staged:
        part = facts.spec.inputs[source.name].path or ""
        digest, size_bytes = fetched.tree_digest, fetched.size_bytes
        told = notice(self.context, source.name, way, digest=digest, part=part, size_bytes=size_bytes)
        return Staged(source.wanted.key, fetched, way, told)

    def tell(self, preparation: Preparation, reason: WaitReason) -> None:
        """Let everybody see what a job is being prepared with."""
        preparation.reason = reason
        self.context.hub.changed({preparation.job_id})

    def _known(self, source: Source, lease: Lease) -> Fetched | None:
        """Return what an input is already known to be, kept by the lease: for this job, or for any."""
        if source.pinned is not None and self.context.store.keep(lease, source.pinned.tree_digest):
            return source.pinned
        return self.fetcher.known(source.wanted, lease)

    def _fetch(self, preparation: Preparation, source: Source, base: int) -> Fetched:
        what = f"input {source.name}"
        self.tell(preparation, WaitReason(Waiting.STAGING, what))

        def progress(done: int, total: int | None) -> None:
            whole = None if total is None else base + total
            self.tell(preparation, progress_reason(Waiting.STAGING, what, base + done, whole))

        def failed(error: SourceFailed, wait_s: float) -> None:
            again = f"{_sentence(source, error)}; tried again in {format_duration(wait_s)}"
            self.tell(preparation, WaitReason(Waiting.STAGING, again))

        return self.fetcher.fetch(
            source.wanted, what, progress=progress, failed=failed, cancelled=lambda: preparation.cancelled
        )

    def _is_built(self, facts: JobFacts) -> bool:
        built = facts.environment_dir
        return built is not None and self._builder.find(Path(built).name) is not None


def progress_reason(kind: Waiting, what: str, done: int, total: int | None) -> WaitReason:
    """Say how far a transfer is, in bytes."""
    sentence = f"{what}: {format_size(done)}"
    if total:
        sentence = f"{what}: {100 * done // total}% of {format_size(total)}"
    return WaitReason(kind, sentence, {"done_bytes": done, "total_bytes": total})


def _same(source: Source, fetched: Fetched) -> None:
    """Raise `WrongBytes` where a job's earlier attempt had other bytes, which nobody has any more."""
    was = source.pinned
    if was is not None and was.tree_digest != fetched.tree_digest:
        raise WrongBytes(
            f"it is {fetched.tree_digest} now, and was {was.tree_digest} for this job's earlier attempt",
            "submit the job anew to run it on what is there now",
        )


def _sentence(source: Source, error: StorageError | OSError) -> str:
    message = error.message if isinstance(error, StorageError) else f"{error.strerror}"
    hint = error.hint if isinstance(error, StorageError) else ""
    where = "" if source.wanted.uri.shown in message else f" ({source.wanted.uri.shown})"
    return f"input {source.name}{where}: {message}" + (f" ({hint})" if hint else "")
