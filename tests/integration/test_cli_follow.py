"""`run`, `attach` and `logs -f`: what is followed, over breaks, to the job's own exit code."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.api import OUTCOME, SUBMITTED, Answer, FakeApi, Request, event, log_event
from tests.integration.cli_kit import Cli

LOGS = "GET /v1/jobs/42/logs"


def test_run_follows_to_the_end(cli: Cli, api: FakeApi) -> None:
    """The log is on stdout byte for byte; states and the summary are on stderr; the code is the job's."""
    outcome = {
        **OUTCOME,
        "code": 7,
        "summary": "job 42 brave-otter failed with 7",
        "hint": "`stoker logs 42` shows what it said",
        "outputs": [{"name": "model", "digest": "sha256:ab", "size_bytes": 2048}],
    }
    pieces = [
        event("state", {"state": "pending", "reason": {"kind": "resources", "sentence": "waiting for GPU-3f2a"}}),
        event("state", {"state": "pending", "reason": {"kind": "staging", "sentence": "fetching 10%"}}),
        event("state", {"state": "pending", "reasons": [{"kind": "staging", "sentence": "fetching 90%"}]}),
        event("state", {"state": "running", "reasons": []}),
        log_event(0, b"loss 0.5\n\xff\x00\x1b[2J"),
        event("end", outcome),
    ]
    api.routes[LOGS] = lambda _: Answer(stream=iter(pieces))
    done = cli("run", "--", "python", "train.py")
    assert done.returncode == 7
    assert done.stdout.encode("utf-8", "surrogateescape") == b"loss 0.5\n\xff\x00\x1b[2J"
    assert done.stderr.splitlines() == [
        "job 42 brave-otter · queued: waiting for GPU-3f2a, held by job 40",
        "job 42 brave-otter · queued: fetching 10%",
        "job 42 brave-otter · running",
        "output: model sha256:ab 2.0 KiB",
        "  hint: `stoker logs 42` shows what it said",
        "job 42 brave-otter failed with 7",
    ]


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"COLUMNS": "50"}], ids=["colour", "plain", "narrow"])
def test_whoever_watches_sees_a_bar_and_a_pipe_sees_none(cli: Cli, api: FakeApi, env: dict[str, str]) -> None:
    """On a terminal a transfer is drawn in one line that fits; where that is too narrow, or piped, words do."""

    def state(sentence: str, **data: int) -> bytes:
        reason = {"kind": "staging", "sentence": sentence, "data": data}
        return event("state", {"state": "pending", "reasons": [reason]})

    told = "input data: 42% of 3.1 GiB, 85.0 MiB/s, 25 s left"
    pieces = [state("input data"), state(told, done_bytes=42, total_bytes=100), event("end", OUTCOME)]
    api.routes[LOGS] = lambda _: Answer(stream=iter(pieces))
    _, shown = cli.on_terminal("run", "--", "true", env={"COLUMNS": "80"} | env)
    lines = [re.sub(r"\x1b\[[0-9;]*[mK]", "", line) for line in re.split("[\r\n]+", shown)]
    drawn = next(line for line in lines if "42%" in line)
    assert max(map(len, lines[1:])) < int(env.get("COLUMNS", "80"))
    assert ("━" in drawn) == ("COLUMNS" not in env)
    assert ("\x1b[9" in shown) == (not env)
    assert drawn.endswith("42% of 3.1 GiB, 85.0 MiB/s, 25 s left")
    piped = cli("run", "--", "true").stderr
    assert "━" not in piped and "42%" not in piped


def test_following_goes_on_at_the_same_byte(cli: Cli, api: FakeApi) -> None:
    """A runner that dies while it streams costs no byte and doubles none."""
    log = b"".join(b"line %d\n" % number for number in range(100))
    first = event("attempt", {"number": 1})

    def stream(request: Request) -> Answer:
        asked = dict(pair.split("=") for pair in request.query.split("&"))
        at = int(asked.get("resume", "1%3A0").partition("%3A")[2])
        piece = log[at : at + 200]
        if at + len(piece) == len(log):
            return Answer(stream=iter([first, log_event(at, piece), event("end", OUTCOME)]))
        return Answer(stream=iter([first, log_event(at, piece)]), cut=True)

    api.routes[LOGS] = stream
    done = cli("run", "--", "true")
    assert (done.returncode, done.stdout.encode()) == (0, log)
    asked = [request.query for request in api.requests if request.method == "GET"]
    assert ["resume=1%3A200" in query for query in asked[:3]] == [False, True, False]
    assert "resume=1%3A400" in asked[2]


