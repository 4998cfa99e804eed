"""Zip archives: the central directory is read and checked whole before a byte is unpacked.

What a header says of sizes is never allocated: bytes come out in bounded steps and must then be as many as it said,
with the checksum it said. Two members never share bytes (overlapping ones are how small zips become huge).
"""

from __future__ import annotations

import bz2
import itertools
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import zstandard
from isal import igzip_lib, isal_zlib

from storage.archives.members import MAX_LINK_BYTES, Tree, clean, printable
from storage.archives.streams import ISAL_ERROR, READ_BYTES, STEP_BYTES, Decoder, Gauge, Reader, ZstdDecoder
from storage.errors import BadArchive

# A member up to this size is read, unpacked and hashed at once.
SMALL_BYTES = 1 << 20

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
# A member while it waits for its turn, name and path behind it: an archive may have many. They are in order of offset.
_WAITING = struct.Struct(">3QL3H")
_MAX_COMMENT = 0xFFFF
_UNIX = {3, 19}
_UTF8, _ENCRYPTED = 0x800, 0x1 | 0x40 | 0x2000
_FAULTS = (OSError, EOFError, ValueError, ISAL_ERROR, zstandard.ZstdError)
_STORED, _DEFLATED = 0, 8

_DECODERS: Mapping[int, Callable[[], Decoder]] = {
    _DEFLATED: lambda: igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE),
    12: bz2.BZ2Decompressor,
    93: ZstdDecoder,
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member that is a file or a link: where its local header starts, and what the central directory says."""

    path: str
    raw_name: bytes
    offset: int
    packed: int
    size: int
    crc: int
    method: int
    executable: bool
    is_link: bool

    def pack(self) -> bytes:
        """Return it as few bytes."""
        facts = (self.offset, self.packed, self.size, self.crc, self.method, len(self.raw_name))
        path, marks = self.path.encode("utf-8", "surrogateescape"), self.executable | self.is_link << 1
        return _WAITING.pack(*facts, marks) + self.raw_name + (b"" if path == self.raw_name else path)


def unpacked(packed: bytes) -> Member:
    """Return what was packed."""
    offset, size_packed, size, crc, method, length, marks = _WAITING.unpack_from(packed)
    end = _WAITING.size + length
    raw_name = packed[_WAITING.size : end]
    path = (packed[end:] or raw_name).decode("utf-8", "surrogateescape")
    return Member(path, raw_name, offset, size_packed, size, crc, method, bool(marks & 1), bool(marks & 2))


def offset_of(packed: bytes) -> int:
    """Return where a packed member starts."""
    return int.from_bytes(packed[:8])


def is_zip(fd: int, size: int) -> bool:
    """Return whether a file starts or ends as a zip archive."""
    return os.pread(fd, 4, 0) in {b"PK\3\4", b"PK\5\6", b"PK\7\x08"} or _find_end(fd, size) is not None


def members(fd: int, size: int, tree: Tree) -> Iterator[tuple[bytes, bytes]]:
    """Return files and links in order, packed, each with the next, where it must have ended; all are then in the tree.

    Raise `BadArchive` for what no tree may hold, for encrypted or overlapping members, and for sizes past the limits.
    """
    start, end, shift = _directory(fd, size, tree)
    reader = Reader(_plain(fd, start, end))
    found: list[bytes] = []
    largest, total, packed = None, 0, 0
    while reader.position < end - start:
        member = _central(reader, tree, shift)
        if member is None:
            continue
        _check_room(member, len(member.raw_name), start)
        found.append(member.pack())
        total, packed = total + member.size, packed + member.packed
        largest = member if largest is None or member.size > largest.size else largest
    found.sort()
    for each, following in itertools.pairwise(found):
        offset, packed_bytes, _, _, _, length, _ = _WAITING.unpack_from(each)
        if offset + _LOCAL.size + length + packed_bytes > offset_of(following):
            raise _overlaps(unpacked(each))
    if largest is not None:
        try:
            tree.limits.check_ratio(total, packed)
        except BadArchive as error:
            raise BadArchive(f"{error.message}; its largest member is {printable(largest.path)}", error.hint) from None
    return zip(found, [*found[1:], start.to_bytes(8)], strict=False)


def unpack(fd: int, member: Member, limit: int, gauge: Gauge) -> Iterator[bytes]:
    """Yield a member's bytes, a small one's in one piece; raise `BadArchive` unless they are what was said."""
    at = _data_start(fd, member, limit)
    crc, size = 0, 0
    for piece in _pieces(fd, member, at, gauge):
        crc, size = isal_zlib.crc32(piece, crc), size + len(piece)
        if size > member.size:
            raise BadArchive(f"member {printable(member.path)} is longer than it says")
        yield piece
    if size < member.size:
        raise BadArchive(f"member {printable(member.path)} is shorter than it says")
    if crc != member.crc:
        raise BadArchive(f"member {printable(member.path)} is damaged: its checksum is another")


def _pieces(fd: int, member: Member, at: int, gauge: Gauge) -> Iterator[bytes]:
    end = at + member.packed
    if member.method == _STORED:
        step = SMALL_BYTES if member.packed <= SMALL_BYTES else STEP_BYTES
        while at < end:
            at, piece = _read(fd, member, at, min(end, at + step), gauge)
            yield piece
        return
    decoder = _DECODERS[member.method]()
    # One byte more than a small member says it has is enough to catch it lying.
    step = member.size + 1 if member.size <= SMALL_BYTES else STEP_BYTES
    while not decoder.eof:
        data = b""
        if decoder.needs_input:
            if at == end:
                raise BadArchive(f"member {printable(member.path)} is cut short")
            at, data = _read(fd, member, at, min(end, at + READ_BYTES), gauge)
        try:
            piece = decoder.decompress(data, step)
        except _FAULTS as error:
            raise BadArchive(f"member {printable(member.path)} is damaged: {str(error)[:80]}") from error
        if piece:
            yield piece


def _read(fd: int, member: Member, at: int, end: int, gauge: Gauge) -> tuple[int, bytes]:
    data = os.pread(fd, end - at, at)
    if not data:
        raise BadArchive(f"member {printable(member.path)} is cut short")
    gauge.read(len(data))
    return at + len(data), data


def _plain(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (data := os.pread(fd, min(READ_BYTES, end - start), start)):
        start += len(data)
        yield data


def _find_end(fd: int, size: int) -> tuple[int, bytes] | None:
    """Return where the end record is, and it; a comment or garbage may follow."""
    start = max(0, size - _END.size - _MAX_COMMENT)
    tail = os.pread(fd, size - start, start)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    return None if at < 0 else (start + at, tail[at : at + _END.size])


def _directory(fd: int, size: int, tree: Tree) -> tuple[int, int, int]:
    """Return where the central directory starts and ends, and how far all offsets are off (by what stands before)."""
    found = _find_end(fd, size)
    if found is None:
        raise BadArchive("is cut short: it has no central directory")
    end, record = found
    _, disk, first_disk, _, count, length, offset, _ = _END.unpack(record)
    locator = os.pread(fd, _LOCATOR.size, end - _LOCATOR.size) if end >= _LOCATOR.size else b""
    if locator.startswith(b"PK\6\7"):
        end -= _LOCATOR.size + _END64.size
        record = os.pread(fd, _END64.size, max(0, end))
        if end < 0 or not record.startswith(b"PK\6\6"):
            raise BadArchive("is damaged: its zip64 end record is not where it should be")
        _, _, _, _, disk, first_disk, _, count, length, offset = _END64.unpack(record)
    if disk or first_disk:
        raise BadArchive("is one part of several", "join the parts first")
    if count > tree.limits.members:
        raise BadArchive(
            f"says it has {count} members, more than {tree.limits.members}",
            "raise [storage] extract_members, or pack them into fewer files",
        )
    shift = end - length - offset
    if shift < 0:
        raise BadArchive("is cut short: its central directory is not where it should be")
    return end - length, end, shift


def _central(reader: Reader, tree: Tree, shift: int) -> Member | None:
    """Read one entry of the central directory; None for a directory."""
    header = reader.take(_CENTRAL.size)
    if len(header) < _CENTRAL.size or not header.startswith(b"PK\1\2"):
        raise BadArchive("is damaged: its central directory breaks off")
    fields = _CENTRAL.unpack(header)
    system, flags, method = fields[2], fields[5], fields[6]
    crc, packed, size = fields[9:12]
    name_length, extra_length, comment_length = fields[12:15]
    attributes, offset = fields[17], fields[18]
    raw_name, extra = reader.take(name_length), reader.take(extra_length)
    reader.skip(comment_length)
    size, packed, offset = _zip64(extra, size, packed, offset)
    name = _name(raw_name, extra, flags, system)
    mode = attributes >> 16 if system in _UNIX else 0
    path = tree.enter(name)
    if system not in _UNIX:
        name = name.replace("\\", "/")
        path = clean(name)
    if flags & _ENCRYPTED:
        raise BadArchive(f"member {printable(name)} is encrypted", "pack it again without a password")
    if name.endswith("/") or stat.S_ISDIR(mode):
        tree.add_directory(path)
        return None
    is_link = stat.S_ISLNK(mode)
    if stat.S_IFMT(mode) and not is_link and not stat.S_ISREG(mode):
        raise BadArchive(f"member {printable(name)} is a device or a named pipe", "pack it again without it")
    if method != _STORED and method not in _DECODERS:
        raise BadArchive(f"member {printable(name)} is compressed in a way we do not read (method {method})")
    if method == _STORED and packed != size:
        raise BadArchive(f"member {printable(name)} states a forged size")
    if is_link and size > MAX_LINK_BYTES:
        raise BadArchive(f"member {printable(name)} is a link of {size} bytes")
    if is_link:
        tree.add_link(path, "")
    else:
        tree.add_file(path, size)
    return Member(path, raw_name, offset + shift, packed, size, crc, method, bool(mode & stat.S_IXUSR), is_link)


def _extras(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        yield tag, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Return the sizes and the offset, read from the zip64 field where the short ones are full."""
    wanted = [each == 0xFFFFFFFF for each in (size, packed, offset)]
    if not any(wanted):
        return size, packed, offset
    data = next((data for tag, data in _extras(extra) if tag == 1), b"")
    if len(data) < 8 * sum(wanted):
        return size, packed, offset
    values = iter(struct.unpack_from(f"<{sum(wanted)}Q", data))
    size, packed, offset = (
        next(values) if full else each for full, each in zip(wanted, (size, packed, offset), strict=True)
    )
    return size, packed, offset


