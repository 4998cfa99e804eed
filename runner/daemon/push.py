"""Writes trees to the places that users name, as an operation: told, cancelled, tried again, never sent twice."""

from __future__ import annotations

from typing import Any

from runner.core.errors import UsageError
from runner.core.units import format_duration
from runner.daemon.fetch import Fetcher
from runner.service.operations import Operation
from runner.service.push import Going, Push
from storage.errors import SourceFailed
from storage.upload import Pushed


class Pusher:
    """Used by several threads at once."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher

    def push(self, push: Push, operation: Operation) -> dict[str, Any]:
        """Write trees one after another; say what travelled. Raise `StorageError`, or `UsageError` for a bad disk."""
        done = [(tree, self._one(push, tree, operation)) for tree in push.trees]
        return {
            "pushed": [
                {
                    "name": tree.name,
                    "digest": tree.digest,
                    "uri": tree.shown,
                    "files": pushed.files,
                    "size_bytes": pushed.size_bytes,
                    "sent_bytes": pushed.sent_bytes,
                    "older_files": pushed.beside,
                }
                for tree, pushed in done
            ]
        }

    def _one(self, push: Push, tree: Going, operation: Operation) -> Pushed:
        what, troubled = f"writing {tree.name} to {tree.shown}", False
        operation.say(what)

        def progress(done: int, total: int | None) -> None:
            nonlocal troubled
            if troubled:
                troubled = False
                operation.say(what)
            operation.report(done, total)

        def failed(error: SourceFailed, wait_s: float) -> None:
            nonlocal troubled
            troubled = True
            operation.say(f"{error.message}; tried again in {format_duration(wait_s)}")

        wanted = self.fetcher.place(push.place, tree.address, owner_uid=push.owner_uid, home=push.home)
        try:
            return self.fetcher.push(
                tree.digest, wanted, progress=progress, failed=failed, cancelled=lambda: operation.cancelled
            )
        except OSError as error:
            hint = "give another directory"
            raise UsageError(f"{tree.shown} cannot be written: {error.strerror}", hint=hint) from None
