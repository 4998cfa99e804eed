"""Secrets at rest: what opens, what stays locked, and how the key file is guarded (X21)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.errors import Refused, UsageError
from runner.identity.sealing import VALUE_BYTES_MAX, Sealer, SecretLocked

CANARY = b"canary-7f3a9c"


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    """Where the keys go."""
    return tmp_path / "secret.keys"


def test_a_value_comes_back_for_its_own_row_only(key_path: Path) -> None:
    """Owner, kind and name are bound in: a blob moved to any other row stays locked, and no error shows it."""
    sealer = Sealer.open(key_path)
    blob = sealer.seal(1000, "environment", "TOKEN", CANARY)
    assert sealer.unseal(1000, "environment", "TOKEN", blob) == CANARY
    assert CANARY not in blob
    for owner, kind, name in [
        (1001, "environment", "TOKEN"),
        (1000, "key", "TOKEN"),
        (1000, "environment", "TOKEM"),
        (1000, "environmentT", "OKEN"),
    ]:
        with pytest.raises(SecretLocked) as caught:
            sealer.unseal(owner, kind, name, blob)
        assert CANARY.decode() not in str(caught.value.document())


def test_every_flipped_bit_is_found(key_path: Path) -> None:
    """Version, key id, nonce, text and tag: no single bit may differ."""
    sealer = Sealer.open(key_path)
    blob = sealer.seal(0, "k", "n", CANARY)
    for bit in range(len(blob) * 8):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SecretLocked):
            sealer.unseal(0, "k", "n", bytes(flipped))


def test_a_truncated_blob_is_said_to_be_one(key_path: Path) -> None:
    """Every prefix of a blob is refused."""
    sealer = Sealer.open(key_path)
    blob = sealer.seal(0, "k", "n", b"")
    assert sealer.unseal(0, "k", "n", blob) == b""
    for length in range(len(blob)):
        with pytest.raises(SecretLocked, match="cut short"):
            sealer.unseal(0, "k", "n", blob[:length])


def test_equal_values_are_sealed_differently(key_path: Path) -> None:
    """A fresh nonce each time: nobody can tell that two rows hold the same."""
    sealer = Sealer.open(key_path)
    assert len({sealer.seal(0, "k", "n", CANARY) for _ in range(100)}) == 100


def test_another_key_file_opens_nothing_and_names_the_key(key_path: Path, tmp_path: Path) -> None:
    """With the wrong key file a secret stays locked; the error says which key is needed."""
    sealer = Sealer.open(key_path)
    blob = sealer.seal(0, "k", "n", CANARY)
    other = Sealer.open(tmp_path / "other.keys")
    with pytest.raises(SecretLocked, match=sealer.key_id):
        other.unseal(0, "k", "n", blob)


def test_a_lost_key_file_is_told_not_replaced(key_path: Path) -> None:
    """Where secrets exist already, a missing key file locks them and no new one is made."""
    with pytest.raises(SecretLocked, match="missing"):
        Sealer.open(key_path, create=False)
    assert not key_path.exists()


def test_the_key_file_is_private_from_its_first_moment(key_path: Path) -> None:
    """Mode 0600 whatever the umask, nothing left beside it, and the next start reads the same keys."""
    umask = os.umask(0)
    try:
        first = Sealer.open(key_path)
    finally:
        os.umask(umask)
    assert key_path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(key_path.parent) == [key_path.name]
    second = Sealer.open(key_path, create=False)
    assert second.unseal(0, "k", "n", first.seal(0, "k", "n", CANARY)) == CANARY
    assert second.keyed_hash(b"body") == first.keyed_hash(b"body")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610])
def test_a_key_file_that_others_can_reach_is_refused_with_the_remedy(key_path: Path, mode: int) -> None:
    """Any bit for group or others: refused, and the hint is the command that mends it."""
    Sealer.open(key_path)
    key_path.chmod(mode)
    with pytest.raises(Refused) as caught:
        Sealer.open(key_path)
    assert caught.value.hint == f"chmod 600 {key_path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_key_file_of_another_user_is_refused(key_path: Path) -> None:
    """A file that somebody else owns is not ours, whatever it says."""
    Sealer.open(key_path)
    os.chown(key_path, 12345, -1)
    with pytest.raises(Refused, match="uid 12345"):
        Sealer.open(key_path)


def _link(path: Path) -> None:
    Sealer.open(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("make", [_link, _dangling, os.mkfifo, os.mkdir])
def test_only_a_plain_file_is_a_key_file(key_path: Path, make: Callable[[Path], None]) -> None:
    """A link, a FIFO or a directory in its place is refused at once and not followed."""
    make(key_path)
    with pytest.raises(Refused):
        Sealer.open(key_path)


@pytest.mark.parametrize("damage", ["", "stoker-keys 2\n", "x", "stoker-keys 1\nseal 00\n"])
def test_a_damaged_key_file_locks_and_is_kept(key_path: Path, damage: str) -> None:
    """A key file that cannot be read is said so and never written over."""
    key_path.touch(mode=0o600)
    key_path.write_text(damage)
    with pytest.raises(SecretLocked, match="damaged"):
        Sealer.open(key_path)
    assert key_path.read_text() == damage


@pytest.mark.parametrize(
    ("old", "new"), [("stoker-keys 1", "stoker-keys 2"), ("\nseal", "\nsea\nseal"), ("hash", "seal")]
)
def test_a_key_file_with_a_strange_line_locks(key_path: Path, old: str, new: str) -> None:
    """Another format, a line that says nothing, a missing purpose: the file is not half understood."""
    Sealer.open(key_path)
    key_path.write_text(key_path.read_text().replace(old, new))
    with pytest.raises(SecretLocked, match="damaged"):
        Sealer.open(key_path)


@pytest.mark.parametrize("cut", [1, 30, 65, 100])
def test_a_key_file_cut_short_locks(key_path: Path, cut: int) -> None:
    """A partly written key file is never taken for a shorter one."""
    Sealer.open(key_path)
    whole = key_path.read_bytes()
    key_path.write_bytes(whole[:-cut])
    with pytest.raises(SecretLocked, match="damaged"):
        Sealer.open(key_path)


def test_rotation_opens_the_old_and_seals_with_the_new(key_path: Path) -> None:
    """Old blobs open until the old keys are retired; resealed ones after it; keyed hashes never change."""
    sealer = Sealer.open(key_path)
    old, hashed = sealer.seal(7, "k", "n", CANARY), sealer.keyed_hash(b"body")
    first = sealer.key_id
    assert sealer.rotate() != first
    assert sealer.unseal(7, "k", "n", old) == CANARY
    new = sealer.reseal(7, "k", "n", old)
    assert sealer.reseal(7, "k", "n", new) is new
    assert sealer.retire() == 1
    for keeper in (sealer, Sealer.open(key_path, create=False)):
        assert keeper.unseal(7, "k", "n", new) == CANARY
        assert keeper.keyed_hash(b"body") == hashed
        with pytest.raises(SecretLocked, match=first):
            keeper.unseal(7, "k", "n", old)
    assert key_path.stat().st_mode & 0o7777 == 0o600


def test_runners_that_start_at_once_share_one_key_file(key_path: Path) -> None:
    """The first file in its place is the key file; everyone reads that one."""
    with ThreadPoolExecutor(16) as pool:
        sealers = list(pool.map(lambda _: Sealer.open(key_path), range(16)))
    assert len({sealer.key_id for sealer in sealers}) == 1
    assert os.listdir(key_path.parent) == [key_path.name]


ROTATOR = """
import sys
from pathlib import Path
from runner.identity.sealing import Sealer
sealer = Sealer.open(Path(sys.argv[1]))
while True:
    sealer.rotate()
    print("rotated", flush=True)
    sealer.retire()
