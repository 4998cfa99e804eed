"""Keys of a real runner: they open inputs, reach the jobs that name them, and are found nowhere else."""

from __future__ import annotations

import base64
import json
import os
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from runner.daemon.keys import mark
from runner.state.engine import open_database
from tests.kit import Box, kill_and_wait, parent_of, wait_until
from tests.servers import S3, S3_KEY, S3_SECRET, free_port, s3_server
from tests.unit.test_credentials import CANARY, WHOLE

SHOW_KEYS = 'cd "$STOKER_KEYS_DIR" && find . -type f -printf "%m %p\\n" | LC_ALL=C sort'


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """An S3 server with one bucket; the runner's user keeps no credentials of their own."""
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with s3_server(tmp_path / "buckets", tmp_path / "elsewhere") as server:
        (server.root / "bucket/file").write_text("the bytes")
        yield server


@pytest.fixture(params=["mounted", "on disk"])
def either(box: Box, request: pytest.FixtureRequest) -> Box:
    """A runner that may mount, and one that may not: there the files lie below the attempt."""
    weaker = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all"] if request.param == "on disk" else []
    started = subprocess.run([*weaker, *box.command("service", "start")], env=box.environ, check=False)
    assert started.returncode == 0
    return box


def add(runner: Box, kind: str, name: str, **values: str) -> None:
    """Store a key by a pipe."""
    runner.ok("key", "add", kind, name, "--stdin", input=json.dumps(values))


def add_s3(runner: Box, s3: S3, name: str, *, secret: str = S3_SECRET) -> None:
    """Store a key of the S3 server."""
    add(runner, "aws", name, access_key_id=S3_KEY, secret_access_key=secret, endpoint=s3.endpoint)


def ended(runner: Box, *args: str) -> tuple[str, str, str]:
    """Run a job to its end; return its state, the sentence of its reason and its log."""
    job = runner.submit("--cpus", "0", *args)
    document = runner.wait(job)
    return document["state"], document["reason"]["sentence"], runner.ok("logs", job)


def test_the_only_key_of_its_kind_opens_an_input(runner: Box, s3: S3) -> None:
    """Without a word of it in the command; of two the job must say which; a stated one needs no guess."""
    add_s3(runner, s3, "work")
    script = "cat $STOKER_INPUT_data/*; env | grep -c -e SECRET -e STOKER_KEYS; true"
    assert ended(runner, "--input", "data=s3://bucket/file", "--", "sh", "-c", script)[2] == "the bytes0"
    assert json.loads(runner.ok("key", "show", "work", "--json"))["used_at"]
    add_s3(runner, s3, "wrong", secret="not-the-secret")
    refused = runner.cli("submit", "--input", "data=s3://bucket/file", "--", "true")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: input data: you have 2 aws keys: work, wrong\n  hint: say which: key=NAME\n",
    )
    state, sentence, _ = ended(runner, "--input", "data=s3://bucket/file,key=wrong", "--", "true")
    assert state == "failed"
    assert "may not be" in sentence or "403" in sentence
    assert "not-the-secret" not in sentence
    assert ended(runner, "--input", "data=s3://bucket/file,key=work", "--", "true")[0] == "succeeded"


def test_what_one_key_fetched_is_not_handed_to_another(runner: Box, s3: S3, tmp_path: Path) -> None:
    """One address, two keys of two servers: each job has the bytes of its own, the second time too."""
    (tmp_path / "others/bucket").mkdir(parents=True)
    (tmp_path / "others/bucket/file").write_text("other bytes")
    with s3_server(tmp_path / "others", tmp_path / "elsewhere") as other:
        add_s3(runner, s3, "work")
        add_s3(runner, other, "lab")
        for name in ("work", "lab", "work", "lab"):
            uri = f"data=s3://bucket/file,key={name}"
            log = ended(runner, "--input", uri, "--", "sh", "-c", "cat $STOKER_INPUT_data/*")[2]
            assert log == {"work": "the bytes", "lab": "other bytes"}[name]