def test_attach_begins_with_the_last_lines(cli: Cli, api: FakeApi) -> None:
    """`attach` asks for a tail and gives the job's code."""
    api.routes[LOGS] = lambda _: Answer(
        stream=iter([log_event(990, b"last\n"), event("end", {**OUTCOME, "code": 125})])
    )
    done = cli("attach", "42")
    assert (done.returncode, done.stdout) == (125, "last\n")
    assert "tail=20" in api.requests[0].query


def test_logs_follow_says_nothing_of_states(cli: Cli, api: FakeApi) -> None:
    """`logs -f` is the log alone and ends with 0."""
    pieces = [
        event("state", {"state": "running", "reason": None}),
        log_event(0, b"x\n"),
        event("end", {**OUTCOME, "code": 9}),
    ]
    api.routes[LOGS] = lambda _: Answer(stream=iter(pieces))
    done = cli("logs", "-f", "42")
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")


def test_following_a_job_that_is_not_there(cli: Cli, api: FakeApi) -> None:
    """A refusal instead of a stream is an error like any other."""
    assert cli("attach", "nobody").returncode == 3


def test_ctrl_c_detaches_and_says_how_to_stop(cli: Cli, api: FakeApi) -> None:
    """One Ctrl-C leaves the job alone: 130, and the words that follow or stop it."""
    api.routes[LOGS] = lambda _: Answer(stream=_endless())
    process = cli.start("run", "--", "true")
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"detached; job 42 goes on" in told
    assert b"`stoker attach 42`" in told
    assert b"`stoker stop 42`" in told
    assert b"Traceback" not in told
    assert [request.path for request in api.requests if request.method == "POST"] == ["/v1/jobs"]


def test_a_second_ctrl_c_stops_the_job(cli: Cli, api: FakeApi) -> None:
    """Twice within two seconds: the job is asked to stop."""
    api.routes[LOGS] = lambda _: Answer(stream=_endless())
    api.routes["POST /v1/jobs/stop"] = {"jobs": [{"id": "42", "state": "stopping", "sentence": "stopping (SIGTERM)"}]}
    process = cli.start("run", "--", "true")
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    assert b"queued" in process.stderr.readline()
    assert b"detached" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"42 stopping (SIGTERM)" in told
    assert api.requests[-1].document == {"refs": ["42"], "grace_s": None}


def test_a_command_cannot_forge_a_line(cli: Cli, api: FakeApi) -> None:
    """A line break in a command stays in the one line that tells of it."""
    summary = "job 42 x failed: there is no command 'a\njob 42 x succeeded'"
    api.routes["GET /v1/jobs/42/wait"] = {**OUTCOME, "code": 127, "exit_code": 127, "summary": summary}
    done = cli("submit", "-w", "--", "a\njob 42 x succeeded")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (127, summary.replace("\n", "\\x0a"))


def test_quiet_does_not_hide_why_nothing_ran(cli: Cli, api: FakeApi) -> None:
    """-q says nothing of a job whose own code tells, and all of one that never came to run."""
    outcome = {**OUTCOME, "code": 125, "exit_code": None, "summary": "job 42 x failed · no such host", "hint": "mend"}
    api.routes[LOGS] = lambda _: Answer(stream=iter([event("end", outcome)]))
    done = cli("-q", "run", "--", "true")
    assert (done.returncode, done.stderr) == (125, "  hint: mend\njob 42 x failed · no such host\n")
    api.routes[LOGS] = lambda _: Answer(stream=iter([event("end", {**outcome, "exit_code": 3, "code": 3})]))
    done = cli("-q", "run", "--", "true")
    assert (done.returncode, done.stderr) == (3, "")


def test_ctrl_c_speaks_of_the_job_that_was_attached(cli: Cli, api: FakeApi) -> None:
    """What `@last` means is asked once: the hints, and the stop of a second Ctrl-C, name that job for good."""
    meant = iter(["42", "43"])
    api.routes["GET /v1/jobs/%40last/explain"] = lambda _: Answer({"job": next(meant), "state": "running"})
    api.routes[LOGS] = lambda _: Answer(stream=_endless())
    api.routes["POST /v1/jobs/stop"] = {"jobs": [{"id": "42", "state": "stopping", "sentence": "stopping (SIGTERM)"}]}
    process = cli.start("attach", "@last")
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    assert b"detached; job 42 goes on \xc2\xb7 `stoker attach 42`" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert api.requests[-1].document["refs"] == ["42"]


