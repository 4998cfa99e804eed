"""Archives become trees member by member; hostile ones are refused by a sentence and leave nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import pytest
import zstandard

from storage.archives.members import FREE_BYTES, Limits
from storage.download import Fetched, fetch
from storage.errors import BadArchive, Cancelled, SourceMissing
from storage.extract import extract
from storage.publish import publish
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
from tests.servers import http_server

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store."""
    return Store(tmp_path / "store")


def take(store: Store, path: Path, limits: Limits | None = None) -> Fetched:
    """Fetch a local archive as an input does."""
    return fetch(
        store,
        parse(str(path), PurePath("/")),
        SourceOptions(),
        progress=lambda *_: None,
        cancelled=lambda: False,
        extract=limits or Limits(),
    )


def contents(store: Store, fetched: Fetched) -> dict[str, bytes]:
    """Return every file of a stored tree."""
    entries = store.manifest(fetched.tree_digest).entries
    return {entry.path: store.object_path(entry.digest).read_bytes() for entry in entries}


def left(store: Store) -> list[str]:
    """Return all that a store holds but what it needs for itself."""
    kept = ("objects", "trees", "tmp", "leases", "partial", "views")
    return [str(path) for folder in kept for path in (store.root / folder).rglob("*")]


def refusal(store: Store, path: Path, limits: Limits | None = None) -> str:
    """Return the sentence an archive is refused with, which names it; nothing is left of it."""
    with pytest.raises(BadArchive) as error:
        take(store, path, limits)
    assert error.value.message.startswith(f"{path}: ")
    assert "no-extract" in error.value.hint
    assert error.value.message.isprintable()
    assert left(store) == []
    return error.value.message.removeprefix(f"{path}: ")


def info(name: str, **facts: object) -> tarfile.TarInfo:
    """Return a member's header."""
    member = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(member, key, value)
    return member