def test_an_output_is_written_with_a_key(runner: Box, s3: S3) -> None:
    """To the bucket that the only key of its kind opens, or the one that `--output` names."""
    add_s3(runner, s3, "work")
    make = ("--", "sh", "-c", "echo weights > $STOKER_OUTPUT_DIR/model")
    assert ended(runner, "--output", "=s3://bucket/runs/{job}/", *make)[0] == "succeeded"
    add_s3(runner, s3, "wrong", secret=CANARY)
    refused = runner.cli("submit", "--output", "=s3://bucket/runs/{job}/", *make)
    assert (refused.returncode, "--output: you have 2 aws keys" in refused.stderr) == (2, True)
    assert ended(runner, "--output", "=s3://bucket/runs/{job}/,key=work", *make)[0] == "succeeded"
    assert len(list((s3.root / "bucket/runs").glob("*/model"))) == 2
    state, sentence, _ = ended(runner, "--output", "=s3://bucket/runs/{job}/,key=wrong", *make)
    assert (state, CANARY in sentence) == ("failed", False)


def test_a_key_that_is_not_there_is_refused_at_once(runner: Box) -> None:
    """By submit, for inputs and for the job; so is one that no such address asks for."""
    add(runner, "hf", "me", token=CANARY)
    for flags, code, said in [
        (("--input", "data=s3://bucket/file,key=nope"), 3, "there is no key 'nope'"),
        (("--key", "nope"), 3, "there is no key 'nope'"),
        (("--input", "data=s3://bucket/file,key=me"), 2, "is of kind hf, and the address asks for aws"),
        (("--input", "data=/etc/hostname,key=me"), 2, "no key opens that address"),
    ]:
        done = runner.cli("submit", *flags, "--", "true")
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_a_key_removed_before_it_was_needed_fails_the_input(runner: Box) -> None:
    """The job that waited says which key is gone; removing it says which jobs wait with it."""
    values = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": CANARY}
    add(runner, "aws", "work", endpoint=f"http://127.0.0.1:{free_port()}", **values)
    job = runner.submit("--cpus", "0", "--input", "data=s3://bucket/file", "--", "true")
    asked = runner.cli("key", "rm", "work")
    assert (asked.returncode, "-y says yes" in asked.stderr) == (2, True)
    assert json.loads(runner.ok("key", "rm", "work", "-y", "--json"))["jobs"] == [int(job)]
    runner.kill_runner()  # the fetch that goes on had it already
    ended = runner.wait(job)
    assert (ended["state"], ended["reason"]["ending"]) == ("failed", "input_failed")
    assert "key work was removed" in ended["reason"]["sentence"]


def test_what_a_removed_key_opens_is_found_by_nobody(tmp_path: Path) -> None:
    """A key may go, and come again, while a job is being prepared: no other user is given what that fetches."""
    database = open_database(str(tmp_path / "db"), backup_dir=str(tmp_path), allow_network_filesystem=True)
    marks = {mark(database.reader(), (uid, "k")) for uid in (1001, 1002, 1001)}
    database.close()
    assert len(marks) == 3


def test_removing_a_key_names_what_is_written_and_fetched_with_it(runner: Box) -> None:
    """Besides inputs: the output of an unfinished job, and an artifact on its way."""
    values = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": CANARY}
    add(runner, "aws", "work", endpoint=f"http://127.0.0.1:{free_port()}", **values)
    job = runner.submit("--cpus", "0", "--output", "=s3://bucket/runs/", "--", "sleep", "600")
    runner.ok("model", "create", "m", "s3://bucket/file", "--no-wait")
    removed = json.loads(runner.ok("key", "rm", "work", "-y", "--json"))
    assert (removed["jobs"], removed["artifacts"]) == ([int(job)], ["model:m@1"])


def test_a_key_removed_before_the_next_attempt_fails_the_launch(runner: Box) -> None:
    """A job that names a key never runs without it."""
    add(runner, "hf", "me", token=CANARY)
    script = "until [ -e go ]; do sleep 0.05; done; exit 1"
    job = runner.submit("--cpus", "0", "--retries", "1", "--key", "me", "--", "sh", "-c", script)
    runner.wait_state(job, "running")
    runner.ok("key", "rm", "me", "-y")
    (runner.home / "go").touch()
    ended = runner.wait(job)
    assert (ended["state"], ended["reason"]["ending"]) == ("failed", "launch_failed")
    assert "key me was removed" in ended["reason"]["sentence"]


