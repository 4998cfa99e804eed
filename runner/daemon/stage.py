"""What one job needs before it can start, made in a worker's thread: its inputs, its environment, its copies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.core.errors import StokerError
from runner.core.job import Ref
from runner.core.reasons import Ending, Waiting, WaitReason
from runner.core.spec import CODE
from runner.core.units import format_duration
from runner.daemon import cache
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, NoRoom, Wanted
from runner.daemon.handout import handed_out, notice
from runner.daemon.launch import COPIED, Handed, JobFacts, attempt_dir, place_of
from runner.daemon.mirror import restored, worded
from runner.daemon.pace import Pace
from runner.daemon.shelf import NotReady, referred, take
from runner.executors.environments import Builder, EnvironmentFailed, probe
from runner.service.desk import Enqueue
from runner.service.submit import interpreter_of
from runner.state import jobs, staged
from runner.state.mirrors import Mirror
from runner.telemetry.tail import LogTail
from storage.checkout import Way, checkout
from storage.download import Fetched
from storage.errors import BadName, Cancelled, DiskFull, NotStored, SourceFailed, StorageError, WrongBytes
from storage.leases import Lease

# Until it is known whether a job lacks anything: it may start at once.
LOOKING = WaitReason(Waiting.STAGING, "looking at what it needs")


@dataclass(slots=True)
class Preparation:
    """One job being prepared.

    `waiting` and `attempts` (elements and how often each was tried) are the turn's; `needs`, what it has to fetch or
    build, and the rest are its worker's and only shown by others: the bytes that it has still to fetch as far as is
    known, the trees of those inputs that are here, and since when it may be tried again after it found no room.
    """

    enqueue: Enqueue
    waiting: set[int]
    attempts: dict[int, int] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    reason: WaitReason = LOOKING
    need_bytes: int | None = None
    trees: frozenset[str] = frozenset()
    staging: bool = False
    begun: bool = False
    returns: bool = False
    rests_until_ns: int = 0
    cancelled: bool = False

    @property
    def job_id(self) -> int:
        """The job's number."""
        return self.enqueue.job_id

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """Where it stands: as the scheduler would start it."""
        return False, -self.enqueue.priority, self.enqueue.queued_us, self.job_id


@dataclass(frozen=True, slots=True)
class Source:
    """One input of a job: where it comes from, and the tree it was found to be for an earlier attempt.

    One that names an artifact has its id, and nothing to be fetched. `digest` is the tree that it must be, where the
    user says so; then `pinned` is that tree too, if anything of this user's ever was it.
    """

    name: str
    wanted: Wanted
    pinned: Fetched | None
    artifact_id: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """An input in the store; `key` is the name under which its address is remembered, None for none.

    `fresh` says that it is what the address was last found to be, and not what it once was. `way` is how the job gets
    it, `notice` what the job is told about that.
    """

    key: str | None
    fetched: Fetched
    way: Way
    notice: str | None = None
    fresh: bool = True


