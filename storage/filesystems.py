"""The one place that opens fsspec and binds credentials and endpoints to a scheme.

Nothing here reads the process's environment: a runner serves its user, not the shell that happened to start it.
"""

from __future__ import annotations

import configparser
import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage.errors import BadUri, SourceRefused
from storage.sinks.base import Tell
from storage.sources.base import SourceOptions
from storage.uri import EXTRAS, OTHERS, Uri

DEFAULT_REGION = "us-east-1"
WASABI = "https://s3.wasabisys.com"


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """How to reach S3: keys (None: anonymous), region, endpoint (None: Amazon's own)."""

    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    region: str = DEFAULT_REGION
    endpoint: str | None = None


def s3_access(kind: str, options: SourceOptions) -> AwsAccess:
    """Return how to reach the S3 of an address of this kind; what this box says of S3 is not said of Wasabi."""
    if kind != "wasabi":
        return aws_access(options)
    access = aws_access(replace(options, s3_endpoint=None, s3_region=None))
    return replace(access, endpoint=access.endpoint or WASABI)


def aws_access(options: SourceOptions) -> AwsAccess:
    """Return the key's values; without a key, those of the user's AWS files, `credentials` before `config`.

    Explicit options are for where neither says it: the key knows its server best.
    """
    values = values_of(options, "aws", "wasabi")
    if values is not None and options.credential is not None:
        region = values.get("region") or options.s3_region or DEFAULT_REGION
        own = wasabi_endpoint(region) if options.credential.kind == "wasabi" else options.s3_endpoint
        return AwsAccess(
            key=values["access_key_id"],
            secret=values["secret_access_key"],
            token=values.get("session_token"),
            region=region,
            endpoint=options.endpoint or values.get("endpoint") or own,
        )
    facts: dict[str, str] = {}
    if options.aws_dir is not None:
        profile = options.aws_profile
        named = profile if profile == "default" else f"profile {profile}"
        facts = {
            **section_of(options.aws_dir / "config", named),
            **section_of(options.aws_dir / "credentials", profile),
        }
    key = facts.get("aws_access_key_id")
    if key is None and {"credential_process", "sso_session", "sso_start_url", "role_arn"} & facts.keys():
        raise SourceRefused(
            f"the AWS profile {options.aws_profile} gets its keys from another program or service",
            "put aws_access_key_id and aws_secret_access_key into the credentials file",
        )
    return AwsAccess(
        key=key,
        secret=facts.get("aws_secret_access_key"),
        token=facts.get("aws_session_token"),
        region=options.s3_region or facts.get("region") or DEFAULT_REGION,
        endpoint=options.endpoint or options.s3_endpoint or facts.get("endpoint_url"),
    )


def values_of(options: SourceOptions, *kinds: str) -> Mapping[str, str] | None:
    """Return the values of the key that the fetch was given, None where it has none; it must be of these kinds."""
    credential = options.credential
    if credential is not None and credential.kind not in kinds:
        raise SourceRefused(f"a {credential.kind} key does not open this source", f"give one of {' or '.join(kinds)}")
    return None if credential is None else credential.values


def wasabi_endpoint(region: str | None) -> str:
    """Return the server of a Wasabi region."""
    return f"https://s3.{region or DEFAULT_REGION}.wasabisys.com"


@dataclass(frozen=True, slots=True)
class Remote:
    """A file system to write to, opened for one push.

    `root` is what the address is there, `parallel` how many files it takes at a time. `put(source, place, tell)` sends
    a file; `tell` counts its bytes, and may raise.
    """

    system: Any
    root: str
    parallel: int
    put: Callable[[Path, str, Tell], None]
    make_parents: Callable[[str], None] = lambda _path: None
    close: Callable[[], None] = lambda: None