def test_a_job_gets_the_keys_it_names_as_files(either: Box) -> None:
    """Each kind in the form its library looks for, readable by its owner alone, and gone at the end."""
    for kind, values in WHOLE.items():
        if kind != "git-ssh":
            add(either, kind, f"k-{kind}", **values)
    either.ok("key", "add", "git-ssh", "k-git-ssh", "--generate")
    keys = [word for kind in WHOLE for word in ("--key", f"k-{kind}")]
    job = either.submit(
        "--cpus", "0", *keys, "--", "sh", "-c", SHOW_KEYS + "; env; echo $STOKER_KEYS_DIR > $HOME/where"
    )
    assert either.wait(job)["state"] == "succeeded"
    log = either.ok("logs", job)
    assert [line for line in log.splitlines() if line.startswith("400 ")] == [
        "400 ./aws/config",
        "400 ./aws/credentials",
        "400 ./azure/k-azure.env",
        "400 ./docker/config.json",
        "400 ./gcp/k-gcp.json",
        "400 ./hf/k-hf",
        "400 ./kaggle/k-kaggle/kaggle.json",
        "400 ./ssh/k-git-ssh",
    ]
    where = (either.home / "where").read_text().strip()
    environ = dict(line.partition("=")[::2] for line in log.splitlines() if "=" in line)
    assert environ["AWS_SHARED_CREDENTIALS_FILE"] == f"{where}/aws/credentials"
    assert environ["GOOGLE_APPLICATION_CREDENTIALS"] == f"{where}/gcp/k-gcp.json"
    assert environ["KAGGLE_CONFIG_DIR"] == f"{where}/kaggle/k-kaggle"
    assert environ["HF_TOKEN_PATH"] == f"{where}/hf/k-hf"
    assert environ["DOCKER_CONFIG"] == f"{where}/docker"
    assert environ["GIT_SSH_COMMAND"].startswith(f"ssh -i {where}/ssh/k-git-ssh ")
    assert not Path(where).exists()


CANARIES = {kind: values for kind, values in WHOLE.items() if kind not in {"aws", "git-ssh"}}


def test_a_canary_is_nowhere(runner: Box, s3: S3) -> None:
    """Used by a fetch and given to a job that prints it: in no argv, environment, log as shown, answer, event, file."""
    add_s3(runner, s3, "store")
    for kind, values in CANARIES.items():
        add(runner, kind, kind, **values)
    keys = [word for name in ("store", *CANARIES) for word in ("--key", name)]
    script = "base64 -w0 $STOKER_KEYS_DIR/hf/hf; cat $STOKER_INPUT_data/* $(find $STOKER_KEYS_DIR -type f)"
    script += "; until [ -e go ]; do sleep 0.05; done"
    job = runner.submit("--cpus", "0", *keys, "--input", "data=s3://bucket/file,key=store", "--", "sh", "-c", script)
    wait_until(lambda: "the bytes" in runner.cli("logs", job).stdout, what="what the job prints")
    encoded = [base64.b64encode(text.encode()) for text in (CANARY, f"eve:{CANARY}", S3_SECRET)]
    secrets = [CANARY.encode(), S3_SECRET.encode(), *encoded]
    for pid in runner.processes():
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not any(secret in content for secret in secrets), (pid, name)
    runner.ok("backup", str(runner.home / "copy.db"))
    assert [path.name for path in holding(runner, secrets)] == ["log.0"]
    (runner.home / "go").touch()
    assert runner.wait(job)["state"] == "succeeded"
    shown = [runner.ok(*line) for line in (
        ("logs", job), ("logs", job, "--raw"), ("show", job, "--json"), ("show", job, "--events", "--json"),
        ("key", "ls", "--json"), ("ps", "-a", "--json"), ("submit", *keys, "--dry-run", "--json", "--", "true"),
    )]  # fmt: skip
    assert "*" * len(CANARY) in shown[0]
    assert not any(secret.decode() in text for secret in secrets for text in shown)
    # The job's own file alone has what the job wrote.
    assert {path.parent.parent for path in holding(runner, secrets)} == {Path(runner.paths.job_logs_dir)}


