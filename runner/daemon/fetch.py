"""Brings addresses into the store and trees out of it, for whoever asks, minding what is known and the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from runner.config import Config
from runner.core import addresses
from runner.core.errors import StokerError
from runner.core.job import Ref
from runner.core.reasons import Waiting, WaitReason
from runner.core.spec import Input, Upload
from runner.core.units import format_size
from runner.daemon import cache, keys
from runner.daemon.context import Context
from runner.daemon.guard import safely
from runner.daemon.launch import JobFacts
from runner.identity.users import user_name
from runner.state import staged
from storage.archives.members import Limits, is_archive
from storage.credentials import Credential
from storage.download import Fetched, fetch
from storage.errors import Cancelled, DiskFull, SourceFailed, SourceRefused
from storage.journal import set_aside
from storage.leases import Lease
from storage.sources.base import Proxies, SourceOptions
from storage.throttle import Throttle
from storage.transfer import Retry
from storage.upkeep import restore
from storage.upload import Pushed, push
from storage.uri import Uri, parse

QUIET_NS = 200_000_000
# Kinds whose addresses hold all that opens them.
OPEN_TO_ALL = frozenset({"web", "ftp", "local"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """An address to be brought into the store, and for whom.

    `key` is the name under which it is remembered, `home` where its user keeps credentials of their own. `refresh`
    asks the source again though it is known, `endpoint` is the server that the user says is asked, `opened_by` the
    credential that opens it: whose, and its name. `identity` tells apart whoever may see different things. An archive
    is unpacked where `extract` says so.
    """

    uri: Uri
    key: str
    home: str | None = None
    refresh: bool = False
    endpoint: str | None = None
    extract: bool = True
    opened_by: tuple[int, str] | None = None
    identity: str = ""


class NoRoom(Exception):
    """The disk has not the room; whoever asked waits and tries again."""

    def __init__(self, what: str, need_bytes: int, free_bytes: int) -> None:
        super().__init__(what)
        self.need_bytes, self.free_bytes = need_bytes, free_bytes
        sentence = f"{what} needs {format_size(need_bytes)} of disk and {format_size(free_bytes)} are free"
        self.reason = WaitReason(Waiting.DISK, sentence, {"need_bytes": need_bytes, "free_bytes": free_bytes})


def source_options(config: Config, environ: Mapping[str, str], *, system: bool) -> SourceOptions:
    """Return how sources may be reached: by the settings, and where these name no proxy by the runner's environment.

    A system runner reaches less: it can do more on this box than those who ask it.
    """
    sources, rate = config.sources, config.storage.bandwidth_bytes

    def proxy(setting: str, *names: str) -> str:
        return "" if setting == "none" else setting or next((environ[name] for name in names if environ.get(name)), "")

    return SourceOptions(
        s3_endpoint=sources.s3.endpoint or None,
        s3_region=sources.s3.region or None,
        allow_local_addresses=not system,
        allow_hosts=frozenset(sources.allow_hosts),
        ca_file=Path(sources.ca_file) if sources.ca_file else None,
        proxies=Proxies(
            http=proxy(sources.http_proxy, "http_proxy", "HTTP_PROXY") or None,
            https=proxy(sources.https_proxy, "https_proxy", "HTTPS_PROXY") or None,
            direct=proxy(sources.no_proxy, "no_proxy", "NO_PROXY"),
        ),
        throttle=Throttle(rate) if rate else None,
        unsized_bytes=sources.unsized_limit_bytes,
    )


class Fetcher:
    """The one way in and out for bytes; used by several threads at once."""

    def __init__(self, context: Context, options: SourceOptions) -> None:
        self.context = context
        self.options = options

    def wanted(self, stated: Input, address: str, *, owner_uid: int, home: str | None, key_name: str | None) -> Wanted:
        """Return what is fetched for a source as it was stated; `address` is its own, secrets and all.

        `key_name` is the key that opens it, `home` where its user keeps credentials of their own.
        """
        uri = parse(address, PurePath("/"), stated.source_kind)
        opened_by = (owner_uid, key_name) if key_name is not None else None
        name = self.remembered(
            uri, endpoint=stated.endpoint, extract=stated.extract, opened_by=opened_by, owner_uid=owner_uid
        )
        return Wanted(
            uri,
            name,
            home=home,
            refresh=stated.refresh,
            endpoint=stated.endpoint,
            extract=stated.extract,
            opened_by=opened_by,
            identity=self._identity(uri, opened_by, owner_uid),
        )

    def place_of(self, facts: JobFacts, ref: Ref, name: str, stated: Upload) -> Wanted:
        """Return where an element writes a tree to, its places filled in; `name` is that of a sealed address."""
        user = user_name(facts.owner_uid) or str(facts.owner_uid)
        address = addresses.of_element(facts.secret_sources.get(name, stated.uri), ref, name=facts.name, user=user)
        return self.place(stated, address, owner_uid=facts.owner_uid, home=facts.variables.get("HOME"))

    def place(self, stated: Upload, address: str, *, owner_uid: int, home: str | None) -> Wanted:
        """Return where a tree is written to; `address` is its own, secrets and all."""
        as_source = Input(uri=stated.uri, source_kind=stated.source_kind, endpoint=stated.endpoint)
        return self.wanted(as_source, address, owner_uid=owner_uid, home=home, key_name=stated.key)

    def _identity(self, address: Uri, opened_by: tuple[int, str] | None, owner_uid: int) -> str:
        """Return for whom an address is read: for a key, for a user, for who knows a secret of it, or for all."""
        if opened_by is not None:
            return keys.mark(self.context.database.reader(), opened_by)
        if address.kind not in OPEN_TO_ALL or address.is_local:
            return f"for={owner_uid}"
        secret = address.text != address.shown
        return self.context.sealer.keyed_hash(os.fsencode(address.text)).hex() if secret else ""

    def remembered(
        self,
        address: Uri,
        *,
        endpoint: str | None = None,
        extract: bool = True,
        opened_by: tuple[int, str] | None = None,
        owner_uid: int | None = None,
    ) -> str:
        """Return the name under which an address is remembered: one that holds a secret by a keyed hash of it.

        The same address may be something else at another server, or for another kind of source, and an archive that
        is unpacked is another thing than the file. What was fetched with a key is remembered for that key alone, and
        for the account and server that it names; what was opened with what a user keeps at home for that user alone.
        """
        name = address.text
        if address.text != address.shown:
            name = f"{address.shown} {self.context.sealer.keyed_hash(os.fsencode(address.text)).hex()}"
        if address.kind != parse(address.text, PurePath("/")).kind:
            name += f" from={address.kind}"
        if endpoint is not None:
            name += f" endpoint={endpoint}"
        if opened_by is not None:
            name += f" {keys.mark(self.context.database.reader(), opened_by)}"
        elif owner_uid is not None and address.kind not in OPEN_TO_ALL:
            name += f" for={owner_uid}"
        return f"{name} unpacked" if extract and not address.is_tree and is_archive(address.name) else name

    def known(self, wanted: Wanted, lease: Lease) -> Fetched | None:
        """Return what an address was when it was last fetched, kept by the lease, without asking anybody.

        A local path may have changed since, so it is read again.
        """
        if wanted.refresh or wanted.uri.is_local:
            return None
        last = self._last(wanted)
        return last if last is not None and self.context.store.keep(lease, last.tree_digest) else None

    def _last(self, wanted: Wanted) -> Fetched | None:
        row = staged.source(self.context.database.reader(), wanted.key)
        return Fetched(row[0], row[1], row[2], json.loads(row[3])) if row is not None else None

    def fetch(
        self,
        wanted: Wanted,
        what: str,
        *,
        progress: Callable[[int, int | None], None],
        failed: Callable[[SourceFailed, float], None],
        cancelled: Callable[[], bool],
    ) -> Fetched:
        """Bring what an address names into the store. Raise `NoRoom`, saying `what` it was for, or a `StorageError`.

        `progress(done, total)` is called a few times a second at most, from any thread; `failed` before each retry.
        """
        self._check_own(wanted.uri)
        sized, short, missing = False, False, 0

        def look(done: int, total: int | None) -> None:
            nonlocal sized, missing, short
            if not sized and total is not None:
                sized, missing = True, total - done
                # A download that goes on needs the room that it holds only once.
                held = set_aside(self.context.store.root / "partial")
                short = cache.room_on_disk(self.context) + held < missing + self.min_free_bytes
            else:
                short = cache.room_on_disk(self.context) < self.min_free_bytes
            progress(done, total)

        try:
            fetched = fetch(
                self.context.store,
                wanted.uri,
                self.options_for(wanted),
                progress=self._quietly(look),
                cancelled=lambda: cancelled() or short,
                retry=Retry(failed=failed),
                extract=self._limits() if wanted.extract else None,
                identity=wanted.identity,
                was=self._last(wanted),
            )
        except (Cancelled, DiskFull) as error:
            if isinstance(error, Cancelled) and not short:
                raise
            # An archive shows only while it is unpacked how much it needs: more than was there, at least.
            free = cache.room_on_disk(self.context)
            raise NoRoom(what, max(missing + self.min_free_bytes, free + 1), free) from None
        # What this brought may be all that a damaged tree lacked.
        safely("restore damaged trees", restore, self.context.store)
        return fetched

    def _limits(self) -> Limits:
        settings = self.context.config.storage
        return Limits(settings.extract_members, settings.extract_limit_bytes, settings.extract_ratio)

    def push(
        self,
        digest: str,
        wanted: Wanted,
        *,
        progress: Callable[[int, int | None], None],
        failed: Callable[[SourceFailed, float], None],
        cancelled: Callable[[], bool],
    ) -> Pushed:
        """Write a tree to an address, its manifest last; raise any `StorageError`.

        `progress(done, total)` is called a few times a second at most, from any thread; `failed` before each retry.
        What was fetched from there is forgotten, before too: a kill may leave some of it written.
        """
        self._check_own(wanted.uri)
        options = self.options_for(wanted)
        self._forget(wanted.uri)
        try:
            return push(
                self.context.store,
                digest,
                wanted.uri,
                options,
                progress=self._quietly(progress),
                cancelled=cancelled,
                retry=Retry(failed=failed),
                identity=wanted.key,
            )
        finally:
            self._forget(wanted.uri)

    def _forget(self, place: Uri) -> None:
        """Forget what a place that is written to was, whoever fetched it."""
        if not place.is_local:
            shown = place.shown.partition("?")[0].rstrip("/") + "/"
            self.context.desk.insist(lambda change: staged.forget_at(change.connection, shown))

    def _quietly(self, tell: Callable[[int, int | None], None]) -> Callable[[int, int | None], None]:
        """Return what calls `tell` a few times a second at most."""
        told_ns = 0

        def look(done: int, total: int | None) -> None:
            nonlocal told_ns
            now_ns = self.context.clock.monotonic_ns()
            if now_ns - told_ns >= QUIET_NS:
                told_ns = now_ns
                tell(done, total)

        return look

    def options_for(self, wanted: Wanted) -> SourceOptions:
        """Return how an address may be reached: with its key, unsealed for this transfer alone.

        Without a key it is what the tools of the user who asks keep at home, but only where the runner is they
        themselves: what they say is their home may be another's. Which hosts they know holds for a key as well. Nor is
        a path anything that a runner of more than one user opens by its own right.
        """
        if wanted.uri.is_local and not self.options.allow_local_addresses:
            raise SourceRefused(f"{wanted.uri.shown} is a path, which only a runner of your own opens", "use --private")
        credential = self._credential(wanted)
        options = replace(self.options, endpoint=wanted.endpoint, credential=credential)
        if wanted.home is None or not options.allow_local_addresses:
            return options
        aws, gcloud, azure, ssh = (Path(wanted.home, name) for name in (".aws", ".config/gcloud", ".azure", ".ssh"))
        if credential is not None:
            return replace(options, ssh_dir=ssh) if credential.kind == "git-ssh" else options
        return replace(options, aws_dir=aws, gcloud_dir=gcloud, azure_dir=azure, ssh_dir=ssh)

    def _check_own(self, uri: Uri) -> None:
        """Refuse a path below the state directory and in no job's: keys, records and the store are there."""
        if not uri.is_local:
            return
        real, paths = Path(os.path.realpath(uri.path)), self.context.paths
        if real.is_relative_to(os.path.realpath(paths.state_dir)) and not real.is_relative_to(
            os.path.realpath(paths.jobs_dir)
        ):
            raise SourceRefused(f"{uri.shown} is of this runner's own state", "name a place of your own")

    def _credential(self, wanted: Wanted) -> Credential | None:
        if wanted.opened_by is None:
            return None
        try:
            return keys.opened(self.context, *wanted.opened_by)
        except StokerError as error:
            raise SourceRefused(error.message, error.hint) from None

    def check_room(self, what: str) -> None:
        """Raise `NoRoom` where the disk has less left than `[storage] min_free`."""
        free = cache.room_on_disk(self.context)
        if free < self.min_free_bytes:
            raise NoRoom(what, self.min_free_bytes, free)

    @property
    def min_free_bytes(self) -> int:
        """How much of the disk is left to others."""
        return self.context.config.storage.min_free_bytes
