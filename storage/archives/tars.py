"""Tar headers of every kind that is met with: v7, ustar, GNU's long names, pax; sizes and names bounded.

Our own reader, since `tarfile` costs more time for a small member than its bytes do, trusts the sizes of extension
headers, and steps backwards for negative ones (CVE-2025-8194).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from storage.archives.members import printable
from storage.archives.streams import Reader
from storage.errors import BadArchive
from storage.manifest import MAX_FILE_BYTES

BLOCK = 512
# An extension header (a long name, pax records) is held in memory; several may stand before one member.
MAX_EXTENSION_BYTES = 1 << 20
MAX_EXTENSIONS = 8

Kind = Literal["file", "directory", "link", "hard link"]

_ZEROS = bytes(BLOCK)
_MOD = 65521
_SPARSE = "is a sparse file of GNU tar"
_KINDS: dict[int, Kind] = {0: "file", 0x30: "file", 0x37: "file", 0x31: "hard link", 0x32: "link", 0x35: "directory"}
_REFUSED = {
    0x33: "is a character device",
    0x34: "is a block device",
    0x36: "is a named pipe",
    0x53: _SPARSE,
    0x44: "is an incremental dump's directory",
    0x4D: "goes on from another volume",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member; `target` is where a link leads, `size` what follows of a file."""

    name: str
    kind: Kind
    size: int
    executable: bool
    target: str


def is_header(block: bytes) -> bool:
    """Return whether a block is a tar header, or the end mark of an empty archive."""
    try:
        return len(block) == BLOCK and (block == _ZEROS or _stated_sum(block))
    except BadArchive:
        return False


def members(reader: Reader) -> Iterator[Member]:
    """Yield the members in order; what of a file's bytes was not taken before the next one is passed over.

    Raise `BadArchive` for what is damaged, cut short, or no file, directory or link.
    """
    extensions, changes = 0, dict[str, str]()
    while True:
        block = reader.take(BLOCK)
        if block == _ZEROS:
            if extensions:
                raise BadArchive("is damaged: an extension header stands before no member")
            reader.drain()
            return
        if len(block) < BLOCK:
            raise BadArchive("is cut short: it has no end mark")
        if not _stated_sum(block):
            if reader.position == BLOCK:
                raise BadArchive("is no tar archive")
            raise BadArchive(f"is damaged: no member begins at byte {reader.position - BLOCK}")
        kind, size = block[156], _number(block[124:136])
        if kind in b"xgXLK":
            extensions += 1
            if extensions > MAX_EXTENSIONS or size > MAX_EXTENSION_BYTES:
                raise BadArchive(f"has extension headers without end at byte {reader.position - BLOCK}")
            data = _whole(reader, size)
            if kind in b"LK":
                changes["path" if kind == 0x4C else "linkpath"] = _text(data.partition(b"\0")[0])
            elif kind == 0x67:
                _check_global(_records(data))
                extensions -= 1
            else:
                changes.update(_records(data))
            continue
        if kind == 0x56:  # a volume's label
            continue
        member = _member(block, size, changes)
        end = reader.position + -(-member.size // BLOCK) * BLOCK
        yield member
        if reader.position < end and not reader.skip(end - reader.position):
            raise BadArchive(f"is cut short in member {printable(member.name)}")
        if extensions:
            extensions, changes = 0, {}


def _member(block: bytes, size: int, changes: dict[str, str]) -> Member:
    name = changes.get("path")
    if name is None:
        name = _text(block[: block.find(b"\0", 0, 100)] if b"\0" in block[:100] else block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = _text(block[345:500].partition(b"\0")[0]) + "/" + name
    if "size" in changes:
        size = _decimal(changes["size"])
    kind = _KINDS.get(block[156])
    if kind is None:
        why = _REFUSED.get(block[156], f"is of the unknown type {chr(block[156])!a}")
        raise BadArchive(f"member {printable(name)} {why}", "pack it again without it")
    if any(key.startswith("GNU.sparse") for key in changes):
        raise BadArchive(f"member {printable(name)} {_SPARSE}", "pack it again without --sparse")
    if kind == "file" and name.endswith("/"):
        kind = "directory"
    if not 0 <= size <= MAX_FILE_BYTES:
        raise BadArchive(f"member {printable(name)} has an impossible size")
    target = ""
    if kind in {"link", "hard link"}:
        target = changes.get("linkpath") or _text(block[157:257].partition(b"\0")[0])
    # Only files have bytes, whatever a header says.
    size = size if kind == "file" else 0
    return Member(name, kind, size, bool(_number(block[100:108]) & 0o100), target)


def _whole(reader: Reader, size: int) -> bytes:
    padded = -(-size // BLOCK) * BLOCK
    data = reader.take(padded)
    if len(data) < padded:
        raise BadArchive("is cut short in an extension header")
    return data[:size]


def _stated_sum(block: bytes) -> bool:
    """Return whether the header's checksum is right, as a sum of unsigned bytes or, as some tools had it, of signed.

    Adler-32's low half is that sum, modulo a prime and faster than we can add.
    """
    stated = _number(block[148:156])
    rest = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
    if (stated - rest) % _MOD == 0:
        return True
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 32
    return stated == signed


def _number(raw: bytes) -> int:
    """Return a number: octal digits, or with the top bit set a binary one."""
    if raw[0] & 0x80:
        return -1 if raw[0] & 0x40 else int.from_bytes(raw, "big") ^ (0x80 << 8 * (len(raw) - 1))
    text = raw.strip(b" \0")
    if not text.isdigit():
        text = raw.partition(b"\0")[0].strip()
        if not text:
            return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise BadArchive("is damaged: a header's number is none")


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadArchive("is damaged: a pax size is no number")
    return int(text)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _records(data: bytes) -> dict[str, str]:
    """Return pax records: `length key=value` and a newline, the length that of the whole record."""
    found, at = dict[str, str](), 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise BadArchive("is damaged: a pax record has no length")
        end = at + int(digits)
        record = data[at + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if end > len(data) or not equals or not value.endswith(b"\n"):
            raise BadArchive("is damaged: a pax record does not end where it says")
        found[_text(key)] = _text(value[:-1])
        at = end
    return found


def _check_global(records: dict[str, str]) -> None:
    """Refuse a pax header that would rename every member; comments and times are nothing to us."""
    for key in records:
        if key in {"path", "linkpath", "size"} or key.startswith("GNU.sparse"):
            raise BadArchive(f"sets {key} for all its members at once")