def holding(runner: Box, secrets: list[bytes]) -> list[Path]:
    """Return the files of the runner and of its user's home that hold a secret."""
    files = [path for root in (runner.state_dir, runner.home) for path in root.rglob("*")]
    plain = [path for path in files if stat.S_ISREG(path.lstat().st_mode)]
    return [path for path in plain if any(secret in path.read_bytes() for secret in secrets)]


@pytest.mark.parametrize("what", ["runner", "watcher"])
def test_files_of_keys_go_after_a_kill(either: Box, what: str, request: pytest.FixtureRequest) -> None:
    """Whoever was to remove them is killed; when the attempt is over nothing of them is left."""
    add(either, "hf", "me", token=CANARY)
    job = either.submit("--cpus", "0", "--key", "me", "--", "sh", "-c", "echo up; exec sleep 300")
    wait_until(lambda: "up" in either.cli("logs", job).stdout, what="the job")
    (place,) = either.state_dir.glob(f"jobs/{job}/attempt-*/keys")
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    on_disk = "on disk" in request.node.name
    assert [stat.S_IMODE(path.stat().st_mode) for path in place.glob("*/*")] == ([0o400] if on_disk else [])
    if what == "runner":
        killed = either.kill_runner()
        either.wait_runner(other_than=killed)
        either.ok("stop", job, "--grace", "0s")
    else:
        (pid,) = (pid for pid in either.processes() if Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        kill_and_wait(parent_of(pid))
    either.wait(job)
    assert not place.exists()


def test_a_key_is_tried(runner: Box, s3: S3) -> None:
    """`key test` says what it opens, or the provider's own reason, never the secret."""
    add_s3(runner, s3, "work")
    assert runner.ok("key", "test", "work") == f"key work: {s3.endpoint} lists 1 bucket for it"
    assert runner.ok("key", "test", "work", "s3://bucket/") == "key work: s3://bucket/ has 1 file for this key"
    add_s3(runner, s3, "wrong", secret=CANARY)
    done = runner.cli("key", "test", "wrong")
    assert done.returncode == 4
    assert "SignatureDoesNotMatch" in done.stderr
    assert CANARY not in done.stderr


def test_a_kill_leaves_no_key_that_was_tried(tmp_path: Path) -> None:
    """While a deploy key is tried it lies where the runner looks after a kill, and nowhere else."""
    (tmp_path / "temporary").mkdir()
    with Box(tmp_path, TMPDIR=str(tmp_path / "temporary")) as box, socket.create_server(("127.0.0.1", 0)) as silent:
        box.ok("key", "add", "git-ssh", "deploy", "--generate")
        port = silent.getsockname()[1]
        trying = box.spawn("key", "test", "deploy", f"ssh://git@127.0.0.1:{port}/x.git")
        with silent.accept()[0]:
            secret = [b"OPENSSH PRIVATE KEY"]
            assert [path.parent.parent for path in holding(box, secret)] == [box.state_dir / "store/tmp"]
            assert not list((tmp_path / "temporary").rglob("key"))
            box.kill_runner()
        trying.communicate()
        box.wait_runner()
        box.ok("cache", "prune")
        assert holding(box, secret) == []


def test_a_rotated_sealing_key_opens_them(runner: Box, s3: S3) -> None:
    """`service rotate-key` seals keys anew, and they still open what they are for."""
    add_s3(runner, s3, "work")
    runner.ok("service", "rotate-key")
    seals = Path(runner.paths.key_file).read_text().splitlines()
    assert len([line for line in seals if line.startswith("seal ")]) == 1
    assert runner.ok("key", "test", "work").endswith("lists 1 bucket for it")


def test_what_a_key_was_stays_masked_while_a_log_may_show_it(runner: Box) -> None:
    """Changed, removed and sealed anew: the log shows it no more than before; nothing is kept once the log is gone."""
    add(runner, "hf", "me", token=CANARY)
    script = "cat $(find $STOKER_KEYS_DIR -type f)"
    masked = ended(runner, "--key", "me", "--", "sh", "-c", script)[2]
    assert "*" * len(CANARY) in masked and CANARY not in masked
    runner.ok("key", "rotate", "me", "--stdin", input=json.dumps({"token": "another-of-them"}))
    runner.ok("key", "rm", "me", "-y")
    assert runner.ok("logs", "1") == masked
    runner.ok("service", "rotate-key")
    assert runner.ok("logs", "1") == masked
    assert old_keys(runner) == 1  # the other came when the job was over
    runner.ok("rm", "1")
    assert old_keys(runner) == 0
    add(runner, "hf", "me", token=CANARY)
    runner.ok("key", "rm", "me", "-y")
    assert old_keys(runner) == 0


def old_keys(runner: Box) -> int:
    """Return how many values that keys had are kept."""
    with closing(sqlite3.connect(f"file:{runner.paths.database}?mode=ro", uri=True)) as connection:
        count: int = connection.execute("SELECT COUNT(*) FROM old_keys").fetchone()[0]
        return count


def test_a_file_that_others_can_read_is_told(runner: Box) -> None:
    """The key is stored all the same; the warning says what to do."""
    path = runner.home / "kaggle.json"
    path.write_text(json.dumps(WHOLE["kaggle"]))
    path.chmod(0o644)
    done = runner.cli("key", "add", "kaggle", "me", "--file", str(path))
    assert done.returncode == 0
    assert f"others can reach {path}" in done.stderr
    path.chmod(0o600)
    assert "others" not in runner.cli("key", "rotate", "me", "--file", str(path)).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("key", "add", "aws", "x", "--secret", CANARY), "there is no flag --secret"),
        (("key", "add", "aws", "x", f"--secret={CANARY}"), "there is no flag --secret"),
        (("key", "add", "aws", "x", CANARY), "takes no more words"),
        (("key", "add", "aws", "x", f"key={CANARY}"), "takes no more words"),
        (("key", "add", CANARY, "x", "--stdin"), "that is no kind of key"),
        (("key", "rotate", "x", CANARY), "takes no more words"),
    ],
)
def test_values_are_no_words_of_a_command(runner: Box, words: tuple[str, ...], message: str) -> None:
    """They are refused, and what may be a secret is not printed again."""
    done = runner.cli(*words, input="{}")
    assert done.returncode == 2
    assert message in done.stderr
    assert CANARY not in done.stderr


