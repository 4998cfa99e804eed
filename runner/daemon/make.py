"""Make the artifacts that users name: fetched, or taken from what is in the store; taken up again by a restart."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from runner.core.reasons import Waiting, WaitReason
from runner.core.spec import Input
from runner.core.units import format_duration
from runner.daemon import cache
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, NoRoom, Wanted
from runner.daemon.guard import safely
from runner.daemon.pace import Pace
from runner.daemon.shelf import NotReady, once_made, pins_text, remember, take
from runner.service.create import SOURCE
from runner.service.desk import Change, Work
from runner.state import artifacts, variables
from runner.state.artifacts import Artifact
from storage.download import Fetched
from storage.errors import Cancelled, DiskFull, SourceFailed, StorageError
from storage.leases import Lease

WORKERS = 3
FAULT_MAX = 1000

log = logging.getLogger("stoker.make")


@dataclass(slots=True)
class Making:
    """One artifact on its way; `reason` says how far it is, `abandoned` that nobody wants it any more."""

    artifact_id: int
    reason: WaitReason = WaitReason(Waiting.STAGING, "waiting for its turn to be fetched")
    abandoned: bool = False


class Maker:
    """Makes artifacts. `load`, `make` and `abandon` belong to the turn's thread; the work is done by a few others."""

    def __init__(self, context: Context, fetcher: Fetcher) -> None:
        self.context = context
        self.fetcher = fetcher
        self._making: dict[int, Making] = {}
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="make")

    def load(self) -> None:
        """Take up what an earlier runner left unfinished."""
        for artifact_id in artifacts.under_way(self.context.database.writer):
            self.make(artifact_id)

    def make(self, artifact_id: int) -> None:
        """Make an artifact once those before it are made."""
        making = self._making[artifact_id] = Making(artifact_id)
        self._submit(making)

    def abandon(self, artifact_id: int) -> None:
        """End the work on an artifact that is gone."""
        making = self._making.pop(artifact_id, None)
        if making is not None:
            making.abandoned = True
        self.context.shelf.changed({artifact_id})

    def reason(self, artifact_id: int) -> WaitReason | None:
        """Say how far an artifact is; may be asked from any thread."""
        making = self._making.get(artifact_id)
        return making.reason if making is not None else None

    def _submit(self, making: Making) -> None:
        self._pool.submit(safely, f"make artifact {making.artifact_id}", self._make, making)

    def _make(self, making: Making) -> None:
        found = artifacts.get(self.context.database.reader(), making.artifact_id)
        if making.abandoned or found is None or found.state != "downloading" or found.removed_us is not None:
            return
        try:
            # The lease keeps what was stored until the row that leads to it is committed.
            with self.context.store.lease(f"artifact {found.id}") as lease:
                key, fetched = self._bring(making, found, lease)
                self._end(making, partial(self._made, making=making, key=key, fetched=fetched))
        except Cancelled:
            return
        except NotReady as error:
            self._tell(making, WaitReason(Waiting.STAGING, f"{error.label} is still being fetched"))
            once_made(self.context, error.artifact_id, partial(self._submit, making))
        except (NoRoom, DiskFull) as error:
            self._wait_for_room(making, error)
        except Exception as error:  # whatever it is, whoever named it must hear of it
            if not isinstance(error, (StorageError, OSError)):
                log.exception("making artifact %d met a bug", found.id)
            self._end(making, partial(self._failed, making=making, fault=_sentence(error)))

    def _bring(self, making: Making, found: Artifact, lease: Lease) -> tuple[str | None, Fetched]:
        """Return what an artifact is, with the name under which its address is remembered; None for none."""
        assert found.stated is not None, f"artifact {found.id} is to be made of nothing"
        stated = Input.model_validate_json(found.stated)
        if found.parent_id is not None:
            path = stated.uri.partition("/")[2]
            return None, take(self.context, found.parent_id, path)
        wanted = self.wanted(found)
        return wanted.key, self.fetcher.known(wanted, lease) or self._fetch(making, wanted)

    def wanted(self, found: Artifact) -> Wanted:
        """Return what an artifact is fetched from that has no parent."""
        assert found.variables is not None and found.stated is not None, f"artifact {found.id} has no source"
        stated = Input.model_validate_json(found.stated)
        sealed = variables.sealed(self.context.database.reader(), found.variables)
        _, environment, secret = self.context.unsealed(found.owner_uid, sealed)
        address, home = secret.get(SOURCE, stated.uri), environment.get("HOME")
        return self.fetcher.wanted(stated, address, owner_uid=found.owner_uid, home=home, key_name=stated.key)

    def _fetch(self, making: Making, wanted: Wanted) -> Fetched:
        pace = Pace(self.context.clock, Waiting.STAGING, "fetched")

        def progress(done: int, total: int | None) -> None:
            self._tell(making, pace.reason(done, total))

        def failed(error: SourceFailed, wait_s: float) -> None:
            again = f"{_sentence(error)}; tried again in {format_duration(wait_s)}"
            self._tell(making, WaitReason(Waiting.STAGING, again))

        self._tell(making, WaitReason(Waiting.STAGING, "looking at its source"))
        return self.fetcher.fetch(
            wanted, "the artifact", progress=progress, failed=failed, cancelled=lambda: making.abandoned
        )

    def _wait_for_room(self, making: Making, error: NoRoom | DiskFull) -> None:
        if not isinstance(error, NoRoom):
            error = NoRoom("it", self.context.config.storage.min_free_bytes, cache.room_on_disk(self.context))
        if error.need_bytes > cache.disk_size(self.context):
            fault = f"{error.reason.sentence}; this disk cannot hold it"
            self._end(making, partial(self._failed, making=making, fault=fault))
            return
        self._tell(making, error.reason)
        cache.await_room(
            self.context,
            need_bytes=error.need_bytes,
            free_bytes=error.free_bytes,
            wanted=lambda: not making.abandoned,
            then=lambda: self._submit(making),
        )

    def _tell(self, making: Making, reason: WaitReason) -> None:
        making.reason = reason
        self.context.shelf.changed({making.artifact_id})

    def _made(self, change: Change, making: Making, key: str | None, fetched: Fetched) -> None:
        artifacts.become_ready(
            change.connection,
            making.artifact_id,
            digest=fetched.tree_digest,
            size_bytes=fetched.size_bytes,
            files=fetched.files,
            pins=pins_text(fetched),
        )
        if key is not None:
            remember(change, key, fetched)
            cache.trim(change)

    def _failed(self, change: Change, making: Making, fault: str) -> None:
        artifacts.become_failed(change.connection, making.artifact_id, fault[:FAULT_MAX])

    def _end(self, making: Making, work: Work) -> None:
        """Write down how it ended, and then tell those who wait for it."""
        self.context.desk.insist(work)
        self._making.pop(making.artifact_id, None)
        self.context.shelf.changed({making.artifact_id})


def _sentence(error: Exception) -> str:
    if isinstance(error, StorageError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
