"""The device locks this runner holds; the spawner keeps a copy of each, so that they outlive a killed runner."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from runner.core.errors import StokerError
from runner.daemon.context import Context
from runner.gpus import locks

log = logging.getLogger("stoker.devices")


class DeviceLocks:
    """Lock descriptors by device UUID. Used by the turn's thread only."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._directory = Path(context.config.gpu.lock_dir)
        self._descriptors: dict[str, int] = {}
        # Taken anew in a recovery: somebody else may have had the device since its attempt was given it.
        self._unproven: set[str] = set()

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._descriptors

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._descriptors))

    def take(self, uuids: Iterable[str]) -> dict[str, str]:
        """Take the locks of devices, all or none; return who refused which, empty when all are ours."""
        taken: dict[str, int] = {}
        refused: dict[str, str] = {}
        for uuid in uuids:
            try:
                descriptor = locks.acquire(self._directory, uuid)
            except StokerError as error:
                refused[uuid] = f"a lock ({error})"
                continue
            if descriptor is None:
                refused[uuid] = self._holder(uuid)
            else:
                taken[uuid] = descriptor
        if refused:
            for descriptor in taken.values():
                os.close(descriptor)
            return refused
        for uuid, descriptor in taken.items():
            self._hold(uuid, descriptor)
        return {}

    def drop(self, uuid: str) -> None:
        """Let go of a device; its lock is free once no watcher holds it either."""
        descriptor = self._descriptors.pop(uuid, None)
        self._unproven.discard(uuid)
        if descriptor is not None:
            with suppress(StokerError):
                self.context.link.drop(uuid)
            os.close(descriptor)

    def drop_all_but(self, uuids: Collection[str]) -> None:
        """Let go of all others, those included that a killed runner had only claimed and left with the spawner."""
        with suppress(StokerError):
            for uuid in self.context.link.names():
                if uuid not in uuids and uuid not in self._descriptors:
                    self.context.link.drop(uuid)
        for uuid in self:
            if uuid not in uuids:
                self.drop(uuid)

    def keep_all(self) -> None:
        """Leave every lock with a spawner that has just come up."""
        for uuid, descriptor in self._descriptors.items():
            self._keep(uuid, descriptor)

    def descriptors(self, uuids: Sequence[str]) -> list[int] | None:
        """Return the descriptors that a watcher holds with us; None where one was lost on the way."""
        if any(uuid not in self._descriptors or uuid in self._unproven for uuid in uuids):
            return None
        return [self._descriptors[uuid] for uuid in uuids]

    def regain(self, uuid: str, attempt_id: int) -> None:
        """Hold the lock of a device again that an earlier runner gave to an attempt.

        From the spawner, else from the attempt's watcher; where both are dead the lock is free and taken anew. Where
        none of this works the device is given to nobody until its watcher has ended and the lock can be taken.
        """
        if uuid in self._descriptors:
            return
        descriptor = self._from_spawner(uuid)
        if descriptor is None:
            descriptor = self._from_watcher(uuid, attempt_id)
        if descriptor is None:
            with suppress(StokerError):
                descriptor = locks.acquire(self._directory, uuid)
            self._unproven.add(uuid)
        if descriptor is None:
            log.warning("the lock of %s cannot be held again", uuid)
        else:
            self._hold(uuid, descriptor)

    def _from_spawner(self, uuid: str) -> int | None:
        try:
            descriptor = self.context.link.give(uuid)
        except StokerError:
            return None
        if descriptor is None or locks.holds(descriptor, self._directory, uuid):
            return descriptor
        os.close(descriptor)
        return None

    def _from_watcher(self, uuid: str, attempt_id: int) -> int | None:
        record = self.context.executor.look(self.context.control_dir(attempt_id))
        pidfd = self.context.executor.reopen(record)
        if pidfd is None or record.start is None:
            return None
        try:
            return locks.regain(self._directory, uuid, pid=record.start.watcher.pid, pidfd=pidfd)
        finally:
            os.close(pidfd)

    def _hold(self, uuid: str, descriptor: int) -> None:
        self._descriptors[uuid] = descriptor
        self._keep(uuid, descriptor)

    def _keep(self, uuid: str, descriptor: int) -> None:
        try:
            self.context.link.keep(uuid, descriptor)
        except StokerError as error:
            # A spawner that went away is replaced, and the new one is given all of them.
            log.warning("the spawner does not keep the lock of %s: %s", uuid, error)

    def _holder(self, uuid: str) -> str:
        pid = locks.holder_pid(self._directory, uuid)
        return f"another runner of this box (pid {pid})" if pid is not None else "another runner of this box"