def _sleeps(pid: int) -> bool:
    """Say whether a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def typed(box: Box, *words: str, answers: list[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Run a command line on a terminal, answering its prompts; return its code and what the terminal showed."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execve(box.command()[0], box.command(*words), box.environ)
    seen = b""
    for prompt, answer in answers:
        piece = b""
        while not piece.endswith(prompt):
            piece += os.read(terminal, 1)
        # An interrupt that comes between the prompt and the wait for an answer is heard with the answer only.
        wait_until(lambda: _sleeps(pid))
        os.write(terminal, answer)
        seen += piece
    with suppress(OSError):  # a terminal whose program has ended
        while more := os.read(terminal, 4096):
            seen += more
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), seen.decode()


def test_values_are_asked_for_without_echo(runner: Box) -> None:
    """On a terminal: what is public is shown as it is typed, a secret never; a blank answer keeps what is stored."""
    blank = (b"blank): ", b"\n")
    answers = [(b"id): ", b"AKIATYPED\n"), (b"secret): ", CANARY.encode() + b"\n"), blank, blank, blank]
    code, seen = typed(runner, "key", "add", "aws", "work", answers=answers)
    assert (code, "added aws key work" in seen) == (0, True), seen
    assert "AKIATYPED" in seen
    assert CANARY not in seen
    assert max(map(len, seen.splitlines())) <= 80
    answers = [(b"secret): ", b"another-secret\n"), (b"credentials): ", b"\n")]
    code, seen = typed(runner, "key", "rotate", "work", answers=answers)
    assert (code, "changed aws key work" in seen, "another-secret" in seen) == (0, True, False)
    key = json.loads(runner.ok("key", "show", "work", "--json"))
    assert (key["public"], key["secrets"]) == ({"access_key_id": "AKIATYPED"}, ["secret_access_key"])
    assert key["rotated_at"]


@pytest.mark.parametrize("end", [b"\x03", b"\x04"])
def test_leaving_at_a_prompt_stores_nothing(runner: Box, end: bytes) -> None:
    """Ctrl-C and Ctrl-D end it as an interruption."""
    code, seen = typed(runner, "key", "add", "hf", "me", answers=[(b"token): ", end)])
    assert (code, "bug" in seen) == (130, False), seen
    assert runner.ok("key", "ls", "-o", "name") == ""
