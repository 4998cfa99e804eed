"""What the command line prints: data on stdout, all else on stderr, nothing a terminal would act upon."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from runner.paths import Paths
from tests.fakes.api import OUTCOME, ROW, STAMP, SUBMITTED, Answer, FakeApi, Request, problem
from tests.integration.cli_kit import Cli

EVIL = "ev\x1b[31mil\x07\r\n\u202egpj\x9b2J"
DEVICE = {
    "uuid": "GPU-3f2a",
    "index": 0,
    "model": "RTX 3090",
    "memory_bytes": 24 << 30,
    "used_bytes": 1 << 30,
    "utilization_percent": 7,
    "temperature_c": 41,
    "power_w": 31.5,
    "state": "used",
    "holder": "pid 812 (ollama) of eve",
    "reason": None,
}


def test_submit_prints_the_id_alone(cli: Cli, api: FakeApi) -> None:
    """Stdout is the id; why it waits is on stderr; the body says who asks for what."""
    done = cli("submit", "--gpus", "1", "-n", "x", "--", "python", "t.py", "--gpus", env={"COLOUR": "blau"})
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert done.stderr == "queued: waiting for GPU-3f2a, held by job 40\n"
    body = api.requests[0].document
    assert body["command"] == ["python", "t.py", "--gpus"]
    assert body["flags"] == [["--gpus", "1"], ["--name", "x"]]
    assert body["caller"]["cwd"] == str(cli.home)
    assert body["caller"]["env"]["COLOUR"] == "blau"
    assert len(api.requests[0].headers["idempotency-key"]) == 32


def test_what_looks_secret_is_named(cli: Cli, api: FakeApi) -> None:
    """Variables that were left out are named on stderr, with the flag that passes them."""
    api.routes["POST /v1/jobs"] = {**SUBMITTED, "left_out": ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN"]}
    done = cli("submit", "--", "true")
    assert "AWS_SECRET_ACCESS_KEY, HF_TOKEN" in done.stderr
    assert "--env AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "[defaults] pass_env" in done.stderr


def test_quiet_says_nothing_but_data(cli: Cli, api: FakeApi) -> None:
    """-q leaves ids on stdout and nothing on stderr."""
    assert [(done.stdout, done.stderr) for done in (cli("-q", "submit", "--", "true"), cli("ps", "-q"))] == [
        ("42\n", "")
    ] * 2


def test_a_script_runs_by_its_shebang(cli: Cli, api: FakeApi) -> None:
    """Without execute permission the interpreter is named; only the directives travel."""
    script = cli.home / "t.py"
    script.write_text("#!/usr/bin/env python3\n#STOKER --gpus 2\n\nimport os\n#STOKER --gpus 9\n")
    plain = cli.home / "t.sh"
    plain.write_text("echo hello\n")
    executable = cli.home / "t.bin"
    executable.write_bytes(b"\x7fELF\0\0")
    executable.chmod(0o755)
    for words in (["t.py", "a", "b"], ["t.sh"], ["./t.bin"]):
        assert cli("submit", *words).returncode == 0
    first, second, third = (request.document for request in api.requests)
    assert first["command"] == ["/usr/bin/env", "python3", str(script), "a", "b"]
    assert first["script"] == {"path": "t.py", "text": "#!/usr/bin/env python3\n#STOKER --gpus 2\n"}
    assert second["command"] == ["/bin/sh", str(plain)]
    assert (third["command"], third["script"]) == ([str(executable)], None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ufeff#!/bin/sh\n#STOKER --gpus 1\n", "neither its #! nor its #STOKER lines are read: it begins with a byte"),
        ("#!/bin/sh\n#STOKER: --gpus 1\n", "line 2 is not read: it does not begin with #STOKER and a blank"),
        ("true\n#STOKER --gpus 1\n#STOKER --cpus 1\n", "line 2 is not read: it stands after the first command; 1 more"),
        ("#!/bin/sh\n#SBATCH --gres=gpu:2\n", "line 2 is not read: #SBATCH is not of stoker"),
        ("#!/bin/sh\n#STOKER --gpus 1\n# STOKERS\ntrue\n#SBATCH\n", ""),
    ],
)
def test_a_line_that_asks_for_something_and_is_not_read_is_told(cli: Cli, api: FakeApi, text: str, told: str) -> None:
    """One warning names the first; what is read, and a comment, is passed over."""
    (cli.home / "t.sh").write_text(text)
    done = cli("submit", "t.sh")
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [told in line for line in warnings] == ([True] if told else [])


def test_the_help_says_which_script_runs(cli: Cli) -> None:
    """A script is not copied: who comes from elsewhere is told where they look."""
    told = " ".join(cli("submit", "--help").stdout.split())
    assert "it runs from where it lies, as it is when the job starts" in told
    assert "the job does not see what DIR held before" in told


def test_settings_are_shown_as_they_are_written(cli: Cli) -> None:
    """What the environment says is shown with its unit, as the defaults are, and reads back to the same."""
    env = {"STOKER_GPU__FREE_BELOW": "1024M", "STOKER_STORAGE__KEEP_FINISHED": "7200", "STOKER_BOX__CGROUP": "false"}
    rows = dict(line.split()[:2] for line in cli("config", "show", env=env).stdout.splitlines())
    assert [rows[name] for name in ("gpu.free_below", "storage.keep_finished", "box.cgroup")] == ["1GiB", "2h", "false"]


def test_small_words(cli: Cli, api: FakeApi) -> None:
    """Why a job ended is said by `explain`; samples have times; one file is one; an array's log says whose it is."""
    sentence = "it ended with code 3"
    api.routes["GET /v1/jobs/42/explain"] = {"job": "42", "state": "failed", "reasons": [], "sentence": sentence}
    assert sentence in cli("explain", "42").stdout
    api.routes["GET /v1/jobs/42/metrics"] = {"series": {}, "samples": [{"at_us": 1_800_000_000_000_000}]}
    head, row = cli("metrics", "42", "--samples").stdout.splitlines()
    assert (head.split()[0], row.split("  ")[0]) == ("AT", "2027-01-15 08:00:00Z")
    api.routes["POST /v1/jobs/42/outputs/pull"] = {"path": "/p", "files": 1, "bytes": 3}
    assert cli("outputs", "pull", "42", "/p").stderr == "1 file, 3 B\n"
    api.routes["GET /v1/jobs/42/logs"] = Answer(raw=b"x\n", headers={"X-Stoker-Element": "42[0]"})
    for flags in ([], ["--json"]):
        assert "this is the log of 42[0] alone" in cli("logs", "42", *flags).stderr