@pytest.mark.parametrize("words", [["logs", "-f"], ["logs"], ["wait"], ["wait", "--any"]])
def test_a_job_is_looked_up_once(cli: Cli, api: FakeApi, words: list[str]) -> None:
    """A name that means a newer job after the runner came back still stands for the one it meant first."""
    broken = iter([True])
    meant = iter(["42", "43"])
    api.routes["GET /v1/jobs/train/explain"] = lambda _: Answer({"job": next(meant), "state": "running"})
    whole = {"wait": Answer(OUTCOME), "logs": Answer(raw=b"a line\n")}[words[0]]
    streamed = words == ["logs", "-f"]

    def answer(request: Request) -> Answer:
        if next(broken, False):
            return Answer(cut=True)
        return Answer(stream=iter([event("end", OUTCOME)])) if streamed else whole

    for path in ("GET /v1/jobs/42/logs", "GET /v1/jobs/42/wait", "GET /v1/wait"):
        api.routes[path] = answer
    assert cli(*words, "train").returncode == 0
    assert api.requests[0].path == "/v1/jobs/train/explain"
    assert {request.query for request in api.requests if request.path == "/v1/wait"} <= {"ref=42"}


def test_a_detached_run_is_a_submit(cli: Cli, api: FakeApi) -> None:
    """`run -d` prints the id and returns."""
    assert cli("run", "-d", "--", "true").stdout == "42\n"
    assert [request.path for request in api.requests] == ["/v1/jobs"]


def test_a_dry_run_queues_nothing_and_tells_origins(cli: Cli, api: FakeApi) -> None:
    """`--dry-run` shows each value with where it came from."""
    plan = {
        "spec": {"gpus": 2, "command": ["a"], "time": 7200.0, "mem": 1 << 30},
        "origins": {"gpus": "--gpus in t.sh line 3"},
        "plan": {},
        "reason": None,
    }
    api.routes["POST /v1/jobs"] = plan
    done = cli("run", "--dry-run", "--", "a")
    assert done.returncode == 0
    assert "  gpus     2      --gpus in t.sh line 3" in done.stdout.splitlines()
    assert "  time     2h     default" in done.stdout.splitlines()
    assert "  mem      1GiB   default" in done.stdout.splitlines()
    assert done.stdout.endswith("it would start now\n")
    assert api.requests[0].document["dry_run"] is True


def test_a_runner_stopped_under_a_follower_is_not_brought_back(cli: Cli, api: FakeApi) -> None:
    """`service stop` in another terminal wins over a `run` that follows: 7, and no new runner."""

    def stop(_: Request) -> Answer:
        (cli.state_dir / "run/stopped").touch()
        (cli.state_dir / "run/api.sock").unlink()
        return Answer(stream=iter([log_event(0, b"x\n")]), cut=True)

    api.routes[LOGS] = stop
    done = cli("run", "--", "true")
    assert (done.returncode, done.stdout) == (7, "x\n")
    assert "error: the runner was stopped" in done.stderr
    assert (cli.state_dir / "run/stopped").exists()


def test_an_array_is_followed_element_by_element(cli: Cli, api: FakeApi) -> None:
    """Each line says whose it is and comes whole and once, over a break too; the code is that of the whole."""
    submitted = {**SUBMITTED, "elements": {"pending": 3}}
    api.routes["POST /v1/jobs"] = Answer(submitted, 201)
    failed = {**OUTCOME, "id": "42[2]", "code": 7, "summary": "job 42[2] brave-otter failed"}
    first = [
        element(None),
        event("state", {"state": "running", "reasons": []}),
        *[element(0), event("attempt", {"number": 1}), log_event(0, b"zero\nha")],
        *[element(2), event("attempt", {"number": 1}), log_event(0, b"two\n"), event("end", failed)],
    ]
    second = [
        element(None),
        *[element(0), event("attempt", {"number": 1}), log_event(7, b"lf\n"), event("end", OUTCOME)],
        *[element(1), event("attempt", {"number": 1}), log_event(0, b"no newline"), event("end", OUTCOME)],
        *[element(None), event("end", {**OUTCOME, "code": 1, "summary": "job 42 brave-otter failed"})],
    ]
    answers = iter([Answer(stream=iter(first), cut=True), Answer(stream=iter(second))])
    api.routes[LOGS] = lambda _: next(answers)
    done = cli("run", "--array", "0-2", "--", "true")
    assert done.returncode == 1
    assert done.stdout == "42[0] | zero\n42[2] | two\n42[0] | half\n42[1] | no newline\n"
    assert done.stderr.splitlines()[1:] == [
        "job 42 brave-otter · running",
        "job 42[2] brave-otter failed",
        "job 42 brave-otter failed",
    ]
    assert api.requests[2].query == "follow=1&resume=0%3A1%3A7&done=2"


def element(index: int | None) -> bytes:
    """Return the event that says whose the next ones are."""
    return event("element", {"index": index})


def _endless() -> Iterator[bytes]:
    yield log_event(0, b"started\n")
    threading.Event().wait(30)