"""


def test_a_kill_during_rotation_leaves_a_whole_key_file(key_path: Path) -> None:
    """SIGKILL at any instant: the keys are the old ones or the new, and what a kill left is gone after the next."""
    hashed = Sealer.open(key_path).keyed_hash(b"body")
    for kill in range(5):
        with subprocess.Popen([sys.executable, "-c", ROTATOR, str(key_path)], stdout=subprocess.PIPE) as rotator:
            assert rotator.stdout is not None
            for _ in range(3 + 5 * kill):
                rotator.stdout.readline()
            os.kill(rotator.pid, signal.SIGKILL)
        sealer = Sealer.open(key_path, create=False)
        assert sealer.keyed_hash(b"body") == hashed
    sealer.retire()
    assert os.listdir(key_path.parent) == [key_path.name]


def test_resealing_does_not_adopt_a_blob_of_another_row(key_path: Path) -> None:
    """A blob swapped into another row is refused on reseal, not bound to its new place."""
    sealer = Sealer.open(key_path)
    blob = sealer.seal(7, "k", "n", CANARY)
    sealer.rotate()
    with pytest.raises(SecretLocked):
        sealer.reseal(8, "k", "n", blob)


def test_a_systemd_credential_seals_and_the_key_file_still_opens(key_path: Path, tmp_path: Path) -> None:
    """Moving to a credential keeps what was sealed before; rotation is then systemd's business."""
    before = Sealer.open(key_path).seal(0, "k", "n", CANARY)
    credential = tmp_path / "credential"
    wanted = Sealer.open(credential).key_id
    credential.chmod(0o440)
    sealer = Sealer.open(key_path, credential_path=credential)
    assert sealer.key_id == wanted
    assert sealer.unseal(0, "k", "n", before) == CANARY
    with pytest.raises(Refused, match="credential"):
        sealer.rotate()
    with pytest.raises(SecretLocked, match="missing"):
        Sealer.open(key_path, credential_path=tmp_path / "gone")