def _name(raw_name: bytes, extra: bytes, flags: int, system: int) -> str:
    """Return a name as text: UTF-8 where the archive says so, else a Unix file's bytes, else the first PC's letters."""
    if flags & _UTF8:
        return raw_name.decode("utf-8", "surrogateescape")
    for tag, data in _extras(extra):
        if tag == 0x7075 and data[:1] == b"\1" and data[1:5] == struct.pack("<L", isal_zlib.crc32(raw_name)):
            return data[5:].decode("utf-8", "surrogateescape")
    if system in _UNIX:
        return raw_name.decode("utf-8", "surrogateescape")
    return raw_name.decode("cp437")


def _check_room(member: Member, header_bytes: int, limit: int) -> None:
    """Refuse members that share bytes; what a local header has beside the name only its own reader knows."""
    if member.offset + _LOCAL.size + header_bytes + member.packed > limit:
        raise _overlaps(member)


def _overlaps(member: Member) -> BadArchive:
    return BadArchive(f"member {printable(member.path)} overlaps another one: a bomb, or damaged")


def _data_start(fd: int, member: Member, limit: int) -> int:
    header = os.pread(fd, _LOCAL.size + len(member.raw_name), member.offset)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
        raise BadArchive(f"member {printable(member.path)} is not where the central directory says")
    flags, name_length, extra_length = (_LOCAL.unpack_from(header)[field] for field in (2, 9, 10))
    if flags & _ENCRYPTED:
        raise BadArchive(f"member {printable(member.path)} is encrypted", "pack it again without a password")
    if header[_LOCAL.size :] != member.raw_name or name_length != len(member.raw_name):
        raise BadArchive(f"member {printable(member.path)} has another name in its own header")
    _check_room(member, name_length + extra_length, limit)
    return member.offset + _LOCAL.size + int(name_length + extra_length)
