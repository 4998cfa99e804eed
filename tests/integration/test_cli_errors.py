"""What bad input gets: `error:` and `hint:`, the exit code, no traceback, and nothing sent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fakes.api import Answer, FakeApi, Request, problem
from tests.integration.cli_kit import Cli, serving


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("submit", "there is nothing to run", "stoker submit -- python train.py, or a script or job file"),
        ("submit --", "there is nothing to run", "stoker submit -- python train.py, or a script or job file"),
        ("submit none.sh", "there is no script none.sh", "the path is looked up from here; a command goes after `--`"),
        (
            "submit none.toml",
            "there is no job file none.toml",
            "the path is looked up from here; a command goes after `--`",
        ),
        ("submit .", "cannot read the script .: Is a directory", "name a file that you may read"),
        ("submit big.toml", "the job file big.toml is larger than 1 MiB", "a job's description is a few lines"),
        ("submit latin.toml", "the job file latin.toml is not UTF-8 text", "save it as UTF-8"),
        ("submit elf", "elf may not be executed", "chmod +x elf"),
        ("submit --env-file bad -- a", "bad line 2 is not NAME=VALUE", "one variable a line, # begins a comment"),
        ("submit /dev/zero", "the script /dev/zero is not a regular file", "the job reads its script when it starts"),
        ("submit pipe", "the script pipe is not a regular file", "the job reads its script when it starts"),
        ("submit --idempotency-key= -- a", "--idempotency-key is empty", "--idempotency-key KEY"),
        ("submit --gpuz 1 -- a", "there is no flag --gpuz", "did you mean '--gpus'?"),
        ("submit a.toml b.toml", "one job file at a time: 'b.toml'", "a command goes after `--`"),
        ("stop 1 --grace soon", "--grace is not a duration: 'soon'", "write it as 90s, 30m, 1h30m or 2d"),
        ("logs 42 -n -5", "--tail is not a whole number: '-5'", "write it as 20"),
        ("logs 42 -n ٣", "--tail is not a whole number: '٣'", "write it as 20"),
        ("rm", "`stoker rm` needs JOB or --older-than", "`stoker ps --all` lists finished jobs"),
        ("show 42 -o csv", "this has no csv form", "--format table or json"),
        ("config check none.toml", "cannot read {home}/none.toml: No such file or directory", "check STOKER_CONFIG"),
        ("config shwo", "`stoker config` knows no 'shwo'", "did you mean 'show'?"),
        ("service frob", "`stoker service` knows no 'frob'", "one of status, start, stop, restart, logs, rotate-key"),
        ("completion tcsh", "no completion for 'tcsh'", "bash, zsh or fish"),
    ],
)
def test_bad_input(cli: Cli, api: FakeApi, line: str, error: str, hint: str) -> None:
    """Exit code 2, one error and its hint, an empty stdout, and no request that changes anything."""
    (cli.home / "big.toml").write_bytes(b"#" * (50 << 20))
    os.mkfifo(cli.home / "pipe")
    (cli.home / "latin.toml").write_bytes(b'name = "\xe9"\n')
    (cli.home / "elf").write_bytes(b"\x7fELF\0\0")
    (cli.home / "bad").write_text("A=1\nsecret value\n")
    done = cli(*line.split())
    expected = f"error: {error.format(home=cli.home)}\n" + (f"  hint: {hint}\n" if hint else "")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert [request.method for request in api.requests if request.method != "GET"] == []


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "usage", 2),
        (404, "not_found", 3),
        (403, "refused", 4),
        (409, "conflict", 5),
        (422, "never_fits", 6),
        (503, "no_runner", 7),
        (503, "unavailable", 1),
        (504, "wait_timed_out", 124),
        (500, "bug", 70),
        (500, "something_new", 1),
    ],
)
def test_the_runners_refusal_becomes_the_code(cli: Cli, api: FakeApi, status: int, code: str, exit_code: int) -> None:
    """Every kind of problem keeps its message, its hint and its exit code; controls in them are escaped."""
    api.routes["GET /v1/jobs/42"] = problem(status, code, "it is \x1b[31mso", "do that")
    done = cli("show", "42")
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert done.stderr == "error: it is \\x1b[31mso\n  hint: do that\n"


def test_an_answer_that_is_no_answer_is_an_error(cli: Cli, api: FakeApi) -> None:
    """Rubbish from the socket is reported as a bug of ours, with a report file and no traceback."""
    api.routes["GET /v1/jobs"] = Answer(raw=b"<html>")
    done = cli("ps")
    assert done.returncode == 70
    assert done.stderr.startswith("error: this is a bug of stoker's: ValueError\n")
    assert "Traceback" not in done.stderr
    [report] = (cli.state_dir / "reports").iterdir()
    assert str(report) in done.stderr
    assert "Traceback" in report.read_text()
    assert report.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in cli("ps", "--debug").stderr
    assert "Traceback" in cli("ps", env={"STOKER_DEBUG": "1"}).stderr


def test_a_server_error_without_a_document_is_told(cli: Cli, api: FakeApi) -> None:
    """A bare 500 is the runner's failure, not a bug of the client."""
    api.routes["GET /v1/jobs"] = Answer(raw=b"Internal Server Error", status=500)
    done = cli("ps")
    assert (done.returncode, done.stderr) == (1, "error: the runner answered 500\n")


