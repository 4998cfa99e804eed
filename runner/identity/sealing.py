"""Secrets at rest: AES-256-GCM bound to owner, kind and name (X21), under a key file that only the runner can read.

A blob is `version (1 byte) · key id (8) · nonce (12) · ciphertext and tag`. The key file is text: one `hash` key, which
never changes because hashes are kept for ever, and any number of `seal` keys, the first of which encrypts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from runner.core.errors import Conflict, Refused, Unavailable, UsageError

VALUE_BYTES_MAX = 1 << 20
LABEL_BYTES_MAX = 255
KEYS_MAX = 16

_VERSION = 1
_HEADER = "stoker-keys 1"
_KEY_LINE = re.compile(r"(hash|seal) ([0-9a-f]{64})")
_KEY_FILE_BYTES_MAX = 4096
_KEY_BYTES, _KEY_ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 8, 12, 16
_BODY_AT = 1 + _KEY_ID_BYTES + _NONCE_BYTES


class SecretLocked(Unavailable):
    """A stored secret cannot be opened; jobs that do not need it go on."""


@dataclass(frozen=True, slots=True, repr=False)
class _Keys:
    """The keys in clear; no repr, so that none reaches a log or a traceback."""

    hashing: bytes
    sealing: tuple[bytes, ...]


class Sealer:
    """Seals and opens values, and hashes what must not be kept in clear."""

    def __init__(self, key_path: Path, own: _Keys | None, credential: _Keys | None) -> None:
        """Use `open`: keys come from a file that it has checked."""
        self._key_path = key_path
        self._own = own
        self._credential = credential
        self._use()

    @classmethod
    def open(cls, key_path: Path, *, create: bool = True, credential_path: Path | None = None) -> Sealer:
        """Read the keys; without any make a key file, or raise `SecretLocked` where `create` is false.

        Pass `create=False` once secrets are stored: a lost key must be told, not replaced. A systemd credential, where
        one is given, encrypts; the key file beside it then only opens what it sealed before. Raise `Refused` where
        others can read or have replaced the file.
        """
        credential = _read_keys(credential_path, group_may_read=True) if credential_path is not None else None
        if credential_path is not None and credential is None:
            raise SecretLocked(
                f"the systemd credential {credential_path} is missing", hint="check the unit's credentials"
            )
        own = _read_keys(key_path)
        if own is None and credential is None:
            if not create:
                raise SecretLocked(f"the key file {key_path} is missing", hint="restore it from your copy of the keys")
            _publish(key_path, _Keys(_new_key(), (_new_key(),)), replace=False)
            own = _read_keys(key_path)
        return cls(key_path, own, credential)

    @property
    def key_id(self) -> str:
        """The id of the key that encrypts, to be shown; it tells nothing of the key."""
        return _key_id(self._current).hex()

    @property
    def has_older_keys(self) -> bool:
        """Whether keys of before a rotation are still there to open what they sealed."""
        return self._credential is None and self._own is not None and len(self._own.sealing) > 1

    def seal(self, owner: int, kind: str, name: str, value: bytes) -> bytes:
        """Return the blob that only the same owner uid, kind and name open again."""
        if len(value) > VALUE_BYTES_MAX:
            raise UsageError(f"{kind} {name!a} is larger than {VALUE_BYTES_MAX} bytes")
        key = self._current  # looked up once: another thread may rotate meanwhile
        head = bytes([_VERSION]) + _key_id(key)
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + _cipher(key, nonce, value, _bound(head, owner, kind, name), seal=True)

    def unseal(self, owner: int, kind: str, name: str, blob: bytes) -> bytes:
        """Return the value; raise `SecretLocked` where key, owner, kind, name or a single bit is not what it was."""
        what = f"{kind} {name!a}"
        if len(blob) < _BODY_AT + _TAG_BYTES:
            raise SecretLocked(f"the stored {what} is cut short", hint="set it again")
        if blob[0] != _VERSION:
            raise SecretLocked(f"the stored {what} is of format {blob[0]}, not {_VERSION}", hint="use a newer Stoker")
        head, nonce, body = blob[: 1 + _KEY_ID_BYTES], blob[1 + _KEY_ID_BYTES : _BODY_AT], blob[_BODY_AT:]
        key = self._by_id.get(head[1:])
        if key is None:
            raise SecretLocked(
                f"the stored {what} was sealed with key {head[1:].hex()}, which is not in {self._key_path}",
                hint="restore that key file, or set the value again",
            )
        from cryptography.exceptions import InvalidTag  # lazy: cryptography costs tens of milliseconds

        try:
            return _cipher(key, nonce, body, _bound(head, owner, kind, name), seal=False)
        except InvalidTag:
            raise SecretLocked(
                f"the stored {what} is damaged or belongs to another owner, kind or name", hint="set it again"
            ) from None

    def reseal(self, owner: int, kind: str, name: str, blob: bytes) -> bytes:
        """Return the same value under the current key; a blob that is under it already comes back as it is."""
        if blob[1 : 1 + _KEY_ID_BYTES] == _key_id(self._current):
            return blob
        return self.seal(owner, kind, name, self.unseal(owner, kind, name, blob))

    def rotate(self) -> str:
        """Put a new key first and return its id; older keys stay and open, until `retire`."""
        own = self._changeable()
        if len(own.sealing) >= KEYS_MAX:
            raise Conflict(f"{self._key_path} has {KEYS_MAX} keys already", hint="reseal everything, then retire them")
        self._replace(_Keys(own.hashing, (_new_key(), *own.sealing)))
        return self.key_id

    def retire(self) -> int:
        """Drop every key but the current one and return how many; call it when all blobs are resealed."""
        own = self._changeable()
        self._replace(_Keys(own.hashing, own.sealing[:1]))
        return len(own.sealing) - 1

    def keyed_hash(self, data: bytes) -> bytes:
        """Return 32 bytes that tell equal data from other data and nothing else; rotation does not change them."""
        return hmac.digest(self._hashing, data, hashlib.sha256)

    def _use(self) -> None:
        found = [keys for keys in (self._credential, self._own) if keys is not None]
        sealing = [key for keys in found for key in keys.sealing]
        self._by_id = {_key_id(key): key for key in sealing}
        self._current = sealing[0]
        self._hashing = _derive(found[0].hashing, b"stoker keyed hash 1")

    def _changeable(self) -> _Keys:
        if self._credential is not None or self._own is None:
            raise Refused("the key is a systemd credential", hint="make a new credential with systemd-creds instead")
        return self._own

    def _replace(self, keys: _Keys) -> None:
        _publish(self._key_path, keys, replace=True)
        self._own = keys
        self._use()


def _new_key() -> bytes:
    return secrets.token_bytes(_KEY_BYTES)


def _cipher(key: bytes, nonce: bytes, data: bytes, bound: bytes, *, seal: bool) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # lazy, as above

    aead = AESGCM(_derive(key, b"stoker seal 1"))
    return aead.encrypt(nonce, data, bound) if seal else aead.decrypt(nonce, data, bound)


def _bound(head: bytes, owner: int, kind: str, name: str) -> bytes:
    """The associated data: lengths first, so that no two identities share their bytes."""
    labels = [label.encode("utf-8", "surrogatepass") for label in (kind, name)]
    if not 0 <= owner < 1 << 32 or any(not 0 < len(label) <= LABEL_BYTES_MAX for label in labels):
        raise UsageError("a secret has an owner, a kind and a name")
    return head + owner.to_bytes(4, "big") + b"".join(bytes([len(label)]) + label for label in labels)


def _derive(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, purpose, hashlib.sha256)


def _key_id(key: bytes) -> bytes:
    return _derive(key, b"stoker key id 1")[:_KEY_ID_BYTES]


def _read_keys(path: Path, *, group_may_read: bool = False) -> _Keys | None:
    """Return the keys of a file that only its owner can read, None where there is no file.

    systemd hands credentials over as root's, at times readable by the service's group.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hold the runner up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"the key file {path} cannot be opened: {error.strerror}") from None
    try:
        _check_file(path, os.fstat(descriptor), group_may_read=group_may_read)
        content = os.read(descriptor, _KEY_FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    return _parse(path, content)


def _check_file(path: Path, status: os.stat_result, *, group_may_read: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"the key file {path} is not a plain file")
    owners = (os.geteuid(), 0) if group_may_read else (os.geteuid(),)
    if status.st_uid not in owners:
        raise Refused(f"the key file {path} belongs to uid {status.st_uid}", hint=f"chown {os.geteuid()} {path}")
    if status.st_mode & (0o037 if group_may_read else 0o077):
        mode = stat.S_IMODE(status.st_mode)
        raise Refused(f"the key file {path} has mode {mode:04o}: others can reach it", hint=f"chmod 600 {path}")


def _parse(path: Path, content: bytes) -> _Keys:
    lines = content.decode("ascii", "replace").split("\n")
    matches = [_KEY_LINE.fullmatch(line) for line in lines[1:-1]]
    found = [(match[1], bytes.fromhex(match[2])) for match in matches if match is not None]
    sealing = tuple(key for purpose, key in found if purpose == "seal")
    hashing = [key for purpose, key in found if purpose == "hash"]
    whole = lines[0] == _HEADER and lines[-1] == "" and len(found) == len(matches)
    if not whole or len(hashing) != 1 or not 0 < len(sealing) <= KEYS_MAX:
        raise SecretLocked(f"the key file {path} is damaged", hint="restore it from your copy of the keys")
    return _Keys(hashing[0], sealing)


def _publish(path: Path, keys: _Keys, *, replace: bool) -> None:
    """Write the whole file beside its place, then put it there in one step: a kill leaves the old one or the new.

    What a kill leaves beside it are keys that never sealed anything, or old ones, which the next change removes.
    """
    lines = [_HEADER, f"hash {keys.hashing.hex()}", *(f"seal {key.hex()}" for key in keys.sealing), ""]
    beside = path.with_name(f".{path.name}.new" if replace else f".{path.name}.{secrets.token_hex(8)}")
    if replace:
        beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write("\n".join(lines).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        if replace:
            beside.replace(path)
        else:
            _link_unless_there(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _link_unless_there(beside: Path, path: Path) -> None:
    try:
        os.link(beside, path, follow_symlinks=False)
    except FileExistsError:
        # Another runner was first: its key is the key, and the caller reads it.
        return