def test_the_runners_log_has_json_lines(cli: Cli) -> None:
    """`service logs --json` is an object a line, like the log of a job."""
    (cli.state_dir / "run").mkdir(parents=True, mode=0o700)
    log = Path(Paths(str(cli.state_dir)).runner_log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text('one "x"\ntwo\n')
    lines = cli("service", "logs", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ['one "x"', "two"]


def test_a_job_file_travels_whole(cli: Cli, api: FakeApi) -> None:
    """A TOML file is sent as it is; flags may follow it."""
    (cli.home / "job.toml").write_text('name = "x"\n')
    assert cli("submit", "job.toml", "--gpus", "2").returncode == 0
    assert api.requests[0].document["file"] == {"path": "job.toml", "text": 'name = "x"\n'}
    assert api.requests[0].document["flags"] == [["--gpus", "2"]]


def test_a_program_on_the_path_needs_no_dashes(cli: Cli, api: FakeApi) -> None:
    """`submit python t.py` is taken as a command where no such file lies."""
    assert cli("submit", "sh", "-c", "true").returncode == 0
    assert api.requests[0].document["command"] == ["sh", "-c", "true"]


def test_an_env_file_becomes_variables(cli: Cli, api: FakeApi) -> None:
    """--env-file is read by the client; a variable named on the command line comes after it."""
    (cli.home / "env").write_text("# c\nA=1\nexport B='two words'\n\nHF_TOKEN\n")
    assert cli("submit", "--env", "A=2", "--env-file", "env", "--", "true").returncode == 0
    expected = [["--env", "A=1"], ["--env", "B=two words"], ["--env", "HF_TOKEN"], ["--env", "A=2"]]
    assert api.requests[0].document["flags"] == expected


def test_json_lines_are_one_request(cli: Cli, api: FakeApi) -> None:
    """`submit -` sends stdin behind its head line and prints an id a line."""
    api.routes["POST /v1/jobs/batch"] = Answer({"ids": [42, 43], "left_out": [], "warnings": []}, 201)
    lines = '{"command":["a"]}\n' * 5000
    done = cli("submit", "-", "--gpus", "0", input=lines)
    assert (done.returncode, done.stdout) == (0, "42\n43\n")
    head, _, rest = api.requests[0].body.partition(b"\n")
    assert json.loads(head)["flags"] == [["--gpus", "0"]]
    assert rest.decode() == lines


def test_the_same_key_is_sent_again_when_the_runner_dies(cli: Cli, api: FakeApi) -> None:
    """A request cut off in its middle is repeated with the key it had."""
    answers = iter([Answer(cut=True), Answer(cut=True), Answer(SUBMITTED, 201)])
    api.routes["POST /v1/jobs"] = lambda _: next(answers)
    done = cli("submit", "--", "true")
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 1
    assert len(api.requests) == 3


def test_a_given_key_is_used(cli: Cli, api: FakeApi) -> None:
    """--idempotency-key goes out as it is."""
    cli("submit", "--idempotency-key", "mine", "--", "true")
    assert api.requests[0].headers["idempotency-key"] == "mine"


@pytest.mark.parametrize("words", [["ps"], ["show", "42"], ["wait", "42"], ["gpu", "ls"], ["model"], ["explain", "42"]])
def test_reading_verbs_print_the_document(cli: Cli, api: FakeApi, words: list[str]) -> None:
    """--json is the API's document on one line, with its version."""
    api.routes["GET /v1/gpus"] = {"devices": [DEVICE], "driver": "1", "error": None}
    api.routes["GET /v1/models"] = {"models": []}
    api.routes["GET /v1/jobs/42/explain"] = {"job": "42", "state": "pending", "reasons": [], "would_change": ""}
    done = cli(*words, "--json")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    document = json.loads(done.stdout)
    assert document.pop("version") == 1
    path = api.requests[0].path
    expected = api.routes[f"GET {path}"]
    assert document == expected


@pytest.mark.parametrize(("whose", "shown"), [({"owner_name": "eve"}, "eve"), ({"owner_name": None}, "uid 0")])
def test_an_owner_is_shown_by_name(cli: Cli, api: FakeApi, whose: dict[str, object], shown: str) -> None:
    """People read the user's name, or the uid where the box has none for it; programs get both."""
    job = {**ROW, "owner": 0, **whose}
    api.routes["GET /v1/jobs"] = {"jobs": [job], "more": False}
    api.routes["GET /v1/jobs/42"] = job
    device = {**DEVICE, "holder": "job 42", "owner": 0, **whose}
    api.routes["GET /v1/gpus"] = {"devices": [device], "driver": "1", "error": None}
    assert f"  {shown}  " in cli("ps", "-o", "wide").stdout
    assert f"\n  owner      {shown}\n" in cli("show", "42").stdout
    assert f"job 42 of {shown}\n" in cli("gpu").stdout
    assert json.loads(cli("ps", "--json").stdout)["jobs"][0]["owner"] == 0
    (row,) = csv.DictReader(io.StringIO(cli("ps", "-o", "csv").stdout))
    assert (row["owner"], row["owner_name"]) == ("0", whose["owner_name"] or "")


def test_csv_is_csv(cli: Cli, api: FakeApi) -> None:
    """CSV quotes what must be quoted."""
    api.routes["GET /v1/jobs"] = {"jobs": [{**ROW, "name": 'a,"b"\nc'}], "more": False}
    rows = list(csv.DictReader(io.StringIO(cli("ps", "-o", "csv").stdout)))
    assert [row["name"] for row in rows] == ['a,"b"\nc']


@pytest.mark.parametrize(
    "words", [["ps"], ["ps", "-o", "wide"], ["ps", "-q"], ["show", "42"], ["gpu"], ["stop", "42"], ["ps", "--json"]]
)
def test_nothing_in_a_listing_reaches_the_terminal(cli: Cli, api: FakeApi, words: list[str]) -> None:
    """Names, reasons and holders are shown with their controls escaped."""
    evil = {
        **ROW,
        "id": "4" + EVIL,
        "name": EVIL,
        "owner_name": EVIL,
        "reason": {"kind": "held", "sentence": EVIL, "data": {}},
    }
    api.routes["GET /v1/jobs"] = {"jobs": [evil], "more": False}
    api.routes["GET /v1/jobs/42"] = {**evil, "command": [EVIL], "spec": {EVIL: EVIL}, "attempts": [{"ending": EVIL}]}
    api.routes["GET /v1/gpus"] = {"devices": [{**DEVICE, "holder": EVIL, "model": EVIL}], "error": EVIL}
    api.routes["POST /v1/jobs/stop"] = {"jobs": [{"id": EVIL, "state": "x", "sentence": EVIL}]}
    done = cli(*words)
    assert done.returncode == 0
    shown = done.stdout + done.stderr
    assert "ev" in shown or "4" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_a_listing_fits_a_terminal_of_80_columns(cli: Cli, api: FakeApi) -> None:
    """No line is wider than the terminal; names are cut, the reason goes on below; the state is coloured."""
    reason = "waits for 1 core: job 2[0] holds 1 core, job 2[1] holds 1 core; 日本語の長い文章"
    long = {**ROW, "name": "a-very-long-name-" * 5, "reason": {"sentence": reason}}
    api.routes["GET /v1/jobs"] = {"jobs": [long, ROW], "more": False}
    code, shown = cli.on_terminal("ps", env={"COLUMNS": "80"})
    assert code == 0
    assert "\x1b[32mrunning\x1b[0m" in shown
    plain = shown.replace("\x1b[32m", "").replace("\x1b[0m", "").splitlines()
    assert all(len(line) + sum(ord(c) > 0x2E7F for c in line) <= 80 for line in plain)
    assert "a-very-long-name-a" in plain[1]
    start = plain[0].index("REASON")
    assert "".join(line[start:] for line in plain[1:-1]).replace(" ", "") == reason.replace(" ", "")


PAGE = {
    **ROW,
    "command": ["python", "train.py", *["--flag-of-the-program"] * 6],
    "reason": {"sentence": "input data (http://127.0.0.1:9/x): connection refused; tried again in 3s; " * 3},
    "inputs": [{"name": "data", "uri": "/very/long" * 9, "rw": True, "digest": "c3" * 32, "size_bytes": 3, "files": 1}],
    "outputs": [{"name": "job-42", "digest": "c3" * 32, "size_bytes": 3, "files": 1}],
    "attempts": [{"number": 1, "ending": "host_out_of_memory", "exit_code": 137, "started_at": STAMP, "elapsed_s": 9}],
    "events": [{"at": STAMP, "kind": "ended", "sentence": "it ended with code 137, and its log says why " * 3}],
}
MODEL = {"name": "m", "version": 3, "digest": "c3" * 32, "size_bytes": 9, "files": 2, "job": "42", "created_at": STAMP}


@pytest.mark.parametrize("words", [["show", "42"], ["outputs", "ls", "42"], ["model", "show", "m"]])
def test_a_page_fits_a_terminal_of_80_columns(cli: Cli, api: FakeApi, words: list[str]) -> None:
    """What is long goes on in the next line, under where it began, and is all there."""
    entries = [{"path": "a/long/path" * 9, "size_bytes": 3, "digest": "c3" * 32}]
    outputs = [{"name": "job-42", "digest": "c3" * 32, "files": 1, "size_bytes": 3}]
    api.routes["GET /v1/jobs/42"] = PAGE
    api.routes["GET /v1/jobs/42/outputs"] = {"outputs": outputs, "entries": entries}
    api.routes["GET /v1/models/m"] = {**MODEL, "entries": entries, "made_from": PAGE["inputs"]}
    code, shown = cli.on_terminal(*words, env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert code == 0
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines), shown
    whole = "".join(shown.split())
    if words[0] == "show":
        assert "".join(PAGE["command"]) in whole  # type: ignore[arg-type]
        assert "/very/long" * 9 + "(rw)" in whole
    else:
        assert "a/long/path" * 9 in whole
    assert "1 files" not in shown


@pytest.mark.parametrize(
    ("env", "flags", "coloured"),
    [
        ({}, [], True),
        ({"NO_COLOR": "1"}, [], False),
        ({"TERM": "dumb"}, [], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({}, ["--color", "never"], False),
    ],
)
def test_colour_is_for_who_wants_it(
    cli: Cli, api: FakeApi, env: dict[str, str], flags: list[str], coloured: bool
) -> None:
    """A terminal gets colour unless NO_COLOR, TERM=dumb or --color say otherwise."""
    _, shown = cli.on_terminal("ps", *flags, env=env)
    assert ("\x1b[" in shown) is coloured


def test_a_pipe_gets_no_colour_unless_forced(cli: Cli, api: FakeApi) -> None:
    """Piped output is plain; CLICOLOR_FORCE changes that."""
    assert "\x1b" not in cli("ps").stdout
    assert "\x1b[32m" in cli("ps", env={"CLICOLOR_FORCE": "1"}).stdout


def test_a_closed_stdout_ends_quietly(cli: Cli, api: FakeApi) -> None:
    """When the reader of a pipe has gone there is no traceback, and the code is that of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        cli.command("ps"), env=cli.environ, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, b"")


def test_no_stdout_at_all_is_borne(cli: Cli, api: FakeApi) -> None:
    """`>&-` is not an error."""
    command = ["/bin/sh", "-c", '"$@" >&- 2>&-', "sh", *cli.command("ps")]
    assert subprocess.run(command, env=cli.environ, timeout=60, check=False).returncode == 0


def test_a_full_disk_under_stdout_is_an_error(cli: Cli, api: FakeApi) -> None:
    """Output that could not be written is never taken for success."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli.command("ps"), env=cli.environ, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot write the output: No space left on device\n  hint: ")


def test_logs_pass_raw_bytes_through_a_pipe_only(cli: Cli, api: FakeApi) -> None:
    """A pipe gets every byte; a terminal gets colours and line breaks, everything else escaped."""
    log = b"a\x1b[1;31mred\x1b[0m\x1b]0;title\x07\xff\x1b[2J\tb\r\n"
    api.routes["GET /v1/jobs/42/logs"] = Answer(raw=log)
    assert cli("logs", "42").stdout.encode("utf-8", "surrogateescape") == log.replace(b"\r\n", b"\n")
    _, shown = cli.on_terminal("logs", "42")
    assert shown.replace("\r\n", "\n").replace("\r", "") == "a\x1b[1;31mred\x1b[0m\\x1b]0;title\\x07\\xff\\x1b[2J\tb\n"
    _, raw = cli.on_terminal("logs", "42", "--raw")
    assert "\x1b[2J" in raw


@pytest.mark.parametrize("words", [(), ("-n", "3"), ("--json",)])
def test_a_log_that_is_cut_off_is_not_taken_for_a_whole_one(cli: Cli, api: FakeApi, words: tuple[str, ...]) -> None:
    """Where the runner goes away in the middle nothing is guessed: what came is shown, and the code is 7."""
    asked = "GET /v1/jobs/42/logs"
    api.routes[asked] = lambda _: Answer(stream=iter([b"built\n", b"one\n"]), cut=True)
    done = cli("logs", "42", *words)
    assert done.returncode == 7
    assert done.stdout in {"built\none\n", ""}
    assert done.stderr.startswith("error: the runner went away in mid-answer\n  hint: ")
    assert [f"{each.method} {each.path}" for each in api.requests] == [asked]


def test_metrics_in_three_forms(cli: Cli, api: FakeApi) -> None:
    """A table, CSV and a curve of the same points."""
    points = [[step, 1 / (step + 1), 0] for step in range(50)]
    api.routes["GET /v1/jobs/42/metrics"] = {"series": {"loss": points}, "samples": []}
    assert cli("metrics", "42").stdout.splitlines()[:2] == ["NAME  STEP  VALUE", "loss  0     1"]
    assert cli("metrics", "42", "-o", "csv").stdout.splitlines()[1] == "loss,0,1.0,0"
    api.routes["GET /v1/jobs/42/metrics"]["counts"] = {"loss": 100_000}
    assert "note: loss is shown by 50 of its 100000 points" in cli("metrics", "42", "-o", "csv").stderr
    plot = cli("metrics", "42", "--plot").stdout
    assert plot.startswith("loss · last 0.02 · min 0.02 · max 1\n")
    assert any("\u2801" <= character <= "\u28ff" for character in plot)


def test_samples_show_the_power_that_was_measured(cli: Cli, api: FakeApi) -> None:
    """The table shows watts, CSV the milliwatts that the runner sends; what was not measured is a dash."""
    nothing = dict.fromkeys(("cpu_percent", "memory_bytes", "gpu_memory_bytes", "gpu_utilization", "power_mw"))
    samples = [{"at_us": 1, **nothing, "power_mw": 312_400}, {"at_us": 2, **nothing}]
    api.routes["GET /v1/jobs/42/metrics"] = {"series": {}, "samples": samples}
    assert [line.split()[-1] for line in cli("metrics", "42", "--samples").stdout.splitlines()] == ["W", "312", "-"]
    rows = cli("metrics", "42", "--samples", "-o", "csv").stdout.splitlines()
    assert [row.split(",")[-1] for row in rows] == ["power_mw", "312400", ""]


def test_rm_asks_before_outputs_go(cli: Cli, api: FakeApi) -> None:
    """A terminal is asked; y removes, anything else does not; without a terminal the code is 2; -y does not ask."""

    def remove(request: Request) -> Answer:
        if request.document["confirmed"]:
            return Answer({"removed": ["42"], "bytes": 2048})
        return problem(409, "confirm", "job 42 has outputs", jobs=["42"], outputs=["model " + EVIL], bytes=2048)

    api.routes["POST /v1/jobs/remove"] = remove
    assert cli("rm", "42").returncode == 2
    code, shown = cli.on_terminal("rm", "42", typed="n\n")
    assert code == 1
    assert "[y/N]" in shown
    assert "removed 42" not in shown
    code, shown = cli.on_terminal("rm", "42", typed="y\n")
    assert code == 0
    assert "removed 42" in shown
    assert cli("rm", "42", "-y").stdout == "removed 42 · outputs of 2.0 KiB\n"
    assert [request.document["confirmed"] for request in api.requests] == [False, False, False, True, True]


def test_the_elements_of_an_array_have_rows(cli: Cli, api: FakeApi) -> None:
    """`ps --elements` asks for them, of all jobs or of those named, and says when there are more."""
    api.routes["GET /v1/jobs"] = {"jobs": [{**ROW, "id": "42[0]"}, {**ROW, "id": "42[1]"}], "more": True}
    done = cli("ps", "--elements", "--limit", "2", "42")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ID", "42[0]", "42[1]"]
    assert done.stderr == "there are more: --limit\n"
    assert api.requests[0].query == "limit=2&elements=1&ref=42"


def test_wait_gives_the_jobs_code(cli: Cli, api: FakeApi) -> None:
    """One job gives its own code, several give 1 when one of them failed."""
    api.routes["GET /v1/jobs/43/wait"] = {**OUTCOME, "id": "43", "code": 7, "summary": "job 43 failed"}
    assert cli("wait", "42").returncode == 0
    assert cli("wait", "43").returncode == 7
    assert cli("wait", "42", "43").returncode == 1
    assert cli("submit", "-w", "--", "true").returncode == 0


def test_wait_for_any_gives_the_code_of_the_first(cli: Cli, api: FakeApi) -> None:
    """All are waited for in one question; with --all it would be another, so both at once are refused."""
    api.routes["GET /v1/wait"] = {**OUTCOME, "id": "43", "code": 7, "summary": "job 43 failed"}
    done = cli("wait", "--any", "--timeout", "5s", "42", "43[1]")
    assert (done.returncode, done.stderr) == (7, "job 43 failed\n")
    assert api.requests[0].query == "ref=42&ref=43%5B1%5D&timeout_s=5.000"
    assert cli("wait", "--all", "42").returncode == 0
    refused = cli("wait", "--any", "--all", "42")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, "error: --any and --all do not go together")


def test_completion_offers_verbs_flags_and_jobs(cli: Cli, api: FakeApi) -> None:
    """Verbs and flags come from the declarations, ids and names from the runner."""
    assert cli("_complete", "su").stdout == "submit\n"
    assert cli("_complete", "submit", "--idem").stdout == "--idempotency-key\n"
    assert cli("_complete", "show", "").stdout == "42\nbrave-otter\n"
    assert cli("_complete", "credit", "b").stdout == "balance\n"
    assert cli("_complete", "ps", "-o", "js").stdout == "json\njsonl\n"


def test_completion_offers_kinds_and_names_of_keys(cli: Cli, api: FakeApi) -> None:
    """Wherever a key is named."""
    api.routes["GET /v1/keys"] = {"keys": [{"name": "lab"}, {"name": "work"}]}
    assert cli("_complete", "key", "ro").stdout == "rotate\n"
    assert cli("_complete", "key", "add", "a").stdout == "aws\nazure\n"
    assert cli("_complete", "key", "rm", "").stdout == "lab\nwork\n"
    assert cli("_complete", "submit", "--key", "w").stdout == "work\n"


def test_completion_never_waits_nor_starts(cli: Cli) -> None:
    """Without a runner there are verbs and flags, and no state directory is made."""
    assert cli("_complete", "show", "").stdout == ""
    assert cli("_complete", "mod").stdout == "model\n"
    assert not cli.state_dir.exists()


def test_completion_gives_up_on_a_runner_that_hangs(cli: Cli, api: FakeApi) -> None:
    """An answer that does not come leaves the shell without ids, not without a prompt."""
    never = threading.Event()
    api.routes["GET /v1/complete"] = lambda _: Answer({"jobs": [str(never.wait(30))]})
    assert cli("_complete", "show", "").stdout == ""
    never.set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed_and_installed(cli: Cli, shell: str) -> None:
    """The script of a shell goes to stdout, or to where the shell finds it."""
    printed = cli("completion", shell).stdout
    assert "stoker _complete" in printed
    installed = cli("completion", "install", shell)
    assert installed.returncode == 0
    assert Path(installed.stdout.strip()).read_text() == printed


def test_the_bash_script_completes(cli: Cli, api: FakeApi) -> None:
    """Bash itself, with the script loaded, gets the words."""
    quoted = " ".join(f"'{word}'" for word in cli.command())
    script = f'stoker() {{ {quoted} "$@"; }}\n{cli("completion", "bash").stdout}\n'
    script += 'COMP_WORDS=(stoker show ""); COMP_CWORD=2; _stoker; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", script], env=cli.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "42\nbrave-otter\n"