def ssh_remote(uri: Uri, options: SourceOptions) -> Remote:
    """Return the directory of an SSH server that an address names."""
    system, root = open_other(uri, options)

    def make_parents(path: str) -> None:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)

    def put(source: Path, place: str, tell: Tell) -> None:
        sent = 0

        def told(done: int, _: int) -> None:
            nonlocal sent
            sent, count = done, done - sent
            tell(count)

        system.ftp.put(str(source), place, callback=told, confirm=False)

    # One connection, and paramiko's channels are not for several threads.
    return Remote(system, root, 1, put, make_parents=make_parents, close=system.client.close)


REMOTES: Mapping[str, Callable[[Uri, SourceOptions], Remote]] = {
    "sftp": ssh_remote,
    "ssh": ssh_remote,
}


def check_package(uri: Uri) -> None:
    """Raise `BadUri` where an address needs a package that is not installed."""
    package = OTHERS.get(uri.scheme)
    if package is not None and importlib.util.find_spec(package.replace("-", "_")) is None:
        wanted = f"'stoker[{uri.scheme}]'" if uri.scheme in EXTRAS else package
        raise BadUri(
            f"{uri.scheme}:// needs the package {package}", f"install it where Stoker is: {_installer()} {wanted}"
        )


def _installer() -> str:
    """Return the beginning of the command that adds a package to the environment of this program."""
    if importlib.util.find_spec("pip") is not None:
        return f"{sys.executable} -m pip install"
    return f"uv pip install --python {sys.executable}"


def open_other(uri: Uri, options: SourceOptions) -> tuple[Any, str]:
    """Return what fsspec opens for an address, bound to what address and options say, and the path in it."""
    check_package(uri)
    if not options.allow_local_addresses:
        # Its library would use root's own keys and connect wherever a name leads.
        raise SourceRefused(
            f"{uri.shown}: {uri.scheme}:// is opened only by a runner of your own", "run it with --private"
        )
    # Heavy, and needed only once somebody names such a source.
    from fsspec.core import url_to_fs

    is_ssh = uri.scheme in {"sftp", "ssh"}
    # Instances are cached by their arguments otherwise: one user's connection would answer another's question.
    arguments = {"skip_instance_cache": True, **(_ssh_arguments(uri, options) if is_ssh else {})}
    opened, path = url_to_fs(uri.text, **arguments)
    session = getattr(opened, "session", None)
    if session is not None:
        session.trust_env = False  # neither the shell's proxies nor a .netrc
    if is_ssh:
        opened.ftp.get_channel().settimeout(options.stall_s)
    return opened, path


def _ssh_arguments(uri: Uri, options: SourceOptions) -> dict[str, Any]:
    """Return what opens an ssh connection: the user's keys where they are named, a host only if the user knows it."""
    # Heavy, and needed only once somebody names such a source.
    import paramiko

    known = paramiko.HostKeys()
    keys: list[str] = []
    if options.ssh_dir is not None:
        keys = [str(path) for path in sorted(options.ssh_dir.glob("id_*")) if path.suffix != ".pub"]
        with suppress(FileNotFoundError, NotADirectoryError):
            known.load(str(options.ssh_dir / "known_hosts"))

    if not keys and urlsplit(uri.text).password is None:
        hint = "make one with ssh-keygen, or write the password as user:password@host"
        raise SourceRefused(f"{uri.shown}: there is no ssh key to log in with", hint)

    class Known(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            if not known.check(hostname, key):
                hint = "connect to it once with ssh, so that ~/.ssh/known_hosts has its key"
                raise SourceRefused(f"{uri.shown}: nobody says that this host is the right one", hint)

    return {
        "allow_agent": False,
        "look_for_keys": False,
        "key_filename": keys or None,
        "host_key_policy": Known(),
        "timeout": options.stall_s,
        "banner_timeout": options.stall_s,
        "auth_timeout": options.stall_s,
    }


def section_of(path: Path, name: str) -> dict[str, str]:
    """Return a section of somebody's configuration file, empty where there is none; raise `SourceRefused`."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        # The error's own text would quote the line, which may be a secret.
        raise SourceRefused(f"{path} cannot be read ({type(error).__name__})", "mend the file") from None
    return dict(parser[name]) if parser.has_section(name) else {}