def tarred(*members: tarfile.TarInfo | tuple[str, bytes], pax: bool = True) -> bytes:
    """Return a tar of these members: headers alone, or files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as archive:
        for each in members:
            if isinstance(each, tarfile.TarInfo):
                archive.addfile(each)
            else:
                archive.addfile(info(each[0], size=len(each[1])), io.BytesIO(each[1]))
    return target.getvalue()


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of these files."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return target.getvalue()


def moded(name: str, mode: int) -> zipfile.ZipInfo:
    """Return a zip member of this type and these permissions."""
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


def written(tmp_path: Path, name: str, data: bytes) -> Path:
    """Return the archive as a file."""
    path = tmp_path / name
    path.write_bytes(data)
    return path


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
DEEP = "/".join(["d"] * 200)
HOSTILE_TARS = {
    "a parent": ([("../evil", b"x")], "'../evil' leads outside"),
    "a parent inside": ([("a/../../evil", b"x")], "leads outside"),
    "absolute": ([("/etc/evil", b"x")], "'/etc/evil' has an absolute name"),
    "backslashes": ([("a\\..\\..\\evil", b"x")], "leads outside by its backslashes"),
    "a drive": ([("C:\\evil", b"x")], "leads outside by its backslashes"),
    "a link out": ([info("l", type=LINK, linkname="../../etc/passwd")], "'l' is a link that leads outside"),
    "an absolute link": ([info("l", type=LINK, linkname="/etc/passwd")], "'/etc/passwd', outside the archive"),
    "a link nowhere": ([info("l", type=LINK, linkname="gone")], "'l' is a link that leads nowhere"),
    "links in a circle": (
        [info("a", type=LINK, linkname="b"), info("b", type=LINK, linkname="a")],
        "is a link that runs in a circle",
    ),
    "a directory in itself": ([("d/x", b"x"), info("d/l", type=LINK, linkname=".")], "runs in a circle"),
    "a file through a link": ([info("d", type=LINK, linkname="/tmp"), ("d/evil", b"x")], "'/tmp', outside"),
    "a file through a link inside": (
        [("e/x", b""), info("d", type=LINK, linkname="e"), ("d/evil", b"x")],
        "'d' is both a file and a directory",
    ),
    # CVE-2025-4517: the real path of a chain of links grows past what the system resolves.
    "a long real path": (
        [
            ("a" * 200 + "/" * 5 + "x", b""),
            info("b", type=LINK, linkname="a" * 200),
            info("b2", type=LINK, linkname="b/" + "../" * 3 + "etc"),
        ],
        "'b2' is a link that leads outside",
    ),
    "a hard link out": ([info("h", type=HARD, linkname="/etc/passwd")], "'/etc/passwd' has an absolute name"),
    "a hard link up": ([info("h", type=HARD, linkname="../x")], "leads outside"),
    "a hard link to nothing": ([info("h", type=HARD, linkname="later"), ("later", b"")], "which is no earlier file"),
    "a hard link to a directory": ([("d/x", b""), info("h", type=HARD, linkname="d")], "which is no earlier file"),
    "a device": ([info("dev", type=tarfile.CHRTYPE)], "'dev' is a character device"),
    "a disk": ([info("sda", type=tarfile.BLKTYPE)], "'sda' is a block device"),
    "a pipe": ([info("fifo", type=tarfile.FIFOTYPE)], "'fifo' is a named pipe"),
    "an unknown type": ([info("odd", type=b"Q")], "'odd' is of the unknown type 'Q'"),
    "a sparse file": ([info("holes", type=tarfile.GNUTYPE_SPARSE)], "'holes' is a sparse file"),
    "a name twice": ([("a", b"1"), ("./a", b"2")], "'a' is there twice"),
    "names by case": ([("Read", b"1"), ("read", b"2")], "'Read' and 'read' differ in case only"),
    "names by case, turned": ([("read", b"1"), ("Read", b"2")], "'read' and 'Read' differ in case only"),
    "directories by case": ([("A/x", b"1"), ("a/y", b"2")], "'A' and 'a' differ in case only"),
    "a file as directory": ([("a", b"1"), ("a/b", b"2")], "'a' is both a file and a directory"),
    "a long name": ([("n" * 5000, b"")], "has a name that is too long"),
    "a long path": ([("/".join(["n" * 200] * 25), b"")], "has a name that is too long"),
    "a deep path": ([(f"{DEEP}/x", b"")], "too deep"),
    "a terminal's words": ([("../\x1b[2J\n", b"")], r"'../\x1b[2J\n' leads outside"),
}


@pytest.mark.parametrize("pax", [True, False], ids=["pax", "gnu"])
@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_what_no_tree_may_hold_is_refused_in_a_tar(store: Store, tmp_path: Path, case: str, pax: bool) -> None:
    """The sentence names the archive and the member; a good member before it leaves nothing either."""
    members, said = HOSTILE_TARS[case]
    data = tarred(("good", b"good"), *members, pax=pax)
    assert said in refusal(store, written(tmp_path, "x.tar", data))


HOSTILE_ZIPS: dict[str, tuple[list[tuple[str | zipfile.ZipInfo, bytes]], str]] = {
    "a parent": ([("../evil", b"x")], "'../evil' leads outside"),
    "absolute": ([("/etc/evil", b"x")], "has an absolute name"),
    "backslashes": ([("..\\evil", b"x")], "leads outside by its backslashes"),
    "a link out": ([(moded("l", stat.S_IFLNK | 0o777), b"../../etc")], "'l' is a link that leads outside"),
    "an absolute link": ([(moded("l", stat.S_IFLNK | 0o777), b"/etc")], "'/etc', outside the archive"),
    "a huge link": ([(moded("l", stat.S_IFLNK | 0o777), b"x" * 5000)], "'l' is a link of 5000 bytes"),
    "a pipe": ([(moded("fifo", stat.S_IFIFO | 0o600), b"")], "'fifo' is a device or a named pipe"),
    "a device": ([(moded("dev", stat.S_IFCHR | 0o600), b"")], "'dev' is a device or a named pipe"),
    "a name twice": ([("a", b"1"), ("./a", b"2")], "'a' is there twice"),
    "names by case": ([("Read", b"1"), ("read", b"2")], "'Read' and 'read' differ in case only"),
    "a file as directory": ([("a", b"1"), ("a/b", b"2")], "both a file and a directory"),
    "a long name": ([("n" * 5000, b"")], "has a name that is too long"),
}


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_what_no_tree_may_hold_is_refused_in_a_zip(store: Store, tmp_path: Path, case: str) -> None:
    """All names are looked at before a byte is unpacked."""
    members, said = HOSTILE_ZIPS[case]
    assert said in refusal(store, written(tmp_path, "x.zip", zipped(("good", b"good"), *members)))


def test_a_windows_zip_has_slashes_the_other_way(store: Store, tmp_path: Path) -> None:
    """What a DOS tool packed is separated by backslashes, and named in its own letters."""
    member = zipfile.ZipInfo("dir\\file")
    member.create_system = 0
    data = zipped((member, b"x")).replace(b"file", b"f\x81le")
    assert contents(store, take(store, written(tmp_path, "x.zip", data))) == {"dir/füle": b"x"}
    trick = zipfile.ZipInfo("..\\file")
    trick.create_system = 0
    assert "leads outside" in refusal(Store(tmp_path / "other"), written(tmp_path, "y.zip", zipped((trick, b"x"))))


def test_a_nul_does_not_hide_the_rest_of_a_name(store: Store, tmp_path: Path) -> None:
    """In a zip and in pax records a name may hold one; programs disagree on what it then is."""
    data = zipped(("a/evil.txt", b"x")).replace(b"a/evil.txt", b"a/ev\0l.txt")
    assert "has a NUL in its name" in refusal(store, written(tmp_path, "x.zip", data))
    member = info("plain")
    member.pax_headers = {"path": "pl\0in"}
    assert "has a NUL in its name" in refusal(store, written(tmp_path, "x.tar", tarred(member)))


@pytest.mark.parametrize("kind", COMPRESSED)
def test_an_archive_cut_short_anywhere_is_refused(store: Store, tmp_path: Path, kind: str) -> None:
    """Also where only the end mark or the checksum is missing; compressed or not."""
    whole = COMPRESSED[kind](tarred(("a", os.urandom(70_000)), ("b", b"text" * 5000)))
    end = len(whole) if kind != "tar" else 512 * (2 + 137 + 40)
    for at in sorted({len(whole) // 7 * part for part in range(1, 7)} | {end - 1, end - 3, 700}):
        if at < end:
            said = refusal(store, written(tmp_path, f"x.{kind}", whole[:at]))
            assert "cut short" in said or "is no tar archive" in said, at


def test_a_zip_cut_short_anywhere_is_refused(store: Store, tmp_path: Path) -> None:
    """Its central directory stands last."""
    whole = zipped(("a", os.urandom(70_000)), ("b", b"text" * 5000))
    for at in (3 + len(whole) // 7 * part for part in range(1, 7)):
        assert "is cut short" in refusal(store, written(tmp_path, "x.zip", whole[:at]))
    inside = whole[:1000] + whole[2000:]
    assert "is cut short" in refusal(store, written(tmp_path, "x.zip", inside))


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSED if kind != "tar"])
def test_a_flipped_bit_is_noticed(store: Store, tmp_path: Path, kind: str) -> None:
    """By each compression's own checksum, that of the last block too."""
    whole = COMPRESSED[kind](tarred(("a", os.urandom(70_000))))
    for at in (len(whole) // 2, len(whole) - 6 if kind == "tar.gz" else len(whole) - 2):
        spoilt = bytearray(whole)
        spoilt[at] ^= 4
        said = refusal(store, written(tmp_path, f"x.{kind}", bytes(spoilt)))
        assert "cannot be decompressed" in said or "damaged" in said or "cut short" in said


def test_a_flipped_bit_in_a_zip_is_noticed(store: Store, tmp_path: Path) -> None:
    """By the member's checksum, stored or deflated."""
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        spoilt = bytearray(zipped(("a", os.urandom(70_000)), method=method))
        spoilt[40_000] ^= 4
        assert "member 'a' is" in refusal(store, written(tmp_path, "x.zip", bytes(spoilt)))


def test_encrypted_members_are_refused(store: Store, tmp_path: Path) -> None:
    """Whichever of the two headers says so."""
    for at in ((8, "PK\1\2"), (6, "PK\3\4")):
        data = bytearray(zipped(("good", b"g"), ("secret", b"x")))
        where = data.rindex(at[1].encode())
        data[where + at[0]] |= 1
        assert "'secret' is encrypted" in refusal(store, written(tmp_path, "x.zip", bytes(data)))


def forged(data: bytes, **facts: int) -> bytes:
    """Return a zip whose one member's central record says otherwise."""
    places = {"method": (10, "<H"), "crc": (16, "<L"), "packed": (20, "<L"), "size": (24, "<L"), "offset": (42, "<L")}
    changed = bytearray(data)
    record = changed.rindex(b"PK\1\2")
    for key, value in facts.items():
        struct.pack_into(places[key][1], changed, record + places[key][0], value)
    return bytes(changed)


def test_forged_sizes_are_neither_believed_nor_allocated(store: Store, tmp_path: Path) -> None:
    """A 160-byte zip that asks for gigabytes (cpython#151307), one that hides them, one that lies by a byte."""
    tiny = zipped(("a", b"x"))
    zeros = zipped(("a", bytes(50 << 20)))
    for data, said in (
        (forged(tiny, size=0x7FFFFFFF), "a bomb; its largest member is 'a'"),
        (forged(tiny, size=20 << 20), "'a' is shorter than it says"),
        (forged(zeros, size=10), "'a' is longer than it says"),
        (forged(zeros, size=40 << 20), "'a' is longer than it says"),
        (forged(zipped(("a", b"x"), method=0), size=7), "'a' states a forged size"),
        (forged(tiny, crc=7), "'a' is damaged: its checksum is another"),
        (forged(tiny, packed=1 << 20), "'a' overlaps another one"),
        (forged(tiny, offset=7), "'a' overlaps another one"),
        (forged(tiny, method=9), "'a' is compressed in a way we do not read (method 9)"),
    ):
        assert said in refusal(store, written(tmp_path, "x.zip", data))


def test_a_small_archive_of_gigabytes_is_refused(store: Store, tmp_path: Path) -> None:
    """4 GiB of zeros from a few kilobytes: by the ratio, after little of it; as a zip before any of it."""
    header = info("zeros", size=4 << 30).tobuf()
    for kind, compressor in (
        ("tar.gz", zlib.compressobj(9, wbits=31)),
        ("tar.bz2", bz2.BZ2Compressor()),
        ("tar.zst", zstandard.ZstdCompressor().compressobj()),
    ):
        # As much of it as is read before the refusal.
        data = compressor.compress(header)
        for _ in range(2 + (FREE_BYTES >> 20) * (1 if kind != "tar.gz" else 3) // 2):
            data += compressor.compress(bytes(2 << 20))
        data += compressor.flush()
        said = refusal(store, written(tmp_path, f"x.{kind}", data))
        assert "unpacks to more than 200 times its size: a bomb" in said
    deflated = zlib.compressobj(9, wbits=-15)
    packed = b"".join(deflated.compress(bytes(1 << 20)) for _ in range(80)) + deflated.flush()
    data = zipped(("zeros", packed), method=0)
    assert "a bomb" in refusal(store, written(tmp_path, "x.zip", forged(data, method=8, size=80 << 20)))


def test_limits_are_settings(store: Store, tmp_path: Path) -> None:
    """Members, bytes and ratio; what is within them is taken."""
    path = written(tmp_path, "x.tar", tarred(*((str(number), b"12345678") for number in range(10))))
    assert "has more than 9 members, '9' is one too many" in refusal(store, path, Limits(members=9))
    assert "unpacks to more than 79 bytes" in refusal(store, path, Limits(size_bytes=79))
    zeros = written(tmp_path, "x.zip", zipped(("zeros", bytes(100 << 20))))
    assert "more than 200 times" in refusal(store, zeros)
    assert take(store, path, Limits(members=10, size_bytes=80)).files == 10
    assert take(store, zeros, Limits(ratio=2000)).size_bytes == 100 << 20


def test_a_million_members_are_refused(store: Store, tmp_path: Path) -> None:
    """A zip by what its end record says, or by counting; a tar by counting."""
    many = bytearray(zipped(("a", b"")))
    struct.pack_into("<2L", many, len(many) - 22 + 12, 46 + 1, len(many) - 22 - 47)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, 47, len(many) - 22 - 47)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(many) - 22, 1)
    data = bytes(many[:-22]) + end64 + locator + bytes(many[-22:])
    assert "says it has 1000000 members, more than 300000" in refusal(store, written(tmp_path, "x.zip", data))

    block = bytearray(info("m0000000").tobuf())
    total = int(block[148:154], 8) - 7 * 48

    def headers() -> Iterator[bytes]:
        for digits in itertools.islice(itertools.product(b"0123456789", repeat=7), 300_001):
            block[1:8] = bytes(digits)
            block[148:154] = b"%06o" % (total + sum(digits))
            yield bytes(block)

    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as target:
        target.writelines(headers())
    said = refusal(store, path)
    assert "has more than 300000 members, 'm0300000' is one too many" in said