def test_absurd_input_is_refused(key_path: Path) -> None:
    """Values, kinds, names and owners are bounded."""
    sealer = Sealer.open(key_path)
    for owner, kind, name, value in [
        (0, "k", "n", b"x" * (VALUE_BYTES_MAX + 1)),
        (0, "", "n", b""),
        (0, "k", "n" * 256, b""),
        (-1, "k", "n", b""),
        (1 << 32, "k", "n", b""),
    ]:
        with pytest.raises(UsageError):
            sealer.seal(owner, kind, name, value)


def test_keys_do_not_show(key_path: Path) -> None:
    """No repr of the sealer or of what it holds contains a key."""
    sealer = Sealer.open(key_path)
    shown = repr(sealer) + repr(sealer._own)
    keys = [line.split()[1] for line in key_path.read_text().splitlines()[1:]]
    assert len(keys) == 2
    for key in keys:
        assert key not in shown
        assert repr(bytes.fromhex(key))[2:-1] not in shown


def test_importing_costs_no_cryptography() -> None:
    """The module is imported by a runner that may never seal anything."""
    code = "import runner.identity.sealing, sys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ROWS = st.tuples(st.integers(0, 2**32 - 1), st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))


@given(st.lists(ROWS, min_size=2, max_size=3, unique=True), st.binary(max_size=200))
def test_no_two_rows_open_each_other(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, str]], value: bytes
) -> None:
    """Whatever their text, two different rows never share their bound bytes."""
    sealer = Sealer.open(tmp_path_factory.getbasetemp() / "property.keys")
    blobs = {row: sealer.seal(*row, value) for row in rows}
    for ours, theirs in permutations(rows, 2):
        assert sealer.unseal(*ours, blobs[ours]) == value
        with pytest.raises(SecretLocked):
            sealer.unseal(*ours, blobs[theirs])