class Failed(Exception):
    """The job cannot be prepared: why, and which input it was."""

    def __init__(self, ending: Ending, sentence: str, *, name: str | None = None, lines: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.ending, self.sentence, self.name, self.lines = ending, sentence, name, lines


class PutOff(Exception):
    """What a job lacks turned out to be more than may be staged now; `reason` says why."""

    def __init__(self, reason: WaitReason) -> None:
        super().__init__(reason.sentence)
        self.reason = reason


class Stager:
    """The work itself; used by several threads, each with a preparation of its own.

    `admits` is asked once the size of an input is known, and says why it may not be fetched now.
    """

    admits: Callable[[Preparation], WaitReason | None]

    def __init__(self, context: Context, fetcher: Fetcher, tail: LogTail) -> None:
        self.context = context
        self.fetcher = fetcher
        self.tail = tail
        self._builder = Builder(Path(context.paths.environments_dir))

    def sources(self, facts: JobFacts) -> list[Source]:
        """Return the inputs of a job, by name."""
        found = []
        reader = self.context.database.reader()
        for name, address, artifact_id, key_name, digest, size_bytes, files, pins in jobs.staged(reader, facts.job_id):
            stated, secret = facts.spec.sources[name], facts.secret_sources.get(name, address)
            known = json.loads(pins) if pins else {}
            was = digest or known.pop("gave_way", None)
            pinned = Fetched(was, size_bytes, files, known) if was else None
            if pinned is None and stated.digest is not None:
                had = staged.had(reader, facts.owner_uid, stated.digest, address)
                pinned = Fetched(stated.digest, had[0], had[1], json.loads(had[2])) if had else None
            if artifact_id is not None:
                found.append(Source(name, referred(address), pinned, artifact_id, stated.digest))
                continue
            home = facts.variables.get("HOME")
            wanted = self.fetcher.wanted(stated, secret, owner_uid=facts.owner_uid, home=home, key_name=key_name)
            found.append(Source(name, wanted, pinned, digest=stated.digest))
        return found

    def look(self, preparation: Preparation, facts: JobFacts, lease: Lease) -> None:
        """Find what must be read, fetched or built for a job, `needs`, and what is here, `trees`."""
        known = [(source.wanted.key, self._known(source, lease)) for source in self.sources(facts)]
        needs = {key for key, fetched in known if fetched is None}
        preparation.trees = frozenset(fetched.tree_digest for _, fetched in known if fetched is not None)
        if not needs:
            preparation.need_bytes = 0
        if facts.spec.requirements is not None and not self._is_built(facts):
            needs.add(f"requirements {facts.spec.requirements}")
        preparation.needs = frozenset(needs)

    def stage(self, preparation: Preparation, facts: JobFacts, lease: Lease) -> dict[str, Staged]:
        """Bring every input into the store, its read-only view with it."""
        found: dict[str, tuple[Source, Fetched]] = {}
        handed: dict[str, Handed] = {}
        for source in self.sources(facts):
            try:
                fetched = self._known(source, lease) or self._fetch(preparation, source)
                _same(source, fetched)
                if source.name == CODE and facts.code_directory:
                    self._check_directory(fetched.tree_digest, facts.code_directory)
                found[source.name] = source, fetched
                handed = handed_out(self.context, facts, {name: each.tree_digest for name, (_, each) in found.items()})
            except (Cancelled, DiskFull, NotReady):
                raise
            except (StorageError, OSError) as error:
                raise Failed(Ending.INPUT_FAILED, _missing(source, error), name=source.name) from error
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

    def copy(self, preparation: Preparation, facts: JobFacts, inputs: Mapping[str, Staged], index: int) -> None:
        """Make the copies of inputs that are handed out so, for the attempt that an element begins next."""
        number = preparation.attempts.get(index, 0) + 1
        directory = attempt_dir(self.context.paths, Ref(facts.job_id, index), number)
        for name, each in inputs.items():
            target = place_of(directory, name)
            if each.way not in COPIED or (target.exists() and any(target.iterdir())):
                continue
            fetched = each.fetched
            self.fetcher.check_room(f"its copy of input {name}")
            self.tell(preparation, WaitReason(Waiting.STAGING, f"copying input {name}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                part = facts.spec.sources[name].path or ""
                checkout(self.context.store, fetched.tree_digest, target, writable=True, part=part)
            except DiskFull:
                raise NoRoom(
                    f"its copy of input {name}", fetched.size_bytes, cache.room_on_disk(self.context)
                ) from None
            except (StorageError, OSError) as error:
                hint = f" ({error.hint})" if isinstance(error, StorageError) and error.hint else ""
                raise Failed(Ending.INPUT_FAILED, f"input {name}: {error}{hint}", name=name) from error

    def restore(self, preparation: Preparation, facts: JobFacts, index: int) -> Mirror | None:
        """Give an element without a checkpoint what is kept of it where its job says; return that, as `restored` does.

        Nobody else is asked where it has one.
        """
        pace = Pace(self.context.clock, Waiting.STAGING, "its checkpoint")

        def failed(error: SourceFailed, wait_s: float) -> None:
            again = f"its checkpoint: {error.message}; tried again in {format_duration(wait_s)}"
            self.tell(preparation, WaitReason(Waiting.STAGING, again))

        try:
            return restored(
                self.fetcher,
                facts,
                Ref(facts.job_id, index),
                progress=lambda done, total: self.tell(preparation, pace.reason(done, total)),
                failed=failed,
                cancelled=lambda: preparation.cancelled,
            )
        except (Cancelled, NoRoom, DiskFull):
            raise
        except (StorageError, OSError) as error:
            sentence = f"its checkpoint cannot be restored: {worded(error)}"
            raise Failed(Ending.INPUT_FAILED, sentence) from error

    def _check_directory(self, digest: str, directory: str) -> None:
        entries = self.context.store.manifest(digest).entries
        if not any(entry.path.startswith(f"{directory}/") for entry in entries):
            raise BadName(f"it has no directory {directory!r}", "--cwd names a directory of the code")

    def _staged(self, facts: JobFacts, source: Source, fetched: Fetched, way: Way) -> Staged:
        part = facts.spec.sources[source.name].path or ""
        digest, size_bytes = fetched.tree_digest, fetched.size_bytes
        told = notice(self.context, source.name, way, digest=digest, part=part, size_bytes=size_bytes)
        # A tree that was asked for by its digest says nothing of its address, unless it was just fetched from there.
        nameless = source.artifact_id is not None or (source.digest is not None and fetched is source.pinned)
        key = None if nameless else source.wanted.key
        return Staged(key, fetched, way, told, fresh=fetched is not source.pinned)

    def tell(self, preparation: Preparation, reason: WaitReason) -> None:
        """Let everybody see what a job is being prepared with."""
        preparation.reason = reason
        self.context.hub.changed({preparation.job_id})

    def _known(self, source: Source, lease: Lease) -> Fetched | None:
        """Return what an input is already known to be, kept by the lease: for this job, or for any."""
        if source.pinned is not None and self.context.store.keep(lease, source.pinned.tree_digest):
            return source.pinned
        if source.artifact_id is not None:
            return None
        known = self.fetcher.known(source.wanted, lease)
        return known if known is None or source.digest in (None, known.tree_digest) else None

    def _fetch(self, preparation: Preparation, source: Source) -> Fetched:
        what = _called(source)
        if source.artifact_id is not None:
            return take(self.context, source.artifact_id, source.wanted.uri.path)
        if source.name == CODE and source.wanted.uri.kind == "local":
            raise NotStored("the snapshot of its code is gone from the store", "submit the job anew to take another")
        self.tell(preparation, WaitReason(Waiting.STAGING, what))

        put_off: WaitReason | None = None
        admitted = preparation.need_bytes or 0
        pace = Pace(self.context.clock, Waiting.STAGING, what)

        def progress(done: int, total: int | None) -> None:
            nonlocal put_off, admitted
            preparation.begun = True
            if total is None:
                # It needs more than this; how much more, only its end will tell.
                preparation.need_bytes = max(admitted, done + 1)
            else:
                preparation.need_bytes = max(1, total - done)
                if preparation.need_bytes > admitted:
                    admitted = preparation.need_bytes
                    put_off = put_off or self.admits(preparation)
            self.tell(preparation, pace.reason(done, total))

        def failed(error: SourceFailed, wait_s: float) -> None:
            again = f"{_sentence(source, error)}; tried again in {format_duration(wait_s)}"
            self.tell(preparation, WaitReason(Waiting.STAGING, again))

        def cancelled() -> bool:
            return preparation.cancelled or put_off is not None

        try:
            return self.fetcher.fetch(source.wanted, what, progress=progress, failed=failed, cancelled=cancelled)
        except Cancelled:
            if put_off is None or preparation.cancelled:
                raise
            raise PutOff(put_off) from None

    def _is_built(self, facts: JobFacts) -> bool:
        built = facts.environment_dir
        return built is not None and self._builder.find(Path(built).name) is not None


def _same(source: Source, fetched: Fetched) -> None:
    """Raise `WrongBytes` where other bytes are asked for, or a job's earlier attempt had others, that nobody has."""
    was = source.pinned
    if source.digest not in (None, fetched.tree_digest):
        raise WrongBytes(
            f"it is {fetched.tree_digest} now, and {source.digest}, which was asked for, is not in the store",
            f"`--input {source.name}=…` without a digest takes what is there now",
        )
    if was is not None and was.tree_digest != fetched.tree_digest:
        raise WrongBytes(
            f"it is {fetched.tree_digest} now, and was {was.tree_digest} for this job's earlier attempt",
            "submit the job anew to run it on what is there now",
        )


def _missing(source: Source, error: StorageError | OSError) -> str:
    """Return why an input cannot be had; where its digest is stated, that the store does not have it either."""
    sentence = _sentence(source, error)
    if source.digest is None or source.digest in sentence or isinstance(error, BadName):
        return sentence
    return f"{sentence}; {source.digest}, which was asked for, is not in the store"


def _called(source: Source) -> str:
    return "its code" if source.name == CODE else f"input {source.name}"


def _sentence(source: Source, error: StorageError | OSError) -> str:
    message = error.message if isinstance(error, StorageError) else f"{error.strerror}"
    hint = error.hint if isinstance(error, StorageError) else ""
    where = "" if source.wanted.uri.shown in message else f" ({source.wanted.uri.shown})"
    return f"{_called(source)}{where}: {message}" + (f" ({hint})" if hint else "")