def test_a_member_costs_little_memory(store: Store, tmp_path: Path) -> None:
    """As many as the limit allows may come at once, in a runner that is to stay small."""
    count = 10_000
    names = (f"data/train/class{number % 100:03}/image_{number:08}.jpg" for number in range(count))
    path = written(tmp_path, "x.zip", zipped(*((name, b"same") for name in names), method=zipfile.ZIP_STORED))
    with path.open("rb") as file:
        tracemalloc.start()
        try:
            store.put_tree(extract(store, file.fileno(), name="x.zip", shown="x.zip", limits=Limits()))
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert most < 550 * count


def test_members_that_share_bytes_are_refused(store: Store, tmp_path: Path) -> None:
    """One kernel behind many names, and the kind that quotes the next header in an extra field (CVE-2024-0450)."""
    plain = zipped(("a", b"kernel" * 100), ("b", b"x"))
    second = plain.rindex(b"PK\1\2")
    record = bytearray(plain)
    struct.pack_into("<L", record, second + 42, 0)
    assert "overlaps another one" in refusal(store, written(tmp_path, "x.zip", bytes(record)))
    # The first member's own header says that it has an extra field as long as the second one's header.
    quoted = bytearray(zipped(("a", b"x"), ("b", b"y"), method=0))
    struct.pack_into("<H", quoted, 28, 32)
    assert "'a' overlaps another one" in refusal(store, written(tmp_path, "x.zip", bytes(quoted)))


