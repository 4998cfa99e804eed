"""Reads artifacts again and mends what is damaged: from where it came, where a job still says where that is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from runner.core.errors import StokerError, Unavailable
from runner.core.units import format_duration
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, NoRoom, Wanted
from runner.daemon.launch import JobFacts
from runner.daemon.make import Maker
from runner.daemon.stage import Stager
from runner.service.operations import Operation
from runner.service.outputs import printable
from runner.state import artifacts, staged
from storage.errors import Cancelled, Corrupt, NotStored, SourceFailed, StorageError
from storage.store import BadObject
from storage.upkeep import restore
from storage.views import mend

BAD_SHOWN = 1000


class Verifier:
    """Used by several threads at once."""

    def __init__(self, context: Context, fetcher: Fetcher, *, stager: Stager, maker: Maker) -> None:
        self.context = context
        self.fetcher = fetcher
        self.stager = stager
        self.maker = maker

    def verify(self, digests: Sequence[str], owner_uid: int | None, operation: Operation) -> dict[str, Any]:
        """Hash trees again, set bad objects aside and fetch them again as `owner_uid` (None: anybody) could.

        Raise `Cancelled`, `Unavailable` where the store cannot be read.

        The result names what was bad, what is whole again, and what is lost and why.
        """

        def cancelled() -> bool:
            return operation.cancelled

        store = self.context.store
        with store.lease("verify") as lease:
            wanted = list(dict.fromkeys(digests))
            for digest in wanted:
                store.keep(lease, digest)
            operation.say("checking")
            restore(store)
            try:
                bad = store.verify(*wanted, report=operation.report, cancelled=cancelled)
            except OSError as error:
                hint = "nothing was set aside; verify again once it can be read"
                raise Unavailable(f"the store cannot be read: {error.strerror}", hint=hint) from error
            views = self._mend_views(wanted)
            mended, lost = list[str](), list[dict[str, Any]]()
            for tree in dict.fromkeys(each.tree for each in bad):
                why = self._fetch_again(tree, owner_uid, operation)
                restore(store)
                if store.has_tree(tree):
                    mended.append(tree)
                else:
                    lost.append({"tree": tree, "why": why})
        return {
            "trees": len(wanted),
            "views": views,
            "bad": [_told(each) for each in bad[:BAD_SHOWN]],
            "bad_count": len(bad),
            "mended": mended,
            "lost": lost,
        }

    def _mend_views(self, trees: Sequence[str]) -> list[dict[str, Any]]:
        """Mend views that show something else than their trees, as one whose files a job's user changed."""
        store, mended = self.context.store, list[dict[str, Any]]()
        for tree in filter(store.has_tree, trees):
            with suppress(NotStored, Corrupt):
                if changed := mend(store, store.manifest(tree)):
                    mended.append({"tree": tree, "paths": [printable(path) for path in changed[:BAD_SHOWN]]})
        return mended

    def _fetch_again(self, tree: str, owner_uid: int | None, operation: Operation) -> str:
        """Ask the sources that a tree is known from; return why it is not whole again, if it is not."""
        why = "nothing says where it came from"
        ways, closed = self._ways(tree, owner_uid)
        why = closed or why
        for wanted in ways:
            operation.say(f"fetching {tree[:12]} again from {wanted.uri.shown}")

            def failed(error: SourceFailed, wait_s: float, where: str = wanted.uri.shown) -> None:
                operation.say(f"{where}: {error.message}; tried again in {format_duration(wait_s)}")

            try:
                fetched = self.fetcher.fetch(
                    wanted,
                    f"artifact {tree[:12]}",
                    progress=operation.report,
                    failed=failed,
                    cancelled=lambda: operation.cancelled,
                )
            except Cancelled:
                raise
            except NoRoom as error:
                why = error.reason.sentence
            except (StorageError, OSError) as error:
                why = f"{wanted.uri.shown}: {error}"
            else:
                if fetched.tree_digest == tree:
                    return ""
                why = f"{wanted.uri.shown} has changed: it is {fetched.tree_digest[:12]} now"
        return why

    def _ways(self, tree: str, owner_uid: int | None) -> tuple[list[Wanted], str]:
        """Return the addresses that were found to be a tree, as those who asked would fetch them; each once.

        The text says why one is not among them: what a job was told of it cannot be unsealed.
        """
        connection = self.context.database.reader()
        ways, closed = dict[str, Wanted](), ""
        for artifact in artifacts.made_as(connection, tree, owner_uid):
            try:
                wanted = self.maker.wanted(artifact)
                ways[wanted.key] = wanted
            except StokerError as error:
                closed = f"the source of {artifact.label} cannot be read: {error.message}"
        for job_id, name in staged.inputs_of(connection, tree, owner_uid):
            try:
                for source in self.stager.sources(self._facts(job_id)):
                    if source.name == name and source.artifact_id is None:
                        ways.setdefault(source.wanted.key, source.wanted)
            except StokerError as error:
                closed = f"the inputs of job {job_id} cannot be read: {error.message}"
        return list(ways.values()), closed

    def _facts(self, job_id: int) -> JobFacts:
        found: list[JobFacts] = []
        self.context.desk.insist(lambda _: found.append(self.context.facts(job_id)))
        return found[0]


def _told(bad: BadObject) -> dict[str, Any]:
    return {"tree": bad.tree, "path": printable(bad.path), "digest": bad.digest, "why": bad.why}
