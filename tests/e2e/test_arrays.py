"""Arrays as their user sees them: `run` follows all elements at once, over a runner that is killed meanwhile."""

from __future__ import annotations

import signal

from tests.kit import Box

# Says a line, waits for its gate, says another; element 2 fails.
SCRIPT = """
echo began $STOKER_ARRAY_INDEX
until [ -e go-$STOKER_ARRAY_INDEX ]; do sleep 0.02; done
printf 'ended %s' $STOKER_ARRAY_INDEX
[ $STOKER_ARRAY_INDEX != 2 ]
"""


def test_run_follows_every_element_of_an_array(runner: Box) -> None:
    """Lines of all elements come as they are written, each with its element's name, once; the code is 1."""
    process = runner.spawn("run", "--name", "sweep", "--array", "0-3", "--cpus", "0", "--", "sh", "-c", SCRIPT)
    assert process.stdout
    began = {process.stdout.readline() for _ in range(4)}
    assert began == {b"1[%d] | began %d\n" % (index, index) for index in range(4)}
    for index in (3, 0):
        (runner.home / f"go-{index}").touch()
        assert process.stdout.readline() == b"1[%d] | ended %d\n" % (index, index)
    runner.kill_runner()
    for index in (1, 2):
        (runner.home / f"go-{index}").touch()
    rest, told = process.communicate(timeout=60)
    assert sorted(rest.splitlines()) == [b"1[1] | ended 1", b"1[2] | ended 2"]
    assert process.returncode == 1
    assert b"job 1[2] sweep failed" in told
    shown = runner.ok("show", "1")
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith("  [")] == [
        [f"[{index}]", "1", "nonzero_exit" if index == 2 else "completed"] for index in range(4)
    ]


def test_attach_to_an_array_leaves_out_what_is_over(runner: Box) -> None:
    """`attach` tells of the elements that go on, each from its last lines; `logs -f` tells all; both end with it."""
    (runner.home / "go-0").touch()
    job = runner.submit("--array", "0-1", "--cpus", "0", "--", "sh", "-c", SCRIPT)
    runner.wait(f"{job}[0]")
    process = runner.spawn("attach", job)
    assert process.stdout
    assert process.stdout.readline() == b"1[1] | began 1\n"
    (runner.home / "go-1").touch()
    rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, b"1[1] | ended 1\n")
    whole = runner.ok("logs", "-f", job).splitlines()
    assert sorted(whole) == ["1[0] | began 0", "1[0] | ended 0", "1[1] | began 1", "1[1] | ended 1"]


def test_ctrl_c_leaves_an_array_alone(runner: Box) -> None:
    """`run` of an array detaches like any other, and its elements go on."""
    process = runner.spawn("run", "--array", "0-1", "--cpus", "0", "--", "sh", "-c", SCRIPT)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"detached; job 1 goes on" in told
    for index in (0, 1):
        (runner.home / f"go-{index}").touch()
    assert runner.wait("1")["state"] == "succeeded"


def test_no_line_of_a_short_element_is_lost(runner: Box) -> None:
    """Elements that begin and end between two looks are told too, and more of them than are followed at once."""
    elements = 300
    told = runner.ok("run", "--array", f"0-{elements - 1}", "--cpus", "0", "--", "sh", "-c", "echo a; echo b")
    expected = sorted(f"1[{index}] | {word}" for index in range(elements) for word in "ab")
    assert sorted(told.splitlines()) == expected
    assert sorted(runner.ok("logs", "-f", "1").splitlines()) == expected