def test_headers_without_end_are_refused(store: Store, tmp_path: Path) -> None:
    """Extension headers one after another, one of a gigabyte, sizes below zero (CVE-2025-8194), sparse in pax."""
    extension = tarred(info("x", pax_headers={"comment": "c" * 600}))[: 512 * 3]
    assert extension[156:157] == b"x"
    cases = {
        "extension headers without end": extension * 20,
        "extension headers without end at byte 0": info("x", type=b"x", size=1 << 30).tobuf() + bytes(1024),
        "has an impossible size": _sized(-512),
        "more than 214748364800 bytes": _sized(1 << 52),
        "is a sparse file": tarred(info("x", pax_headers={"GNU.sparse.major": "1"})),
        "a pax size is no number": tarred(info("x", pax_headers={"size": "-512"})),
        "a pax record has no length": extension.replace(b"613 comment", b"xxx comment") + bytes(1024),
        "does not end where it says": extension.replace(b"613 comment", b"614 comment") + bytes(1024),
    }
    for said, data in cases.items():
        assert said in refusal(store, written(tmp_path, "x.tar", data)), said


def _sized(size: int) -> bytes:
    """Return a tar of one member whose header has a binary size."""
    block = bytearray(info("x").tobuf())
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    return bytes(block) + bytes(1024)


