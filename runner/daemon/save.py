"""Save what attempts left: a directory into the store, an artifact row; off the turn's thread, redone by a restart."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from runner.core.job import Attempt, Ref
from runner.core.reasons import Becomes, Ending, Waiting, WaitReason, stays_stopped
from runner.core.units import format_size
from runner.daemon import cache
from runner.daemon.context import Context
from runner.daemon.fetch import Wanted
from runner.daemon.guard import safely
from runner.daemon.launch import attempt_dir, has_files
from runner.daemon.mirror import Mirrorer, size_of
from runner.daemon.settle import settle
from runner.daemon.steps import Step
from runner.daemon.upload import Upload, Uploader
from runner.daemon.verdict import Ended
from runner.paths import Paths
from runner.service.checkpoints import GONE, put_back
from runner.service.desk import Change, Discard
from runner.service.outputs import printable
from runner.state import artifacts, jobs, removal
from storage.errors import Cancelled, DiskFull, StorageError
from storage.files import remove_directory
from storage.publish import Published, publish
from storage.upload import Pushed

WORKERS = 2
SKIPPED_KEPT = 100

log = logging.getLogger("stoker.save")


@dataclasses.dataclass(slots=True)
class Saving:
    """One output on its way into the store.

    `salvaged`: it is of an earlier attempt. `wanted` is where it is written to beside the store. `reason` says what it
    waits for; `given_up` that nobody wants to wait.
    """

    attempt: Attempt
    output: Path
    ended: Ended
    becomes: Becomes
    wanted: Wanted | None = None
    salvaged: bool = False
    reason: WaitReason | None = None
    given_up: bool = False


class Saver:
    """Publishes outputs. Methods belong to the turn's thread."""

    def __init__(self, context: Context, uploader: Uploader, mirrorer: Mirrorer) -> None:
        self.context = context
        self.uploader = uploader
        self.mirrorer = mirrorer
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="save")
        self._new: list[Saving] = []
        self._saving: dict[Ref, Saving] = {}

    def save(self, attempt: Attempt, output: Path, ended: Ended, becomes_: Becomes) -> None:
        """Publish an attempt's output once the turn is committed; then its element goes where it leads."""
        if attempt.ref not in self._saving:
            self._new.append(Saving(attempt, output, ended, becomes_, self.uploader.wanted(attempt.ref)))

    def resume(self, ref: Ref) -> None:
        """Publish what the last attempt of an element in saving left.

        One that will not run again has a row that says why; any other goes where its attempt leads.
        """
        connection = self.context.database.writer
        attempt, word = jobs.last_attempt(connection, ref), jobs.last_word(connection, ref)
        assert attempt is not None, f"job {ref.label} is being saved without an attempt"
        output = attempt_dir(self.context.paths, ref, attempt.number) / "output"
        if word is None:
            stored = jobs.saving_of(connection, attempt.id)
            assert stored is not None, f"job {ref.label} is being saved without a reason"
            ending, code, number, sentence, destination = stored
            self.save(attempt, output, Ended(Ending(ending), code, number, sentence), Becomes(destination))
            return
        ended = Ended(Ending(word[0]), None, None, word[1])
        leads_to = Becomes.STOPPED if stays_stopped(ended.ending) else Becomes.FAILED
        saving = Saving(attempt, output, ended, leads_to, self.uploader.wanted(ref), salvaged=True)
        if has_files(output) or self.mirrorer.has_last(ref):
            self._new.append(saving)
        else:
            self.context.desk.put(lambda change: self._saved(change, saving, None))

    def abort(self, ref: Ref) -> None:
        """Wait no longer for room on the disk or for an upload; what can be saved goes to the store in any case."""
        saving = self._saving.get(ref)
        if saving is not None:
            saving.given_up = True

    def reason(self, ref: Ref) -> WaitReason | None:
        """Say what the output of an element waits for, if it does; may be asked from any thread."""
        saving = self._saving.get(ref)
        return saving.reason if saving is not None else None

    def discard(self, effect: Discard) -> None:
        """Remove logs and directories of removed jobs, and what the store then no longer needs."""
        self._submit("discard what was removed", self._discard, effect)

    def clear(self, found: list[tuple[int, list[int]]], now_us: int, then: Callable[[], None]) -> None:
        """Remove logs and directories of jobs (each with its attempts) that finished long ago, then call `then`.

        They are put aside before a `start` can be heard, so what a job is given from then on is not among them.
        """
        aside = [put_aside(self.context.paths, job_id, now_us) for job_id, _ in found]

        def work() -> None:
            for (job_id, attempt_ids), directory in zip(found, aside, strict=True):
                safely(f"remove the logs of job {job_id}", remove_logs, self.context.paths, attempt_ids)
                safely(f"remove {directory}", remove_directory, directory)
            then()

        self._submit("clear away what has expired", work)

    def tidy(self) -> None:
        """Do again, after a restart, what removals may have left undone."""
        safely("put checkpoints back", put_back, self.context.paths)
        # Listed before a request can be heard, so that nothing is cleared away under one.
        self._submit("tidy up", self._tidy, list(Path(self.context.paths.jobs_dir).iterdir()))

    def proceed(self) -> None:
        """Begin what the committed turn asked for."""
        new, self._new = self._new, []
        for saving in new:
            self._saving[saving.attempt.ref] = saving
            self._begin(saving)

    def rolled_back(self) -> None:
        """Forget what a refused turn asked for."""
        self._new.clear()

    def _submit(self, what: str, work: Callable[..., None], *arguments: object) -> None:
        """Have something done by the pool; what goes wrong there is said in the runner's log."""
        self._pool.submit(safely, what, work, *arguments)

    def _begin(self, saving: Saving) -> None:
        """Mirror the checkpoint one last time, as far as that can be done, then save the output."""
        self.mirrorer.last(
            saving.attempt.ref,
            tell=partial(self._tell, saving),
            cancelled=lambda: saving.given_up,
            then=lambda: self._submit_saving(saving),
        )

    def _submit_saving(self, saving: Saving) -> None:
        self._submit(f"save the output of job {saving.attempt.ref.label}", self._publish, saving)

    def _publish(self, saving: Saving) -> None:
        attempt = saving.attempt
        try:
            # The lease keeps what was published until the row that leads to it is committed.
            with self.context.store.lease(f"attempt {attempt.id}"):
                self.context.step(Step.PUBLISH_BEGUN)
                digest = artifacts.output_of(self.context.database.reader(), attempt.id)
                published = None
                if digest is None and has_files(saving.output):
                    published = publish(self.context.store, saving.output)
                    digest = published.tree_digest if published is not None else None
                self.context.step(Step.PUBLISH_STORED)
                if saving.wanted is None or digest is None:
                    self.context.desk.insist(lambda change: self._saved(change, saving, published))
                else:
                    self.context.desk.insist(lambda change: self._stored(change, attempt, published))
                    self._upload(saving, saving.wanted, digest)
                self.context.step(Step.PUBLISH_COMMITTED)
        except DiskFull:
            self._wait_for_room(saving)
        except Cancelled:
            return
        except Exception as error:  # whatever it is, the job must not stay here for ever
            if not isinstance(error, (StorageError, OSError)):
                log.exception("saving the output of job %s met a bug", attempt.ref.label)
            self._fail(saving, str(error))

    def _upload(self, saving: Saving, wanted: Wanted, digest: str) -> None:
        self.uploader.submit(
            Upload(
                saving.attempt.ref,
                digest,
                wanted,
                given_up=lambda: saving.given_up,
                tell=partial(self._tell, saving),
                done=partial(self._written, saving, wanted),
            )
        )

    def _written(self, saving: Saving, wanted: Wanted, outcome: Pushed | StorageError) -> None:
        """Settle a job whose output is where it wants it, or cannot be; the store has it in any case."""
        where = wanted.uri.shown
        if isinstance(outcome, Pushed):
            self.context.step(Step.UPLOAD_DONE)
            self.context.desk.insist(lambda change: self._uploaded(change, saving, where, outcome))
            return
        kept = f"it is kept: `stoker outputs pull {saving.attempt.ref.label}`"
        if not isinstance(outcome, Cancelled):
            to = "" if where in outcome.message else f" to {where}"
            why = outcome.message + (f" ({outcome.hint})" if outcome.hint else "")
            self._lead(saving, Ending.OUTPUT_FAILED, f"its output could not be written{to}: {why}; {kept}")
        elif saving.becomes is Becomes.SUCCEEDED:
            self._lead(saving, Ending.STOPPED_BY_USER, f"writing its output to {where} was broken off; {kept}")
        self.context.desk.insist(lambda change: self._saved(change, saving, None))

    def _tell(self, saving: Saving, reason: WaitReason) -> None:
        saving.reason = reason
        self.context.hub.changed({saving.attempt.ref.job_id})

    def _wait_for_room(self, saving: Saving) -> None:
        need, free = size_of(saving.output), cache.room_on_disk(self.context)
        needs = f"needs {format_size(need)} of disk and {format_size(free)} are free"
        if saving.given_up:
            self._fail(saving, f"it {needs}")
            return
        self._tell(saving, WaitReason(Waiting.DISK, f"its output {needs}", {"need_bytes": need, "free_bytes": free}))
        cache.await_room(
            self.context,
            need_bytes=need,
            free_bytes=free,
            wanted=lambda: not saving.given_up,
            then=lambda: self._submit_saving(saving),
        )

    def _fail(self, saving: Saving, why: str) -> None:
        """End a job whose output cannot be saved; the files stay where they are."""
        sentence = f"its output could not be saved: {why}; the files are in {saving.output}"
        self._lead(saving, Ending.OUTPUT_FAILED, sentence)
        self.context.desk.insist(lambda change: self._saved(change, saving, None))

    def _lead(self, saving: Saving, ending: Ending, sentence: str) -> None:
        """Let a job end otherwise than its attempt did."""
        saving.ended = dataclasses.replace(saving.ended, ending=ending, sentence=sentence)
        saving.becomes = Becomes.STOPPED if stays_stopped(ending) else Becomes.FAILED

    def _saved(self, change: Change, saving: Saving, published: Published | None) -> None:
        attempt = saving.attempt
        self._saving.pop(attempt.ref, None)
        self._stored(change, attempt, published)
        if saving.becomes is Becomes.SUCCEEDED:
            self._keep(change, attempt)
        finished_us = change.now_us if saving.salvaged else jobs.ended_us(change.connection, attempt.id)
        settle(change, attempt.ref, saving.ended, saving.becomes, finished_us)
        self.context.step(Step.PUBLISH_WRITTEN)

    def _stored(self, change: Change, attempt: Attempt, published: Published | None) -> None:
        """Write down what an attempt left, as far as it is in the store now."""
        if published is None:
            return
        if published.tree_digest is not None:
            self._enter(change, attempt, published.tree_digest, published)
        if published.linked:
            count = "1 file" if published.linked == 1 else f"{published.linked} files"
            data = {"count": published.linked, "sentence": f"{count} behind links saved as copies"}
            jobs.note(change.connection, change.now_us, "output_links", attempt.ref, data)
        if published.skipped:
            left_out = [{"path": printable(each.path), "why": each.why} for each in published.skipped[:SKIPPED_KEPT]]
            data = {"attempt": attempt.number, "count": len(published.skipped), "left_out": left_out}
            jobs.note(change.connection, change.now_us, "output_incomplete", attempt.ref, data)

    def _uploaded(self, change: Change, saving: Saving, where: str, pushed: Pushed) -> None:
        count = "1 file" if pushed.files == 1 else f"{pushed.files} files"
        beside = f", beside {pushed.beside} older there" if pushed.beside else ""
        sentence = f"{count}, {format_size(pushed.size_bytes)}, to {where}{beside}"
        data = {"uri": where, "files": pushed.files, "bytes": pushed.size_bytes, "sentence": sentence}
        jobs.note(change.connection, change.now_us, "output_written", saving.attempt.ref, data)
        self._saved(change, saving, None)

    def _enter(self, change: Change, attempt: Attempt, digest: str, published: Published) -> None:
        """Write down the artifact that an attempt's output became."""
        facts = self.context.facts(attempt.ref.job_id)
        size_bytes, files = published.size_bytes, published.files
        jobs.set_output(change.connection, attempt.id, digest, size_bytes, files)
        artifacts.add(
            change.connection,
            owner_uid=facts.owner_uid,
            account=facts.account,
            kind=artifacts.OUTPUT,
            name=f"job-{attempt.ref.label}",
            tree_digest=digest,
            size_bytes=size_bytes,
            files=files,
            ref=attempt.ref,
            attempt_id=attempt.id,
            now_us=change.now_us,
        )

    def _keep(self, change: Change, attempt: Attempt) -> None:
        """Make what a success left the next version of the model that its job names."""
        facts = self.context.facts(attempt.ref.job_id)
        if facts.spec.keep_model is None:
            return
        for output in artifacts.of_job(change.connection, attempt.ref.job_id):
            if output.attempt_id == attempt.id:
                artifacts.add(
                    change.connection,
                    owner_uid=facts.owner_uid,
                    account=facts.account,
                    kind="model",
                    name=facts.spec.keep_model,
                    tree_digest=output.tree_digest,
                    size_bytes=output.size_bytes,
                    files=output.files,
                    ref=attempt.ref,
                    attempt_id=attempt.id,
                    now_us=change.now_us,
                )

    def _discard(self, effect: Discard) -> None:
        remove_logs(self.context.paths, effect.attempt_ids)
        # Last: where a kill leaves one, `tidy` finds by it what else is left.
        for job_id in effect.job_ids:
            safely(f"remove the files of job {job_id}", remove_files, self.context.paths, job_id)
        if effect.job_ids:
            log.info("removed jobs %s", effect.job_ids)
        cache.sweep(self.context)

    def _tidy(self, directories: list[Path]) -> None:
        for each in directories:
            if each.name.endswith(GONE):
                safely(f"remove {each}", remove_directory, each)
        found = [int(each.name) for each in directories if each.name.isdigit()]
        removed, attempts = removal.removed_of(self.context.database.reader(), found)
        self._discard(Discard(tuple(removed), tuple(attempts)))


def remove_files(paths: Paths, job_id: int) -> None:
    """Remove what a job left on disk outside the store, but for its attempts' logs; may be repeated."""
    Path(paths.environment_log(job_id)).unlink(missing_ok=True)
    remove_directory(Path(paths.job_dir(job_id, None)))


def put_aside(paths: Paths, job_id: int, now_us: int) -> Path:
    """Take the directory of a job, and the log of its environment, from where the job looks; return where it is now."""
    directory, aside = Path(paths.job_dir(job_id, None)), Path(paths.jobs_dir, f"{job_id}.{now_us}{GONE}")
    try:
        Path(paths.environment_log(job_id)).unlink(missing_ok=True)
        directory.rename(aside)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("the files of job %d stay: %s", job_id, error)
    return aside


def remove_logs(paths: Paths, attempt_ids: Iterable[int]) -> None:
    """Remove the logs of attempts, whatever their number of workers."""
    gone = {str(attempt_id) for attempt_id in attempt_ids}
    for directory in {Path(paths.job_log(int(each), 0)).parent for each in gone}:
        with suppress(FileNotFoundError), os.scandir(directory) as logs:
            for each in logs:
                if each.name.partition(".")[0] in gone:
                    Path(each.path).unlink(missing_ok=True)
