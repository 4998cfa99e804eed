"""Runs git for one fetch: in a private directory, with nobody's configuration, and with the key that was given.

Git and ssh read the home directory, the environment and the repository's own configuration; here each of them is
empty or named. No password is ever an argument or part of a URL that git sees.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

from storage import files, programs
from storage.errors import (
    DiskFull,
    SourceFailed,
    SourceMissing,
    SourceRefused,
    StorageError,
    disk_errors,
)
from storage.hubs import GitAddress
from storage.programs import Ended
from storage.sources.base import SourceOptions
from storage.sources.proxies import proxy_for
from storage.sources.wire import Wire, authorization
from storage.throttle import Throttle

_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")
_ADVERTISED = "application/x-git-upload-pack-advertisement"
_REFS = "/info/refs"
_MISSING = re.compile(
    r"not found|does not exist|does not appear to be a git repository|not our ref|couldn't find remote ref"
    r"|no such file or directory|not a git repository",
    re.IGNORECASE,
)
_UNKNOWN_HOST = re.compile(r"no \S+ host key is known for", re.IGNORECASE)
_HOST_KEY = re.compile(r"host key verification failed|host identification has changed", re.IGNORECASE)
_REFUSED = re.compile(
    r"permission denied|authentication failed|access denied|could not read username|error: 40[13]|dubious ownership"
    r"|transport '.*' not allowed|certificate|not authorized|invalid format|error in libcrypto",
    re.IGNORECASE,
)
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_BROKEN = re.compile(
    r"could not resolve|connection (?:refused|reset|closed|timed out)|failed to connect|timed out|early eof|hung up"
    r"|unexpected disconnect|transfer closed|operation too slow|error: (?:429|5\d\d)|network is unreachable"
    r"|temporary failure|invalid index-pack output|recv failure|send failure|gnutls|empty reply",
    re.IGNORECASE,
)
_UNREACHED = re.compile(r"could not resolve|connection refused|failed to connect|no route to host", re.IGNORECASE)
_NOISE = re.compile(
    r"warning|hint|remote: (?:counting|compressing|enumerating|total)|receiving|resolving"
    r"|fatal: could not read from remote|please make sure you have|and the repository exists",
    re.IGNORECASE,
)
_OURS = re.compile(r"^(fatal|error|remote):\s*")


class Session:
    """A private directory with an empty bare repository in it; `close` removes it, whoever still runs ends."""

    def __init__(self, options: SourceOptions, wire: Wire) -> None:
        """Make the directory in `options.scratch`."""
        if options.scratch is None:
            raise SourceRefused("Git needs a directory to fetch into", "this is a bug: no scratch directory was given")
        self._options, self._wire = options, wire
        self._closed = False
        self.root = options.scratch / secrets.token_hex(8)
        with disk_errors(options.scratch):
            for each in (self.root, self.root / "home"):
                each.mkdir(mode=0o700)
            self._ssh = self._ssh_options()

    def close(self) -> None:
        """End what runs and remove the directory."""
        self._closed = True
        files.remove_directory(self.root)

    def reach(self, address: GitAddress, shown: str) -> tuple[GitAddress, Mapping[str, str]]:
        """Return the address that git shall use, and the settings that go with it; every redirect was followed.

        The rules on where a fetch may go are checked here, and git is bound to the address that was checked.
        """
        if address.protocol == "file":
            if not self._options.allow_local_addresses:
                raise SourceRefused(f"{shown} is a local repository, which this runner does not fetch from")
            return address, {}
        if address.protocol == "ssh":
            return address, {}
        headers = {**authorization(address.login), "Git-Protocol": "version=2"}
        asked = f"{address.remote}{_REFS}?service=git-upload-pack"
        response = self._wire.get(asked, headers, shown=shown)
        response.close()
        found = urlsplit(response.url)
        if response.headers.get("content-type", "") != _ADVERTISED or not found.path.endswith(_REFS):
            raise SourceRefused(f"{shown} is no Git repository", "check the address; leave out --from git for a file")
        remote = f"{found.scheme}://{found.netloc}{found.path.removesuffix(_REFS)}"
        same = origin(remote) == origin(address.remote)
        reached = GitAddress(found.scheme, remote, address.ref, address.login if same else None)
        settings = {f"http.{name}": value for name, value in self._http_settings().items()}
        for name, value in authorization(reached.login).items():
            settings[f"http.{found.scheme}://{found.netloc}/.extraHeader"] = f"{name}: {value}"
        place, port = self._wire.check(remote, shown), found.port or (443 if found.scheme == "https" else 80)
        proxy = proxy_for(self._options.proxies, found.scheme, found.hostname or "", port)
        if proxy is not None:
            # It finds the address by itself, so that git is not bound to one.
            settings["http.proxy"] = proxy.geturl()
        elif place is not None:
            settings["http.curloptResolve"] = f"{found.hostname}:{port}:{place}"
        return reached, settings

    def git(
        self,
        *arguments: str,
        shown: str,
        cancelled: Callable[[], bool],
        address: GitAddress | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run git in the repository and return what it wrote; with an address it may use that one's protocol."""
        looking = self._watched(address, shown, cancelled) if address is not None else cancelled
        environment = self.environment(address, settings or {}, shown)
        travels = address is not None and address.protocol != "file"
        ended = self.run(["git", *arguments], environment, shown=shown, cancelled=looking, travels=travels)
        if ended.code != 0:
            raise failure(ended, shown)
        return ended.out

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        shown: str,
        cancelled: Callable[[], bool],
        travels: bool = False,
    ) -> Ended:
        """Run a program in the private directory; where its pack `travels`, at the rate of all transfers."""
        return programs.run(
            command,
            cwd=self.root,
            env=env,
            shown=shown,
            quiet_s=self._options.stall_s,
            cancelled=lambda: self._closed or cancelled(),
            pace=self._pace(self._options.throttle) if travels and self._options.throttle is not None else None,
        )

    def _watched(self, address: GitAddress, shown: str, cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """Return `cancelled`, which looks at the packs that arrive each time that it is asked, and tells their size."""
        limit = self._options.unsized_bytes

        def look() -> bool:
            size = self._packed()
            if size > limit and address.protocol != "file":
                raise SourceRefused(
                    f"{shown} sends more than {limit >> 20} MiB without saying how many there are",
                    "see [sources] unsized_limit",
                )
            if size:
                self._options.brought(size)
            return cancelled()

        return look

    def _pace(self, throttle: Throttle) -> Callable[[], float]:
        """Return what counts the packs that arrive, by how they grow, and says how long to take no more of them."""
        counted = self._packed()

        def pace() -> float:
            nonlocal counted
            came = max(0, self._packed() - counted)
            counted += came
            return throttle.take(came) if came else 0.0

        return pace

    def _packed(self) -> int:
        """Return the bytes of the packs that are there or on their way."""
        size = 0
        for each in (self.root / "repository/objects/pack").glob("*pack*"):
            if each.suffix in {"", ".pack"}:
                with suppress(FileNotFoundError):  # one that is whole gets another name
                    size += each.stat().st_size
        return size

    def environment(self, address: GitAddress | None, settings: Mapping[str, str], shown: str) -> Mapping[str, str]:
        """Return all that git, and what git starts, may know."""
        fixed = {
            "core.hooksPath": "/dev/null",
            "core.fsmonitor": "false",
            "credential.helper": "",
            "fetch.recurseSubmodules": "false",
            "fetch.unpackLimit": "1",
            "gc.auto": "0",
            "maintenance.auto": "false",
            "protocol.allow": "never",
            "protocol.ext.allow": "never",
            **settings,
        }
        env = {
            "PATH": programs.PATH,
            "HOME": str(self.root / "home"),
            "LC_ALL": "C",
            "GIT_DIR": str(self.root / "repository"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS_REQUIRE": "never",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            # Alone decides, whatever any configuration says.
            "GIT_ALLOW_PROTOCOL": address.protocol if address is not None else "none",
            "GIT_CONFIG_COUNT": str(len(fixed)),
        }
        for index, (name, value) in enumerate(fixed.items()):
            env[f"GIT_CONFIG_KEY_{index}"], env[f"GIT_CONFIG_VALUE_{index}"] = name, value
        if address is not None and address.protocol == "ssh":
            env["GIT_SSH_COMMAND"] = shlex.join(self.ssh(address, shown))
            env["GIT_SSH_VARIANT"] = "ssh"
        return env

    def ssh(self, address: GitAddress, shown: str) -> Sequence[str]:
        """Return the ssh command for an address, up to where the host stands."""
        host, port = ssh_place(address)
        place = self._wire.check(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/", shown)
        if place is None:
            return ["ssh", *self._ssh]
        # The address that was checked is the one connected to; its key is looked up by the name.
        alias = host if port == 22 else f"[{host}]:{port}"
        return ["ssh", *self._ssh, "-o", f"HostName={place}", "-o", f"HostKeyAlias={alias}"]

    def _http_settings(self) -> Mapping[str, str]:
        settings = {
            "followRedirects": "false",
            "proxy": "",
            "lowSpeedLimit": "1",
            "lowSpeedTime": str(max(1, int(self._options.stall_s))),
        }
        return {**settings, "sslCAInfo": str(self._options.ca_file)} if self._options.ca_file else settings

    def _ssh_options(self) -> Sequence[str]:
        """Return ssh's options; keys given go into private files first.

        A host is known by the key's own known_hosts, else by the user's; nobody else's word is taken for it.
        """
        credential, own = self._options.credential, self._options.ssh_dir
        identities: list[Path] = []
        trusted: list[Path] = []
        if credential is not None and credential.kind == "git-ssh":
            identities.append(self._private("key", credential.values["private_key"]))
            if known := credential.values.get("known_hosts"):
                trusted.append(self._private("known_hosts", known))
        elif credential is None and own is not None:
            identities += [own / name for name in _IDENTITIES if (own / name).is_file()]
        if not trusted and own is not None and (own / "known_hosts").is_file():
            trusted.append(own / "known_hosts")
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": " ".join(map(_quoted, trusted)) or "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "HashKnownHosts": "no",
            "UpdateHostKeys": "no",
            "ConnectTimeout": str(max(1, int(self._options.stall_s))),
            "ServerAliveInterval": str(max(1, int(self._options.stall_s / 3))),
            "ClearAllForwardings": "yes",
            "ControlPath": "none",
            "LogLevel": "ERROR",
        }
        found = ["-F", "/dev/null"]
        for name, value in options.items():
            found += ["-o", f"{name}={value}"]
        for each in [_quoted(path) for path in identities] or ["none"]:
            found += ["-o", f"IdentityFile={each}"]
        return found

    def _private(self, name: str, text: str) -> Path:
        path = self.root / name
        path.touch(mode=0o600)
        path.write_text(text.replace("\r\n", "\n").rstrip("\n") + "\n", encoding="utf-8")
        return path


def argument(address: GitAddress) -> str:
    """Return the address as git takes it: a local path as a URL, so that it is fetched from like any other."""
    return "file://" + quote(address.remote, errors="surrogateescape") if address.protocol == "file" else address.remote


def origin(remote: str) -> tuple[str, str]:
    """Return the scheme and place of a URL."""
    parts = urlsplit(remote)
    return parts.scheme, parts.netloc.lower()


def ssh_place(address: GitAddress) -> tuple[str, int]:
    """Return host and port of an address that ssh reaches."""
    if "://" in address.remote:
        parts = urlsplit(address.remote)
        return parts.hostname or "", parts.port or 22
    return address.remote.partition(":")[0].rpartition("@")[2], 22


def failure(ended: Ended, shown: str) -> StorageError:
    """Return what a failed git or ssh means, in its own words; it was never told a password, so it cannot say one."""
    words = _words(ended)
    everything, why = "\n".join(words), reason(ended)
    if _FULL.search(everything):
        return DiskFull(f"no room left to fetch {shown}", "free some space, then try again")
    if _UNKNOWN_HOST.search(everything):
        return SourceRefused(
            f"{shown}: nobody says that this host is the right one",
            "add the line of `ssh-keyscan HOST` to the key's known_hosts, or to ~/.ssh/known_hosts, once it is checked",
        )
    if _HOST_KEY.search(everything):
        return SourceRefused(
            f"{shown}: the host's key is not the one that is trusted",
            "check it, then mend the known_hosts of the key or ~/.ssh/known_hosts",
        )
    if _REFUSED.search(everything):
        denied = _OURS.sub("", next(line for line in words if _REFUSED.search(line)))[:300]
        foreign = "dubious ownership" in denied
        hint = "it belongs to another user: fetch from a copy" if foreign else "check the key and what it may read"
        return SourceRefused(f"{shown} may not be read: {denied}", hint)
    if _MISSING.search(everything):
        return SourceMissing(f"{shown} does not exist: {why}", "check the address and the @REF")
    return SourceFailed(
        f"{shown} cannot be fetched: {why}",
        transient=bool(_BROKEN.search(everything)),
        unreached=bool(_UNREACHED.search(everything)),
    )


def _quoted(path: Path) -> str:
    """Return a path as ssh's options take it, where a percent sign begins a word of theirs."""
    return f'"{path}"'.replace("%", "%%")


def reason(ended: Ended) -> str:
    """Return the one line that says best why a program failed."""
    words = _words(ended)
    why = next((line for line in words if line.startswith(("fatal:", "error:", "remote:"))), words[-1] if words else "")
    return _OURS.sub("", why)[:300] or f"it ended with {ended.code}"


def _words(ended: Ended) -> Sequence[str]:
    return [line for line in ended.said if not _NOISE.match(line)]