def test_owners_times_and_setuid_are_dropped_and_the_x_bit_is_kept(store: Store, tmp_path: Path) -> None:
    """A setuid program comes out as a program, equal to what publishing its directory gives."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/tool").write_bytes(b"#!")
    (tmp_path / "tree/tool").chmod(0o755)
    published = publish(store, tmp_path / "tree")
    assert published is not None
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(info("tool", size=2, mode=0o6755, uid=1234, mtime=99), io.BytesIO(b"#!"))
    packed = zipped((moded("tool", stat.S_IFREG | 0o4755), b"#!"))
    for name, data in (("x.tar", target.getvalue()), ("x.zip", packed)):
        assert take(store, written(tmp_path, name, data)).tree_digest == published.tree_digest


def test_links_inside_become_what_they_lead_to(store: Store, tmp_path: Path) -> None:
    """Symbolic ones at the end, to files and directories and through each other; hard ones at once."""
    data = tarred(
        info("latest", type=LINK, linkname="runs/2"),
        ("runs/1/w", b"one"),
        ("runs/2/w", b"two"),
        info("runs/2/previous", type=LINK, linkname="../1"),
        info("best", type=LINK, linkname="latest/previous/w"),
        info("copy", type=HARD, linkname="./runs/2/w"),
        info("best2", type=HARD, linkname="best"),
    )
    assert contents(store, take(store, written(tmp_path, "x.tar", data))) == {
        "best": b"one",
        "best2": b"one",
        "copy": b"two",
        "latest/previous/w": b"one",
        "latest/w": b"two",
        "runs/1/w": b"one",
        "runs/2/previous/w": b"one",
        "runs/2/w": b"two",
    }


def test_links_cannot_multiply_a_tree_without_end(store: Store, tmp_path: Path) -> None:
    """Thirty directories, each of which holds the next one twice."""
    members = [info(f"d{n}/{side}", type=LINK, linkname=f"../d{n + 1}") for n in range(30) for side in "ab"]
    data = tarred(*members, ("d30/x", b"x"))
    said = refusal(store, written(tmp_path, "x.tar", data), Limits(members=10_000))
    assert "links repeat the archive's own files" in said


def chained(target: str) -> tuple[tarfile.TarInfo | tuple[str, bytes], ...]:
    """Return links of which each leads through all before it, by a way that is long by itself."""
    names = ["d/f", *(f"l{number:02}" for number in range(36))]
    return (("d/f", b"x"), *(info(name, type=LINK, linkname=target + to) for to, name in itertools.pairwise(names)))


def test_the_ways_of_all_links_together_are_bounded(store: Store, tmp_path: Path) -> None:
    """A few bytes of an archive cannot keep the runner busy."""
    for target, why in (("d/../" * 800, "the links lead over too many names"), ("./" * 3000, "a link of more than")):
        assert why in refusal(store, written(tmp_path, "x.tar", tarred(*chained(target))))


def test_following_links_can_be_cancelled(store: Store, tmp_path: Path) -> None:
    """Also once all of the archive is read."""
    path, read = written(tmp_path, "x.tar", tarred(*chained(""))), list[int]()
    with path.open("rb") as file, pytest.raises(Cancelled):
        extract(
            store,
            file.fileno(),
            name="x.tar",
            shown="x.tar",
            limits=Limits(),
            progress=read.append,
            cancelled=lambda: sum(read) == path.stat().st_size,
        )


def test_a_decoder_gets_no_more_memory_than_its_tools_take(store: Store, tmp_path: Path) -> None:
    """A header that asks for a dictionary of 4 GiB is refused."""
    data = bytearray(lzma.compress(tarred(("a", b"1"))))
    assert data[14:16] == b"\x21\1"
    data[16] = 40
    end = 12 + (data[12] + 1) * 4
    struct.pack_into("<L", data, end - 4, zlib.crc32(data[12 : end - 4]))
    assert "cannot be decompressed: xz says Memory usage limit exceeded" in refusal(
        store, written(tmp_path, "x.tar.xz", bytes(data))
    )


def test_links_that_make_a_path_too_long_are_refused(store: Store, tmp_path: Path) -> None:
    """Each is in order by itself."""
    name = "n" * 250
    members = [info(f"{n}{name}/{name}", type=LINK, linkname=f"../{n + 1}{name}") for n in range(20)]
    data = tarred(*members, (f"20{name}/{name}", b"x"))
    assert "longer or deeper than a tree may be" in refusal(store, written(tmp_path, "x.tar", data))


@pytest.mark.parametrize("by", ["links", "themselves"])
def test_names_are_bounded_in_all(by: str, store: Store, tmp_path: Path) -> None:
    """Files that have long names, or that links show under such, are refused before those fill the memory."""
    name = "n" * 240
    links = [info(f"{n}{name}/{name}", type=LINK, linkname=f"../{n + 1}{name}") for n in range(12)]
    above = f"12{name}" if by == "links" else f"{name}/{name}/{name}"
    files = [(f"{above}/{number}", b"x") for number in range(2000)]
    path = written(tmp_path, "x.tar", tarred(*(links if by == "links" else ()), *files))
    assert "has names that are too long" in refusal(store, path, Limits(members=2100))


def test_what_real_tools_bear_is_borne(store: Store, tmp_path: Path) -> None:
    """Garbage behind the end, a program in front of a zip, gzip members one after another, old compressions."""
    whole = tarred(("a", b"1"))
    good = {
        "a.tar": whole + b"garbage" * 100,
        "b.tar.gz": gzip.compress(whole) + b"garbage",
        "c.tar.gz": gzip.compress(whole[:700]) + gzip.compress(whole[700:]) + bytes(512),
        "d.tar.bz2": bz2.compress(whole[:700]) + bz2.compress(whole[700:]) + b"garbage",
        "e.tar.xz": lzma.compress(whole[:512]) + lzma.compress(whole[512:]) + bytes(8),
        "f.tar.zst": zstandard.compress(whole[:512]) + zstandard.compress(whole[512:]),
        "g.zip": zipped(("a", b"1")) + b"garbage" * 100,
        "h.zip": b"#!/bin/sh\n" * 50 + zipped(("a", b"1")),
        "i.zip": zipped(("a", b"1"), method=zipfile.ZIP_BZIP2),
        "streamed.zip": _streamed(),
        "misnamed.tar.bz2": gzip.compress(whole),
        "j.tgz": gzip.compress(tarred(("./a", b"1"), pax=False)),
        "K.TAR": tarred(info("sub", type=tarfile.DIRTYPE), ("a", b"1")),
    }
    for name, data in good.items():
        assert contents(store, take(store, written(tmp_path, name, data))) == {"a": b"1"}, name


def _streamed() -> bytes:
    """Return a zip as a program writes it to a pipe: sizes after the bytes, in 64 bits."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    target = Pipe()
    with (
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a", "w", force_zip64=True) as file,
    ):
        file.write(b"1")
    return target.getvalue()


