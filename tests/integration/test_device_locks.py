"""Device locks: two runners of different users never have one device, whatever lies in the folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from runner.core.errors import Unavailable
from runner.gpus.locks import acquire, holder_pid, holds, lock_path

ROOT = Path(__file__).parents[2]
UUID = "GPU-11111111-2222-3333-4444-555555555555"

# A winner that finds the mark of another has shared the device. Every fourth win removes the lock file while it is
# held, where its maker may, as a cleaner of the folder would. Nobody leaves before both have won their rounds.
CONTEND = """
import os, sys
from pathlib import Path
from runner.gpus.locks import acquire
directory, uid, uuid, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
os.chdir(directory)
if uid != os.getuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
folder, shared, lost = Path("."), 0, 0
wins = [Path("wins-0"), Path("wins-1")]
print("ready", flush=True)
mine = wins[int(sys.stdin.readline())]
while min(win.stat().st_size for win in wins) < rounds:
    lock = acquire(folder, uuid)
    if lock is None:
        lost += 1
        os.sched_yield()
        continue
    try:
        os.close(os.open("mark", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        shared += 1
        os.close(lock)
        continue
    with mine.open("a") as file:
        file.write(".")
    os.sched_yield()
    os.unlink("mark")
    if mine.stat().st_size % 4 == 0:
        try:
            os.unlink(f"stoker-{uuid}")
        except PermissionError:
            pass
    os.close(lock)
    os.sched_yield()
print(shared, lost)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder like /run/lock: everyone may write, only a file's owner may remove it."""
    made = tmp_path / "lock"
    made.mkdir()
    made.chmod(0o1777)
    return made


def python(script: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start a script that can import ours."""
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_lock_is_held_by_one_at_a_time(folder: Path) -> None:
    """The second gets None until the first lets go; another device is another lock."""
    first = acquire(folder, UUID)
    assert first is not None
    assert acquire(folder, UUID) is None
    other = acquire(folder, "MIG-another")
    assert other is not None
    os.close(first)
    again = acquire(folder, UUID)
    assert again is not None
    for descriptor in (other, again):
        os.close(descriptor)


def test_a_passed_descriptor_keeps_the_lock_when_the_runner_is_gone(folder: Path) -> None:
    """Runner and watcher share one open file description: the last to close it frees the device."""
    lock = acquire(folder, UUID)
    assert lock is not None
    watcher = python("import sys; sys.stdin.read()", pass_fds=[lock])
    os.close(lock)
    assert acquire(folder, UUID) is None
    watcher.communicate()
    after = acquire(folder, UUID)
    assert after is not None
    os.close(after)


def test_a_lock_is_not_inherited_by_accident(folder: Path) -> None:
    """A program that is merely started does not hold the device."""
    lock = acquire(folder, UUID)
    assert lock is not None
    assert not os.get_inheritable(lock)
    os.close(lock)


def test_the_file_is_for_every_user_whatever_the_umask(folder: Path) -> None:
    """A private runner with a tight umask must not lock the others out for ever."""
    before = os.umask(0o077)
    try:
        lock = acquire(folder, UUID)
    finally:
        os.umask(before)
    assert lock is not None
    assert stat.S_IMODE(lock_path(folder, UUID).stat().st_mode) == 0o666
    os.close(lock)


def test_two_users_contend_for_200_rounds_and_never_share(folder: Path) -> None:
    """Two uids, the lock file removed now and then under them, and never both inside."""
    uids = (65534, 1234) if os.getuid() == 0 else (os.getuid(), os.getuid())
    for place in range(2):
        (folder / f"wins-{place}").touch()
        (folder / f"wins-{place}").chmod(0o666)
    both = [python(CONTEND, str(folder), str(uid), UUID, "100") for uid in uids]
    for contender in both:
        assert contender.stdout
        assert contender.stdout.readline() == "ready\n"
    for place, contender in enumerate(both):
        assert contender.stdin
        contender.stdin.write(f"{place}\n")
        contender.stdin.flush()
    outcomes = [contender.communicate()[0].split() for contender in both]
    assert [shared for shared, _ in outcomes] == ["0", "0"]
    assert sum(int(lost) for _, lost in outcomes) > 0


def test_a_removed_file_is_noticed_by_its_holder(folder: Path) -> None:
    """Who has the old file's lock can tell that others would lock another file."""
    old = acquire(folder, UUID)
    assert old is not None
    assert holds(old, folder, UUID)
    lock_path(folder, UUID).unlink()
    assert not holds(old, folder, UUID)
    new = acquire(folder, UUID)
    assert new is not None
    assert holds(new, folder, UUID)
    assert not holds(old, folder, UUID)
    os.close(old)
    os.close(new)


@pytest.mark.parametrize(
    ("event", "change"),
    [
        ("fcntl.flock", "os.unlink(path)"),
        ("fcntl.flock", "os.unlink(path); os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))"),
        ("open", "os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))"),
    ],
    ids=["removed before flock", "replaced before flock", "made before ours"],
)
def test_a_file_changed_at_the_worst_instant_is_locked_anew(folder: Path, event: str, change: str) -> None:
    """Python announces each call just before it is made: there another process removes, replaces or makes the file."""
    script = f"""
import fcntl, os, sys
from pathlib import Path
from runner.gpus.locks import acquire, holds
path, pending = sys.argv[1] + "/stoker-GPU-a", [True]
def hook(event, arguments):
    creates = event != "open" or (arguments[2] or 0) & os.O_CREAT
    if event == "{event}" and creates and pending:
        pending.clear()
        {change}
sys.addaudithook(hook)
lock = acquire(Path(sys.argv[1]), "GPU-a")
print(not pending, lock is not None and holds(lock, Path(sys.argv[1]), "GPU-a"))
"""
    assert python(script, str(folder)).communicate()[0] == "True True\n"


@pytest.mark.parametrize("target", ["victim", "nothing"])
def test_a_planted_link_is_refused_and_its_target_untouched(folder: Path, tmp_path: Path, target: str) -> None:
    """A link is not followed, whether it leads somewhere or not."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    lock_path(folder, UUID).symlink_to(tmp_path / target)
    with pytest.raises(Unavailable, match="not a plain file"):
        acquire(folder, UUID)
    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert not (tmp_path / "nothing").exists()


def test_a_planted_hard_link_changes_nothing_of_its_target(folder: Path, tmp_path: Path) -> None:
    """A file that was there before is locked at most, never written and never opened up."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    lock_path(folder, UUID).hardlink_to(victim)
    lock = acquire(folder, UUID)
    assert lock is not None
    os.close(lock)
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("precious", 0o600)


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_a_planted_fifo_or_folder_is_refused_without_hanging(folder: Path, plant: object) -> None:
    """Nobody waits for a writer that never comes, and the hint names the file to remove."""
    assert callable(plant)
    plant(lock_path(folder, UUID))
    with pytest.raises(Unavailable, match="not a plain file") as refused:
        acquire(folder, UUID)
    assert str(lock_path(folder, UUID)) in refused.value.hint


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A box without /run/lock says so instead of handing out unlocked devices."""
    with pytest.raises(Unavailable, match="folder does not exist"):
        acquire(tmp_path / "none", UUID)


@pytest.mark.parametrize("uuid", ["", "../escape", "GPU/a", "GPU-\n", "GPU-a\0", "GPU-ä", "a" * 97])
def test_what_is_no_uuid_never_becomes_a_path(folder: Path, uuid: str) -> None:
    """Only letters, digits and dashes name a lock."""
    with pytest.raises(ValueError, match="not a device UUID"):
        acquire(folder, uuid)
    assert list(folder.iterdir()) == []


def test_the_holder_is_told_where_the_kernel_tells(folder: Path) -> None:
    """The process that took the lock is named while it is held, and nobody after."""
    assert holder_pid(folder, UUID) is None
    lock = acquire(folder, UUID)
    assert lock is not None
    assert holder_pid(folder, UUID) == os.getpid()
    os.close(lock)
    assert holder_pid(folder, UUID) is None
