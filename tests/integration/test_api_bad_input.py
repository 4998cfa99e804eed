"""Bad input over the API: problem+json that says what is wrong and what to do, nothing queued, no bug of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_kit import Box, as_nobody, running, until


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One runner for all of them: what is refused leaves nothing behind."""
    with running(tmp_path_factory.mktemp("box")) as found:
        yield found


def refused(box: Box, status: int, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
    """Send a request that must be refused; return the problem."""
    before = box.queued()
    got, document = box.ask(method, path, body, **more)
    assert got == status, document
    assert document["status"] == status
    assert document["message"]
    assert box.queued() == before
    bugs = [report.read_text() for report in box.reports.glob("*")]
    assert not bugs, bugs[0]
    return document


def said_in_our_words(problem: dict[str, Any]) -> None:
    """No message is one of pydantic's or Python's own."""
    for theirs in ("should", "Input ", "input sh", "a valid", "sys.", "validation", "limit ("):
        assert theirs not in problem["message"]


DOCUMENTS = [
    ({"gpsu": 1}, "unknown key 'gpsu'", "gpus"),
    ({"gpus": True}, "gpus is wrong", "whole number"),
    ({"gpus": "2"}, "gpus is wrong", "whole number"),
    ({"gpus": 2.0}, "gpus is wrong", "whole number"),
    ({"gpus": -1}, "gpus is wrong", "whole number"),
    ({"gpus": 10**30}, "gpus is wrong", "whole number"),
    ({"cpus": "4"}, "cpus is wrong", "cores"),
    ({"cpus": True}, "cpus is wrong", "cores"),
    ({"cpus": -0.5}, "cpus is wrong", "cores"),
    ({"cpus": 10**400}, "cpus is wrong", "cores"),
    ({"mem": True}, "mem is wrong", "8G"),
    ({"mem": 1.5}, "mem is wrong", "8G"),
    ({"mem": "8 apples"}, "mem is wrong (from the request): not a size", "8G"),
    ({"mem": "8"}, "mem is wrong", "8G"),
    ({"mem": "999999P"}, "mem is wrong (from the request): absurd", "8G"),
    ({"mem": "٨G"}, "mem is wrong", "8G"),
    ({"time": "soon"}, "time is wrong (from the request): not a duration", "1h30m"),
    ({"time": 0}, "time is wrong", "1h30m"),
    ({"time": "１h"}, "time is wrong", "1h30m"),
    ({"time": "99999999w"}, "time is wrong (from the request): absurd", "1h30m"),
    ({"grace": -1}, "grace is wrong", "1h30m"),
    ({"priority": 1001}, "priority is wrong", "1000"),
    ({"priority": "0"}, "priority is wrong", "1000"),
    ({"name": "a/b"}, "name is wrong", "letters"),
    ({"name": "../up"}, "name is wrong", "letters"),
    ({"name": "a\nb"}, "name is wrong", "letters"),
    ({"name": "a\x1b[31m"}, "name is wrong", "letters"),
    ({"name": "x" * 64}, "name is wrong", "letters"),
    ({"name": "42"}, "name is wrong (from the request): a number alone", "letters"),
    ({"name": "ｎame"}, "name is wrong", "letters"),
    ({"name": 7}, "name is wrong", "letters"),
    ({"command": []}, "command is wrong", "python"),
    ({"command": [" "]}, "the command is empty", "python"),
    ({"command": "true"}, "command is wrong", "python"),
    ({"command": [1]}, "command.0 is wrong", "python"),
    ({"command": ["a\0b"]}, "command.0 is wrong", "python"),
    ({"command": ["a\ud800"]}, "command.0 is wrong", "python"),
    ({"cwd": "a\x07b"}, "cwd is wrong", ""),
    ({"cwd": "a\x9bb"}, "cwd is wrong", ""),
    ({"cwd": ""}, "cwd is wrong", ""),
    ({"cwd": "x" * 300}, "there is no directory", "--cwd"),
    ({"cwd": "gone"}, "there is no directory", "--cwd"),
    ({"output": "/etc"}, "--output", "relative"),
    ({"output": "../up"}, "--output", "relative"),
    ({"output": "a/../../up"}, "--output", "relative"),
    ({"checkpoint": "."}, "--checkpoint", "relative"),
    ({"requirements": "gone.txt"}, "there is no requirements file", "exists"),
    ({"requirements": "x" * 300}, "there is no requirements file", "exists"),
    ({"input": {"data": {"uri": "gone"}}}, "there is no input", "path"),
    ({"input": {"data": {"uri": "x" * 300}}}, "there is no input", "path"),
    ({"input": {"../data": {"uri": "."}}}, "input.../data is wrong", ""),
    ({"input": {"data": {"url": "."}}}, "unknown key 'input.data.url'", "uri"),
    ({"input": {"data": {"uri": "gopher://x/y"}}}, "--input", ""),
    ({"metric": {"loss": "(a"}}, "", ""),
    ({"metric": {"loss": "(?=a)(b)"}}, "", ""),
    ({"metric": {"loss": "(a)\\1"}}, "", ""),
    ({"param": {"a b": 1}}, "param.a b is wrong", ""),
    ({"param": {"int": [1]}}, "param.int is wrong", ""),
    ({"retries": -1}, "retries is wrong", ""),
    ({"requeue": "maybe"}, "requeue is wrong", ""),
    ({"signal": "BOOM"}, "signal is wrong", "TERM"),
    ({"array": "9-1"}, "array is wrong", "0-99%8"),
    ({"array": "0-100000"}, "array is wrong", "0-99%8"),
    ({"array": "٠-٩"}, "array is wrong", "0-99%8"),
    ({"array": "0-9%0"}, "array is wrong", "0-99%8"),
    ({"executor": "docker"}, "executor is wrong", ""),
    ({"version": 2}, "version is wrong", ""),
    ({"cpus": 0.0000001}, "cpus is wrong (from the request): less than a thousandth", "cores"),
    ({"kind": "inference"}, "kind is wrong (from the request): inference jobs are not run yet", "leave it out"),
    ({"kind": "notebook"}, "notebook jobs are not run yet", "leave it out"),
    ({"kind": "cron"}, "kind is wrong (from the request): none of 'training'", "leave it out"),
    ({"command": ["x" * 131_072]}, "command.0 is wrong", "python"),
    ({"command": ["true", "é" * 65_536]}, "command.1 is wrong", "python"),
    ({"env": {"A": "é" * 65_536}}, "env.A is wrong", "NAME=VALUE"),
    ({"gpus": "x"}, "gpus is wrong (from the request): not a whole number: 'x'", "whole number"),
    ({"retries": 1001}, "retries is wrong (from the request): more than 1000: 1001", ""),
    ({"cwd": ""}, "cwd is wrong (from the request): empty: ''", ""),
    ({"input": {"data": "."}}, "input.data is wrong (from the request): not a table: '.'", ""),
    ({"version": True}, "version is wrong", ""),
]


@pytest.mark.parametrize(("document", "message", "hint"), DOCUMENTS, ids=lambda value: str(value)[:30])
def test_job_documents(box: Box, document: dict[str, Any], message: str, hint: str) -> None:
    """A wrong value names its key and what would be right; nothing is queued."""
    body = box.submission("true") | {"command": None, "spec": {"command": ["true"]} | document}
    problem = refused(box, 400, "POST", "/v1/jobs", body)
    assert message in problem["message"]
    assert hint in problem["hint"]
    assert problem["hint"]
    assert problem["code"] == "usage"
    said_in_our_words(problem)


TEXTS = [
    (b"", "not JSON"),
    (b"[]", "not a JSON object"),
    (b"nope", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"a": 1, "a": 2}', "given twice"),
    (b'{"command": ["true"], "spec": {"cpus": NaN}}', "NaN"),
    (b'{"spec": {"cpus": -Infinity}}', "Infinity"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deeply"),
    (json.dumps({"a": [0] * 200_000}).encode(), "too large"),
    (b'{"a": "' + b"x" * (5 << 20) + b'"}', "larger than"),
    (b" " * (50 << 20), "larger than"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=range(len(TEXTS)))
def test_texts(box: Box, text: bytes, message: str) -> None:
    """What is no bounded JSON object is refused before anything is made of it."""
    problem = refused(box, 400, "POST", "/v1/jobs", raw=text)
    assert message in problem["message"]
    said_in_our_words(problem)


SHAPES = [
    {"caller": None},
    {"caller": {"cwd": "relative", "env": {}}},
    {"caller": {"cwd": "/a\0b"}},
    {"caller": {"cwd": "/tmp/\ud800"}},
    {"caller": {"cwd": "/", "env": []}},
    {"caller": {"cwd": "/", "env": {"A": 1}}},
    {"caller": {"cwd": "/", "env": {"A": "\ud800"}}},
    {"caller": {"cwd": "/", "env": {"A": "x\0y"}}},
    {"caller": {"cwd": "/", "env": {"A\0": "x"}}},
    {"caller": {"cwd": "/", "env": {"A=B": "x"}}},
    {"caller": {"cwd": "/", "env": {"": "x"}}},
    {"caller": {"cwd": "/", "env": {"A": "x" * 300_000}}},
    {"caller": {"cwd": "/", "env": {"A": "é" * 65_535}}},
    {"caller": {"cwd": "/", "env": {"A": "x" * (2 << 20)}}},
    {"caller": {"cwd": "/", "env": {}, "umask": True}},
    {"caller": {"cwd": "/", "env": {}, "umask": 0o1000}},
    {"file": "job.toml"},
    {"file": {"path": "job.toml"}},
    {"file": {"path": 1, "text": ""}},
    {"file": {"path": "job.toml", "text": "gpus = 1\ngpus = 2"}},
    {"file": {"path": "job.toml", "text": "cpus = nan"}},
    {"file": {"path": "job.toml", "text": "cpus = inf"}},
    {"file": {"path": "job.toml", "text": "a = " + "[" * 5000}},
    {"file": {"path": "job.toml", "text": "a = " + "9" * 5000}},
    {"file": {"path": "job.toml", "text": "started = 2026-01-01"}},
    {"script": ["x"]},
    {"script": {"path": "a.sh", "text": "#STOKER --gpsu 1"}},
    {"script": {"path": "a.sh", "text": "#STOKER --name 'open"}},
    {"script": {"path": "a.sh", "text": "#STOKER --gpus"}},
    {"spec": [1]},
    {"spec": "x"},
    {"flags": {"--gpus": "1"}},
    {"flags": ["--gpus"]},
    {"flags": [["--gpus"]]},
    {"flags": [["--gpus", 1]]},
    {"flags": [[["--gpus"], "1"]]},
    {"flags": [["--nope", "1"]]},
    {"flags": [["--input", "x"]]},
    {"flags": [["--param", "=1"]]},
    {"flags": [["--param", "a=1"], ["--param", "a=1"]]},
    {"script": {"path": "a.sh", "text": "#STOKER --input a=/tmp\n#STOKER --input a=/etc"}},
    {"command": "true"},
    {"command": {"a": 1}},
    {"command": [["true"]]},
]


@pytest.mark.parametrize("part", SHAPES, ids=lambda part: json.dumps(part)[:50])
def test_submission_shapes(box: Box, part: dict[str, Any]) -> None:
    """A submission whose parts have the wrong shape is a refusal with a hint, never a bug."""
    problem = refused(box, 400, "POST", "/v1/jobs", box.submission("true") | part)
    assert problem["hint"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/jobs/stop", {}),
        ("POST", "/v1/jobs/stop", {"refs": "1"}),
        ("POST", "/v1/jobs/stop", {"refs": [1]}),
        ("POST", "/v1/jobs/stop", {"refs": ["1"], "grace_s": "5"}),
        ("POST", "/v1/jobs/stop", {"refs": ["1"], "grace_s": -1}),
        ("POST", "/v1/jobs/stop", {"refs": ["1"], "grace_s": True}),
        ("POST", "/v1/jobs/start", {"refs": []}),
        ("POST", "/v1/jobs/remove", {}),
        ("POST", "/v1/jobs/remove", {"older_than_s": "30d"}),
        ("POST", "/v1/jobs/remove", {"older_than_s": -1}),
        ("POST", "/v1/jobs/remove", {"older_than_s": 1e300}),
        ("POST", "/v1/backup", {"destination": "relative"}),
        ("POST", "/v1/backup", {"destination": "/x\ud800"}),
        ("POST", "/v1/backup", {"destination": "/no/such/place.db"}),
        ("POST", "/v1/jobs/1/outputs/pull", {"destination": "relative"}),
        ("POST", "/v1/jobs/1/outputs/pull", {"destination": "/x\ud800"}),
        ("GET", "/v1/jobs?limit=0", None),
        ("GET", "/v1/jobs?limit=1e3", None),
        ("GET", f"/v1/jobs?before={10**30}", None),
        ("GET", "/v1/jobs?state=runing", None),
        ("GET", "/v1/jobs?name=" + "*a" * 60, None),
        ("GET", f"/v1/credit/history?before={10**30}", None),
        ("GET", f"/v1/events?after={10**30}", None),
        ("GET", f"/v1/jobs/1/logs?attempt={10**30}", None),
        ("GET", f"/v1/jobs/1/logs?from={10**30}", None),
        ("GET", f"/v1/jobs/1/metrics?tail={10**30}", None),
        ("GET", "/v1/jobs/1/wait?timeout_s=nan", None),
        ("GET", "/v1/jobs/1/wait?timeout_s=inf", None),
    ],
)
def test_other_requests(box: Box, method: str, path: str, body: Any) -> None:
    """Wrong parameters and bodies of every other route are usage errors in problem+json."""
    problem = refused(box, 400, method, path, body)
    assert problem["hint"]
    said_in_our_words(problem)


@pytest.mark.parametrize(
    "ref",
    ["0", "999999", "9" * 18, "9" * 19, "a" * 101, "1[0]", "a b", "@next", "\0", "\U0010ffff", "a[", "%", "é"],
)
def test_no_such_job(box: Box, ref: str) -> None:
    """A reference that means nothing is not found, whatever bytes it is made of."""
    refused(box, 404, "POST", "/v1/jobs/stop", {"refs": [ref]})


def test_a_lone_surrogate_is_no_job(box: Box) -> None:
    """Text that no encoding can carry is not found either."""
    refused(box, 404, "POST", "/v1/jobs/stop", raw=b'{"refs": ["\\ud800"]}')


def test_more_devices_than_the_box_has(box: Box) -> None:
    """What can never fit is refused at once, and its error carries exit code 6's name."""
    problem = refused(box, 422, "POST", "/v1/jobs", box.submission("true", flags=[("--gpus", "2")]))
    assert problem["code"] == "never_fits"
    assert "stoker gpu ls" in problem["hint"]


def test_full_disk(box: Box) -> None:
    """While the disk is full submissions are refused with the reason."""
    box.admission = "the disk that holds the state is full"
    try:
        problem = refused(box, 503, "POST", "/v1/jobs", box.submission("true"))
    finally:
        box.admission = ""
    assert problem["message"] == "the disk that holds the state is full"


def test_routes_that_are_not_there(box: Box) -> None:
    """An unknown path and a wrong method are problems too."""
    assert refused(box, 404, "GET", "/v1/nothing")["code"] == "not_found"
    assert refused(box, 405, "DELETE", "/v1/jobs")["code"] == "usage"


def test_secret_values_are_not_in_errors(box: Box) -> None:
    """A value of a variable is never repeated, wherever the fault is."""
    for flags in ([("--env", "A-B=hush-hush")], [("--env", "hush hush")], [("--env", "=hush-hush")]):
        problem = refused(box, 400, "POST", "/v1/jobs", box.submission("true", flags=flags))
        assert "hush" not in json.dumps(problem)
    body = box.submission("true") | {"command": None, "spec": {"command": ["true"], "env": {"A": ["hush-hush"]}}}
    assert "hush" not in json.dumps(refused(box, 400, "POST", "/v1/jobs", body))


def test_a_batch_names_the_line(box: Box) -> None:
    """One bad line of a batch refuses all of it and is named."""
    head = {"caller": box.submission()["caller"]}
    lines = [head, {"command": ["true"]}, {"command": ["true"], "gpsu": 1}]
    raw = "\n".join(map(json.dumps, lines)).encode()
    assert refused(box, 400, "POST", "/v1/jobs/batch", raw=raw)["message"].startswith("line 2: unknown key")
    lines[2] = {"command": ["true"], "gpus": 2}
    raw = "\n".join(map(json.dumps, lines)).encode()
    assert refused(box, 422, "POST", "/v1/jobs/batch", raw=raw)["message"].startswith("line 2: ")
    for wrong in (b"", b"[]", b"{}", b'{"caller": 1}\n{"command": ["true"]}', json.dumps(head).encode() + b"\n[]"):
        refused(box, 400, "POST", "/v1/jobs/batch", raw=wrong)


def test_half_a_request_holds_up_nobody(box: Box) -> None:
    """Connections that never finish their request leave the others served, and are no bug of ours when they close."""
    halves = []
    for _ in range(50):
        half = box.connect()
        half.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: stoker\r\nContent-Length: 1000\r\n\r\n{")
        halves.append(half)
    status, _ = box.ask("GET", "/v1/jobs")
    for half in halves:
        half.close()
    assert status == 200
    assert box.ask("GET", "/v1/jobs")[0] == 200
    assert not list(box.reports.glob("*"))


def test_what_is_no_http_is_hung_up_on(box: Box) -> None:
    """Bytes that are no request get a 400 and the line is closed; the next caller is served."""
    wire = box.connect()
    wire.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert wire.recv(1000).startswith(b"HTTP/1.1 400")
    until(lambda: wire.recv(1000) == b"")
    wire.close()
    assert box.ask("GET", "/v1/jobs")[0] == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="another uid is tried only by root")
def test_another_uid_is_refused(box: Box) -> None:
    """Whoever the kernel says is somebody else gets 403 before a byte is read, even where the modes let them in."""
    places = [Path(box.paths.api_socket), *Path(box.paths.api_socket).parents]
    modes = [(place, place.stat().st_mode) for place in places if place.stat().st_uid == 0 and place != Path("/")]
    for place, mode in modes:
        place.chmod(mode | 0o007)
    try:

        def ask() -> bytes:
            wire = box.connect()
            wire.sendall(b"GET /v1/jobs HTTP/1.1\r\nHost: stoker\r\n\r\n")
            data = b""
            while piece := wire.recv(1000):
                data += piece
            return data

        answer = as_nobody(ask)
    finally:
        for place, mode in modes:
            place.chmod(mode & 0o7777)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403")
    assert json.loads(body)["code"] == "refused"


def test_the_socket_is_its_owners_alone(box: Box) -> None:
    """The socket has mode 0600."""
    assert Path(box.paths.api_socket).stat().st_mode & 0o777 == 0o600


UNKNOWN = [
    ("POST", "/v1/jobs", {"dryrun": True}, "dry_run"),
    ("POST", "/v1/jobs", {"caller": {"cwd": "/", "environment": {}}}, "caller.env"),
    ("POST", "/v1/jobs", {"script": {"path": "a.sh", "text": "", "texts": ""}}, "script.text"),
    ("POST", "/v1/jobs/1/rerun", {"zz": 1}, "flags"),
    ("POST", "/v1/jobs/stop", {"refs": ["1"], "grace": "x"}, "grace_s"),
    ("POST", "/v1/jobs/start", {"refs": ["1"], "zzz": 1}, "refs"),
    ("POST", "/v1/jobs/remove", {"refs": ["1"], "keep_output": True}, "keep_outputs"),
    ("POST", "/v1/jobs/1/outputs/pull", {"destination": "/x", "overwrites": True}, "overwrite"),
    ("POST", "/v1/backup", {"dest": 1}, "destination"),
    ("POST", "/v1/runner/stop", {"now": True}, "there is no key"),
    ("POST", "/v1/runner/restart", {"now": True}, "there is no key"),
    ("POST", "/v1/runner/rotate-key", {"now": True}, "there is no key"),
    ("DELETE", "/v1/models/x", {"confirmed": True}, "there is no key"),
    ("POST", "/v1/models", {"name": "m", "source": "/x", "caller": {"cwd": "/"}, "tag": ["a"]}, "tags"),
    ("POST", "/v1/data", {"name": "m", "source": "/", "caller": {"cwd": "/"}, "input": {"refreshed": True}}, "refresh"),
    ("POST", "/v1/models/m/rename", {"name": "n", "new": "x"}, "name"),
    ("POST", "/v1/models/m/pin", {"pinned": True}, "there is no key"),
    ("POST", "/v1/models/m/push", {"destination": "/x", "caller": {"cwd": "/"}, "keys": "a"}, "key"),
    ("POST", "/v1/jobs/1/outputs/push", {"destination": "/x", "caller": {"cwd": "/"}, "keys": "a"}, "key"),
    ("POST", "/v1/copy", {"source": "1", "destination": "/x", "overwrites": True}, "overwrite"),
    ("POST", "/v1/jobs/1/checkpoint/restore", {"jobs": "2"}, "job"),
    ("GET", "/v1/models?every=1", None, "all"),
    ("POST", "/v1/cache/prune", {"dryrun": True}, "dry_run"),
    ("POST", "/v1/cache/verify", {"everything": True}, "all"),
    ("POST", "/v1/operations/1/cancel", {"now": True}, "there is no key"),
    ("GET", "/v1/operations/1?folow=1", None, "follow"),
    ("GET", "/v1/cache?all=1", None, "there is no parameter"),
    ("GET", "/v1/jobs?limits=1", None, "limit"),
    ("GET", "/v1/jobs/1?zzz=1", None, "there is no parameter"),
    ("GET", "/v1/credit/balance?zzz=1", None, "there is no parameter"),
    ("POST", "/v1/jobs?dry_run=1", {}, "there is no parameter"),
    ("DELETE", "/v1/models/x?confirm=1", None, "confirmed"),
]


@pytest.mark.parametrize(("method", "path", "part", "hint"), UNKNOWN, ids=lambda value: str(value)[:40])
def test_what_no_route_knows(box: Box, method: str, path: str, part: dict[str, Any] | None, hint: str) -> None:
    """A key or parameter that is not there would silently not count: it is refused, with the nearest that is."""
    body = box.submission("true") | part if path.startswith("/v1/jobs") and path.count("/") == 2 and part else part
    problem = refused(box, 400, method, path, body)
    assert problem["message"].startswith("unknown ")
    assert hint in problem["hint"]


@pytest.mark.parametrize("part", [{"digest": "0" * 64}, {"path": "a"}, {"rw": True}, {"uri": "/y"}], ids=str)
def test_what_is_for_inputs_of_jobs_alone(box: Box, part: dict[str, Any]) -> None:
    """An artifact is not made of something else than its request said: what would not count is refused."""
    body = {"name": "m", "source": "/", "caller": {"cwd": "/"}, "input": part}
    problem = refused(box, 400, "POST", "/v1/data", body)
    assert problem["message"] == f"input.{next(iter(part))} is for the inputs of jobs alone"


WRONG_TYPES = [
    ("/v1/jobs", {"dry_run": 1}),
    ("/v1/jobs", {"dry_run": "false"}),
    ("/v1/jobs", {"caller": {"cwd": "/", "umask": "022"}}),
    ("/v1/jobs/stop", {"refs": ["1"], "grace_s": "x"}),
    ("/v1/jobs/remove", {"refs": ["1"], "keep_outputs": "no"}),
    ("/v1/jobs/remove", {"refs": ["1"], "confirmed": 1}),
    ("/v1/jobs/1/outputs/pull", {"destination": "/x", "overwrite": "yes"}),
    ("/v1/backup", {"destination": 1}),
    ("/v1/cache/prune", {"dry_run": "no"}),
    ("/v1/cache/verify", {"all": 1}),
]


@pytest.mark.parametrize(("path", "part"), WRONG_TYPES, ids=str)
def test_values_of_another_type(box: Box, path: str, part: dict[str, Any]) -> None:
    """What is no boolean is not taken for one, nor text for a number."""
    problem = refused(box, 400, "POST", path, box.submission("true") | part if path == "/v1/jobs" else part)
    name, value = list(part.items())[-1]
    assert (name if not isinstance(value, dict) else "caller.umask") + " is not " in problem["message"]


def test_a_batch_begins_with_what_is_known(box: Box) -> None:
    """The first line of a batch is no less strict than a submission."""
    head = {"caller": box.submission()["caller"], "flag": []}
    raw = "\n".join(map(json.dumps, [head, {"command": ["true"]}])).encode()
    assert "flags" in refused(box, 400, "POST", "/v1/jobs/batch", raw=raw)["hint"]


def test_openapi_describes_the_bodies(box: Box) -> None:
    """Every route that reads a body says what is in it, names the idempotency key, and no reference leads nowhere."""
    status, document = box.ask("GET", "/v1/openapi.json")
    assert status == 200
    assert document["openapi"].startswith("3.1")
    assert "$defs" not in json.dumps(document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["operationId"]
            names = {each["name"] for each in operation.get("parameters", ())}
            if method != "get":
                assert "Idempotency-Key" in names, path
            if method == "post":
                schema = next(iter(operation["requestBody"]["content"].values()))["schema"]
                assert schema["type"] == "object"
            for part in path.split("/"):
                assert not part.startswith("{") or part.strip("{}") in names, path