def test_only_what_its_name_calls_an_archive_is_unpacked(store: Store, tmp_path: Path) -> None:
    """Many formats are zips inside; a `.gz` that is no tar is a file; with no-extract everything is."""
    data = zipped(("archive/data.pkl", b"weights"))
    for name in ("model.pt", "model.pth", "x.whl", "x.npz", "x.docx", "x.jar", "x.keras", "table.csv.gz"):
        assert contents(store, take(store, written(tmp_path, name, data))) == {name: data}
    kept = fetch(
        store,
        parse(str(written(tmp_path, "x.zip", data)), PurePath("/")),
        SourceOptions(),
        progress=lambda *_: None,
        cancelled=lambda: False,
    )
    assert contents(store, kept) == {"x.zip": data}
    unpacked = take(store, tmp_path / "x.zip")
    assert contents(store, unpacked) == {"archive/data.pkl": b"weights"}, "the one directory that holds all is kept"
    assert unpacked.pins["archive"] == store.manifest(kept.tree_digest).entries[0].digest


def test_a_file_that_is_not_what_its_name_says_is_refused(store: Store, tmp_path: Path) -> None:
    """A page that asks to sign in, saved under an archive's name, is no input."""
    page = b"<!DOCTYPE html><title>Sign in</title>" + bytes(1000)
    assert "is no zip archive" in refusal(store, written(tmp_path, "x.zip", page))
    assert "is no tar archive" in refusal(store, written(tmp_path, "x.tar.gz", page))
    assert "is no tar archive" in refusal(store, written(tmp_path, "x.tgz", gzip.compress(page)))
    assert "is no tar archive" in refusal(store, written(tmp_path, "x.tar", b""))