def test_a_closed_stdin_is_bad_input(cli: Cli, api: FakeApi) -> None:
    """`submit -` with no stdin says so."""
    command = ["/bin/sh", "-c", '"$@" <&-', "sh", *cli.command("submit", "-")]
    done = subprocess.run(command, env=cli.environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read jobs from stdin: ")
    assert api.requests == []


def test_a_report_holds_no_secret(cli: Cli, api: FakeApi) -> None:
    """The values of flags and the words of the command stay out of a report."""
    api.routes["POST /v1/jobs"] = Answer({}, 201)
    assert cli("submit", "--env", "A=hunter2", "--env=B=hunter2", "--", "x", "--hunter2").returncode == 70
    [report] = (cli.state_dir / "reports").iterdir()
    assert "hunter2" not in report.read_text()


def test_verbs_that_do_not_start_a_runner(cli: Cli) -> None:
    """service, doctor, info, config and completion work without a runner and make nothing."""
    assert cli("info").returncode == 0
    assert cli("config", "path").returncode == 0
    assert cli("completion", "bash").returncode == 0
    assert cli("doctor").returncode == 0
    assert cli("service", "status").returncode == 7
    assert cli("service", "stop").returncode == 0
    assert not cli.state_dir.exists()


@pytest.mark.parametrize("line", ["ps", "run -- true", "service start", "serve", "info", "doctor"])
def test_no_home(cli: Cli, line: str) -> None:
    """Without HOME and STOKER_STATE_DIR there is nowhere to be; what needs no state works all the same."""
    del cli.environ["HOME"], cli.environ["STOKER_STATE_DIR"]
    done = cli(*line.split())
    told = "error: there is no HOME to keep the state in\n  hint: set HOME or STOKER_STATE_DIR\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    assert cli("completion", "bash").returncode == 0
    assert cli("config", "path").returncode == 0


@pytest.mark.parametrize(
    ("flags", "runner", "code", "error", "hint"),
    [
        ([], "system", 7, "this box has no system runner", "leave STOKER_RUNNER unset, or use --private"),
        ([], "sytem", 2, "STOKER_RUNNER cannot be 'sytem'", "private or system"),
        (["--private"], "system", 0, "", ""),
        ([], "private", 0, "", ""),
        ([], "", 0, "", ""),
    ],
)
def test_which_runner_is_meant(
    cli: Cli, api: FakeApi, flags: list[str], runner: str, code: int, error: str, hint: str
) -> None:
    """STOKER_RUNNER names it and --private overrides that; one that is not there, or no kind at all, is refused."""
    done = cli(*flags, "ps", env={"STOKER_RUNNER": runner})
    told = f"error: {error}\n  hint: {hint}\n" if error else ""
    assert (done.returncode, done.stderr) == (code, told)
    assert bool(api.requests) == (code == 0)


def test_a_stopped_runner_stays_stopped(cli: Cli) -> None:
    """After `service stop` a reading verb ends with 7 and starts nothing."""
    (cli.state_dir / "run").mkdir(parents=True, mode=0o700)
    (cli.state_dir / "run/stopped").touch()
    done = cli("ps")
    assert done.returncode == 7
    assert done.stderr == "error: the runner was stopped\n  hint: `stoker service start` starts it again\n"
    assert (cli.state_dir / "run/stopped").exists()


def test_a_runner_that_stops_before_it_answers_has_stopped(cli: Cli, api: FakeApi) -> None:
    """`service stop` succeeds when the mark is there, though the connection broke."""

    def stop(_: Request) -> Answer:
        (cli.state_dir / "run/stopped").touch()
        (cli.state_dir / "run/api.sock").unlink()
        return Answer(cut=True)

    api.routes["POST /v1/runner/stop"] = stop
    done = cli("service", "stop")
    assert (done.returncode, done.stderr.splitlines()[0][:21]) == (0, "the runner is stopped")


def test_a_stopping_runner_says_what_keeps_running(cli: Cli, api: FakeApi) -> None:
    """`service stop` names the jobs that go on."""
    api.routes["POST /v1/runner/stop"] = {"running": ["42", "43"]}
    assert "2 jobs keep running: 42, 43" in cli("service", "stop").stderr


@pytest.mark.parametrize("fault", ["symlink", "file", "open", "seen", "foreign"])
def test_a_state_directory_that_is_not_ours_is_refused(cli: Cli, fault: str) -> None:
    """A link, a file, a directory that lets others in or one of another user: exit code 4 and the reason."""
    elsewhere = cli.home / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if fault == "symlink":
        cli.state_dir.symlink_to(elsewhere)
    elif fault == "file":
        cli.state_dir.touch()
    elif fault in {"open", "seen"}:
        cli.state_dir.mkdir()
        cli.state_dir.chmod(0o777 if fault == "open" else 0o755)
    else:
        if os.geteuid():
            pytest.skip("only root can give a directory away")
        cli.state_dir.mkdir(mode=0o700)
        os.chown(cli.state_dir, 12345, 12345)
    done = cli("ps")
    told = {
        "symlink": "is a symbolic link",
        "file": "is not a directory",
        "open": "others may look into",
        "seen": "hint: chmod 700",
        "foreign": "belongs to uid 12345",
    }
    assert done.returncode == 4
    assert told[fault] in done.stderr


def test_a_home_that_is_not_there_is_not_made(cli: Cli) -> None:
    """An account without a home keeps no state below its name, though root could make one."""
    home = cli.home / "gone"
    done = cli("ps", env={"HOME": str(home), "STOKER_STATE_DIR": ""})
    assert done.returncode == 2
    assert "which is no directory" in done.stderr
    assert not home.exists()


def test_an_unwritable_state_directory_is_bad_input(cli: Cli) -> None:
    """A state directory that cannot be made says which and why."""
    cli.environ["STOKER_STATE_DIR"] = "/proc/stoker"
    done = cli("ps")
    hint = "set STOKER_STATE_DIR to a directory on a local disk that you may write to"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot keep the state in /proc/stoker: ")
    assert done.stderr.endswith(f"\n  hint: {hint}\n")


def test_somebody_elses_socket_gets_nothing(cli: Cli, api: FakeApi) -> None:
    """A runner of another uid is never told our environment."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    server = cli.home / "serve.py"
    server.write_text(
        "import os, socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\n"
        "os.setuid(12345)\ns.listen()\nprint('up', flush=True)\nsys.stdin.read()\n"
    )
    path = cli.home / "s"
    process = subprocess.Popen(
        [cli.command()[0], str(server), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == b"up\n"
    (cli.state_dir / "run/api.sock").unlink()
    (cli.state_dir / "run/api.sock").symlink_to(path)
    done = cli("submit", "--", "true")
    process.stdin.close()
    process.wait(60)
    process.stdout.close()
    assert (done.returncode, api.requests) == (4, [])
    assert "belongs to uid 12345" in done.stderr


def test_a_socket_path_too_long_for_connect_works(tmp_path: Path) -> None:
    """More than 107 bytes of path are no obstacle."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    cli = Cli(deep / "state")
    with serving(cli):
        assert cli("submit", "--", "true").stdout == "42\n"