def test_an_archive_without_files_makes_no_artifact(store: Store, tmp_path: Path) -> None:
    """Neither do directories alone."""
    directory = zipfile.ZipInfo("d/")
    for name, data in (("x.tar", tarred()), ("y.zip", zipped()), ("z.zip", zipped((directory, b"")))):
        with pytest.raises(SourceMissing, match="holds no files"):
            take(store, written(tmp_path, name, data))
    assert left(store) == []


def test_an_unchanged_archive_neither_travels_nor_is_unpacked_again(store: Store, tmp_path: Path) -> None:
    """Not even when a sweep took its own bytes; where its tree is gone, it is fetched anew."""
    (tmp_path / "www").mkdir()
    written(tmp_path / "www", "x.zip", zipped(("a", b"1"), ("b", b"2")))
    with http_server(tmp_path / "www") as web:

        def again() -> tuple[Fetched, list[str]]:
            asked = len(web.requests)
            uri = parse(f"{web.url}/x.zip", PurePath("/"))
            fetched = fetch(
                store,
                uri,
                SourceOptions(),
                progress=lambda *_: None,
                cancelled=lambda: False,
                extract=Limits(),
            )
            ranges = [headers.get("range", "all") for _, _, headers in web.requests[asked:]]
            return fetched, [each for each in ranges if each != "bytes=0-0"]

        first, moved = again()
        assert len(moved) == 1
        assert again() == (first, [])
        assert store.sweep([first.tree_digest]).objects in {0, 1}
        store.object_path(first.pins["archive"]).unlink(missing_ok=True)
        assert again() == (first, [])
        (store.root / "trees" / f"{first.tree_digest}.json").unlink()
        assert again() == (first, moved)
    assert contents(store, first) == {"a": b"1", "b": b"2"}


def test_a_cancelled_one_stops_between_members(store: Store, tmp_path: Path) -> None:
    """And leaves no tree."""
    for name, data in (
        ("x.zip", zipped(*((str(n), os.urandom(1000)) for n in range(50)))),
        ("x.tar", tarred(*((str(n), os.urandom(100_000)) for n in range(50)))),
    ):
        asked = itertools.count()
        with pytest.raises(Cancelled), written(tmp_path, name, data).open("rb") as file:
            extract(
                store,
                file.fileno(),
                name=name,
                shown=name,
                limits=Limits(),
                cancelled=lambda asked=asked: next(asked) >= 10,  # type: ignore[misc]
            )
    assert store.usage().trees == 0
