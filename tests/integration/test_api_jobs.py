"""Jobs over the API: references, arrays, lists, removal, idempotency; what is another's is not there."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.core.errors import NotFound, UsageError
from runner.core.job import Ref
from runner.core.lifecycle import Event, State
from runner.core.reasons import Waiting, WaitReason
from runner.service import places, views
from runner.service.desk import Change, Discard, Enqueue, Salvage
from runner.service.refs import resolve
from runner.state import jobs, measurements
from tests.integration.api_kit import Box, running, until
from tests.servers import hung_directory


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A runner of this test's own."""
    with running(tmp_path) as found:
        yield found


def test_references(box: Box) -> None:
    """A number, an element, a name, a prefix, @last and @failed find a job; what could be two is refused."""
    first = box.submit(flags=[("--name", "train-a")])
    box.submit(flags=[("--name", "train-b"), ("--array", "3-5")])
    again = box.submit(flags=[("--name", "train-a")])
    box.finish(first, state="failed", code=3)

    def found(text: str) -> str:
        return resolve(box.room.reader(), text, 0).label

    assert found("1") == "1"
    assert found("2[4]") == "2[4]"
    assert found("train-b[4]") == "2[4]"
    assert found("train-a") == str(again)
    assert found("@last") == str(again)
    assert found("@failed") == str(first)
    assert found("train-b") == "2"
    with pytest.raises(UsageError, match="train-a, train-b"):
        found("train")
    for text in ("2[2]", "1[0]", "4", "x", "@lost"):
        with pytest.raises(NotFound):
            found(text)


def test_another_users_job_is_not_found(box: Box) -> None:
    """Every verb aimed at a job of another uid answers as for a job that is not there."""
    job = box.submit(flags=[("--name", "mine")])
    box.change(lambda change: change.connection.execute("UPDATE jobs SET owner_uid = 12345"))
    for ref in (str(job), "mine", "@last"):
        for path in ("", "/explain", "/logs", "/wait", "/outputs", "/metrics"):
            assert box.ask("GET", f"/v1/jobs/{ref}{path}")[0] == 404, path
        for verb in ("stop", "start", "remove"):
            assert box.ask("POST", f"/v1/jobs/{verb}", {"refs": [ref]})[0] == 404
        assert box.ask("POST", f"/v1/jobs/{ref}/rerun", {})[0] == 404


def test_a_large_array_is_one_row_with_true_counts(box: Box) -> None:
    """An array of 10 000 is one row of `ps`, its counts are right whatever the limit, and it hides no other job."""
    array = box.submit(flags=[("--array", "0-9999%4"), ("--name", "many")])
    other = box.submit(flags=[("--name", "other")])
    for index in (0, 1, 9999):
        box.finish(array, index)
    box.finish(array, 5, state="failed", code=2)
    _, answer = box.ask("GET", "/v1/jobs?limit=2")
    assert [row["id"] for row in answer["jobs"]] == [str(array), str(other)]
    assert answer["more"] is False
    row = answer["jobs"][0]
    assert row["elements"] == {"succeeded": 3, "pending": 9996, "failed": 1}
    assert row["state"] == "pending"
    _, page = box.ask("GET", "/v1/jobs?all=1&limit=1")
    assert [row["id"] for row in page["jobs"]] == [str(other)]
    assert page["more"] is True
    _, page = box.ask("GET", f"/v1/jobs?all=1&limit=1&before={other}")
    assert page["jobs"][0]["elements"] == row["elements"]
    _, failed = box.ask("GET", "/v1/jobs?state=failed")
    assert [row["id"] for row in failed["jobs"]] == [str(array)]


def test_a_finished_array_is_one_row_of_the_recent(box: Box) -> None:
    """The elements of an array that finished lately do not push other jobs out of the list."""
    plain = box.submit()
    box.finish(plain)
    array = box.submit(flags=[("--array", "0-40")])
    for index in range(41):
        box.finish(array, index)
    _, answer = box.ask("GET", "/v1/jobs")
    assert [row["id"] for row in answer["jobs"]] == [str(plain), str(array)]
    assert answer["jobs"][1]["elements"] == {"succeeded": 41}
    assert answer["jobs"][1]["finished_at"]


def test_a_limit_counts_the_recent_too(box: Box) -> None:
    """`limit` is the most rows there are, unfinished jobs first; what it leaves out is said."""
    over = [box.submit() for _ in range(3)]
    for job_id in over:
        box.finish(job_id)
    waits = box.submit()
    _, answer = box.ask("GET", "/v1/jobs?limit=2")
    assert (len(answer["jobs"]), answer["jobs"][-1]["id"], answer["more"]) == (2, str(waits), True)
    _, answer = box.ask("GET", "/v1/jobs?limit=4")
    assert (len(answer["jobs"]), answer["more"]) == (4, False)


def test_a_row_for_each_element(box: Box) -> None:
    """`elements` lists each by itself, beside jobs that are no arrays; states and the limit hold for them."""
    array = box.submit(flags=[("--array", "0-4")])
    box.finish(array, 1, state="failed", code=3)
    plain = box.submit()
    box.reasons[array] = WaitReason(Waiting.RESOURCES, "waits for 1 core")
    before = box.explained
    _, answer = box.ask("GET", "/v1/jobs?elements=1")
    rows = {row["id"]: row for row in answer["jobs"]}
    assert list(rows) == [*[f"{array}[{index}]" for index in range(5)], str(plain)]
    assert (rows[f"{array}[1]"]["state"], rows[f"{array}[1]"]["exit_code"]) == ("failed", 3)
    assert rows[f"{array}[4]"]["reason"]["sentence"] == "waits for 1 core"
    assert box.explained == before + 2
    _, answer = box.ask("GET", "/v1/jobs?elements=1&limit=2")
    assert ([row["id"] for row in answer["jobs"]], answer["more"]) == ([f"{array}[0]", f"{array}[1]"], True)
    for query in ("state=failed&elements=1", f"ref={array}&state=failed&elements=1", f"ref={array}[1]"):
        _, answer = box.ask("GET", f"/v1/jobs?{query}")
        assert [row["id"] for row in answer["jobs"]] == [f"{array}[1]"], query
    assert [row["id"] for row in box.ask("GET", f"/v1/jobs?ref={array}&ref={plain}")[1]["jobs"]] == [
        str(array),
        str(plain),
    ]


def test_a_reason_is_asked_for_once(box: Box) -> None:
    """Explaining 10 000 equal elements asks the scheduler once, not 10 000 times."""
    array = box.submit(flags=[("--array", "0-9999")])
    box.reasons[array] = WaitReason(Waiting.RESOURCES, "waits for 1 core")
    before = box.explained
    _, answer = box.ask("GET", f"/v1/jobs/{array}/explain")
    assert [reason["sentence"] for reason in answer["reasons"]] == ["waits for 1 core"]
    assert box.explained == before + 1


def test_waiting_for_any_of_some_jobs(box: Box) -> None:
    """The one that ends first answers, an array when all of it is over; of several that have ended, the earliest."""
    array, first, second = box.submit(flags=[("--array", "0-1")]), box.submit(), box.submit()
    path = f"/v1/wait?ref={array}&ref={first}&ref={second}"
    status, problem = box.ask("GET", path + "&timeout_s=0")
    assert (status, problem["message"]) == (504, "none of 3 jobs has finished after 0 s")
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(box.ask("GET", path)))
    waiter.start()
    box.finish(array, 0)
    box.finish(second, state="failed", code=7)
    box.hub.changed({second})
    waiter.join(10)
    assert (answers[0][1]["id"], answers[0][1]["code"]) == (str(second), 7)
    box.now_us += 1
    box.finish(first)
    assert box.ask("GET", path)[1]["id"] == str(second)
    assert box.ask("GET", f"/v1/wait?ref={array}&ref={first}")[1]["id"] == str(first)
    assert box.ask("GET", "/v1/wait?ref=nobody")[0] == 404
    assert box.ask("GET", "/v1/wait")[0] == 400


def test_waiting_for_an_array(box: Box) -> None:
    """`wait` of an array answers when all elements are over: 0 if all succeeded, else 1, the failed one speaking."""
    array = box.submit(flags=[("--array", "0-2")])
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(box.ask("GET", f"/v1/jobs/{array}/wait")))
    waiter.start()
    for index in (0, 1):
        box.finish(array, index)
    status, problem = box.ask("GET", f"/v1/jobs/{array}/wait?timeout_s=0")
    assert (status, problem["code"]) == (504, "wait_timed_out")
    assert not answers
    box.finish(array, 2, state="failed", code=7)
    box.hub.changed({array})
    waiter.join(10)
    assert answers[0][1]["code"] == 1
    assert answers[0][1]["state"] == "failed"
    assert answers[0][1]["exit_code"] == 7
    assert box.ask("GET", f"/v1/jobs/{array}[2]/wait")[1]["code"] == 7
    assert box.ask("GET", f"/v1/jobs/{array}[0]/wait")[1]["code"] == 0
    assert box.ask("GET", f"/v1/jobs/{array}[0]")[1]["id"] == f"{array}[0]"


def test_stopping_one_element_and_all(box: Box) -> None:
    """`stop 42[7]` stops one element, `stop 42` the rest; what had finished stays as it was."""
    array = box.submit(flags=[("--array", "0-3")])
    box.finish(array, 0)
    box.ask("POST", "/v1/jobs/stop", {"refs": [f"{array}[2]"]})
    assert box.ask("GET", f"/v1/jobs/{array}")[1]["elements"] == {"succeeded": 1, "pending": 2, "stopped": 1}
    box.ask("POST", "/v1/jobs/stop", {"refs": [str(array)]})
    assert box.ask("GET", f"/v1/jobs/{array}")[1]["elements"] == {"succeeded": 1, "stopped": 3}


def test_stopping_an_array_counts_what_became_of_it(box: Box) -> None:
    """One line says how many elements met which fate; a job and one element have a sentence of their own."""
    array = box.submit(flags=[("--array", "0-4")])
    box.finish(array, 1)
    assert box.ask("POST", "/v1/jobs/stop", {"refs": [f"{array}[0]"]})[1]["jobs"][0]["sentence"] == "stopped"
    _, answer = box.ask("POST", "/v1/jobs/stop", {"refs": [str(array)]})
    told = "elements: 1 had stopped before, 1 had succeeded before, 3 stopped"
    assert answer["jobs"] == [{"id": str(array), "sentence": told}]


def test_starting_again(box: Box) -> None:
    """`start` takes a stopped or failed job back as a new attempt and refuses one that succeeded or waits."""
    job = box.submit()
    box.finish(job, state="failed", code=1)
    assert box.ask("POST", "/v1/jobs/start", {"refs": [str(job)]})[0] == 200
    shown = box.ask("GET", f"/v1/jobs/{job}")[1]
    assert (shown["state"], shown["exit_code"], shown["finished_at"]) == ("pending", None, None)
    status, problem = box.ask("POST", "/v1/jobs/start", {"refs": [str(job)]})
    assert (status, problem["code"]) == (409, "conflict")
    box.finish(job)
    assert [each["number"] for each in box.ask("GET", f"/v1/jobs/{job}")[1]["attempts"]] == [1, 2]
    status, problem = box.ask("POST", "/v1/jobs/start", {"refs": [str(job)]})
    assert (status, f"stoker rerun {job}" in problem["hint"]) == (409, True)


def test_a_held_job_is_freed(box: Box) -> None:
    """A held job says so and waits again once it is started."""
    job = box.submit()
    box.change(lambda change: jobs.set_held(change.connection, Ref(job, -1), held=True))
    reasons = box.ask("GET", f"/v1/jobs/{job}/explain")[1]["reasons"]
    assert reasons[0]["kind"] == "held"
    assert box.ask("POST", "/v1/jobs/start", {"refs": [str(job)]})[0] == 200
    assert isinstance(box.effects[-1], Enqueue)
    assert box.ask("GET", f"/v1/jobs/{job}/explain")[1]["reasons"][0]["kind"] != "held"


def test_a_stopped_pending_job_with_output_is_saved_first(box: Box) -> None:
    """A job that waits for another attempt and is stopped goes to saving, as its last attempt may have left output."""
    job = box.submit()

    def requeued(change: Change) -> None:
        ref, at = Ref(job, -1), change.now_us
        jobs.move(change.connection, ref, State.PENDING, Event.ALLOCATE, at, attempts=1)
        attempt = jobs.open_attempt(
            change.connection, ref=ref, number=1, token="t", boot_id="b", now_us=at, rates=(0, 0), why="", devices=()
        )
        jobs.begin_attempt(change.connection, attempt, at, 1)
        jobs.move(change.connection, ref, State.STARTING, Event.END, at)
        jobs.close_attempt(change.connection, attempt, at, ending="interrupted")
        jobs.move(change.connection, ref, State.SAVING, Event.REQUEUE, at, held=1, sentence="interrupted: away")

    box.change(requeued)
    box.ask("POST", "/v1/jobs/stop", {"refs": [str(job)]})
    assert box.effects[-1] == Salvage(Ref(job, -1))
    shown = box.ask("GET", f"/v1/jobs/{job}")[1]
    assert shown["state"] == "saving"


def test_rerun_takes_what_the_job_had(box: Box) -> None:
    """A rerun has the job's own environment, even names no flag could give, and the flags' changes over it."""
    body = box.submission("true", flags=[["--env", "SEED=1"], ["--env", "API_TOKEN"], ["--param", "lr=0.1"]])
    body["caller"]["env"] |= {"API_TOKEN": "hush", "BASH_FUNC_module%%": "() { :; }", "OTHER_KEY": "left out"}
    body["caller"]["env"] |= {f"V{number}": "x" for number in range(1500)}
    status, answer = box.ask("POST", "/v1/jobs", body)
    assert status == 201
    assert answer["left_out"] == ["OTHER_KEY"]
    status, again = box.ask(
        "POST", f"/v1/jobs/{answer['id']}/rerun", {"flags": [["--env", "SEED=2"], ["--name", "two"]]}
    )
    assert status == 201, again
    assert again["left_out"] == []
    connection = box.room.reader()
    first, second = (
        json.loads(box.room.sealer.unseal(0, "environment", "variables", jobs.variables_of(connection, job)))["env"]
        for job in (answer["id"], again["id"])
    )
    assert second == first | {"SEED": "2"}
    shown = box.ask("GET", f"/v1/jobs/{again['id']}")[1]
    assert (shown["name"], shown["env_names"], shown["spec"]["param"]) == ("two", ["SEED"], {"lr": 0.1})
    assert box.ask("POST", f"/v1/jobs/{answer['id']}/rerun", {"flags": "x"})[0] == 400
    assert box.ask("POST", f"/v1/jobs/{answer['id']}/rerun", {"command": "x"})[0] == 400


def test_removal(box: Box) -> None:
    """`rm` refuses what has not finished, takes the rest out of view with its files, and keeps its attempts."""
    done, waits = box.submit(), box.submit()
    box.finish(done)
    status, problem = box.ask("POST", "/v1/jobs/remove", {"refs": [str(done), str(waits)]})
    assert (status, problem["code"]) == (409, "conflict")
    assert f"stoker stop {waits}" in problem["hint"]
    assert box.ask("GET", f"/v1/jobs/{done}")[0] == 200
    status, answer = box.ask("POST", "/v1/jobs/remove", {"refs": [str(done)]})
    assert (status, answer["removed"]) == (200, [str(done)])
    assert isinstance(box.effects[-1], Discard)
    assert box.ask("GET", f"/v1/jobs/{done}")[0] == 404
    assert box.room.reader().execute("SELECT COUNT(*) FROM attempts").fetchone()[0] == 1


def test_removal_by_age(box: Box) -> None:
    """`--older-than` takes whole jobs that finished before then, and no others."""
    old, array, young, waits = box.submit(), box.submit(flags=[("--array", "0-1")]), box.submit(), box.submit()
    box.finish(old)
    box.finish(array, 0)
    box.now_us += 3600 * 1_000_000
    box.finish(array, 1)
    box.finish(young)
    status, answer = box.ask("POST", "/v1/jobs/remove", {"older_than_s": 1800})
    assert (status, answer["removed"]) == (200, [str(old)])
    for job in (array, young, waits):
        assert box.ask("GET", f"/v1/jobs/{job}")[0] == 200


def test_the_same_key_and_body_give_the_same_answer(box: Box) -> None:
    """A request that comes twice is done once; another body or another path under the key is a conflict."""
    body = box.submission("true")
    status, first = box.ask("POST", "/v1/jobs", body, key="k")
    assert box.ask("POST", "/v1/jobs", body, key="k") == (status, first)
    assert box.queued() == 1
    status, problem = box.ask("POST", "/v1/jobs", box.submission("false"), key="k")
    assert (status, problem["code"]) == (409, "conflict")
    raw = json.dumps({"refs": ["1"]}).encode()
    assert box.ask("POST", "/v1/jobs/stop", raw=raw, key="s")[0] == 200
    assert box.ask("POST", "/v1/jobs/start", raw=raw, key="s")[0] == 409


def test_the_answer_outlives_what_it_spoke_of(box: Box) -> None:
    """A repeated request is answered as before though its directory, its input or its job are gone."""
    place = box.work / "place"
    place.mkdir()
    body = box.submission("true", flags=[("--cwd", "place")])
    first = box.ask("POST", "/v1/jobs", body, key="a")
    again = box.ask("POST", f"/v1/jobs/{first[1]['id']}/rerun", {}, key="b")
    place.rmdir()
    box.finish(int(first[1]["id"]))
    removed = box.ask("POST", "/v1/jobs/remove", {"refs": ["1"]}, key="c")
    assert first[0] == again[0] == 201
    assert removed[0] == 200
    assert box.ask("POST", "/v1/jobs", body, key="a") == first
    assert box.ask("POST", "/v1/jobs/1/rerun", {}, key="b") == again
    assert box.ask("POST", "/v1/jobs/remove", {"refs": ["1"]}, key="c") == removed


def test_two_reruns_under_one_key(box: Box) -> None:
    """The job is part of the request: the same key and flags for another job are a conflict, not its answer."""
    box.submit(), box.submit()
    assert box.ask("POST", "/v1/jobs/1/rerun", {}, key="k")[0] == 201
    assert box.ask("POST", "/v1/jobs/2/rerun", {}, key="k")[0] == 409


def test_a_batch_and_a_backup_are_done_once(box: Box) -> None:
    """Batches and backups are answered once as well."""
    raw = "\n".join([json.dumps({"caller": box.submission()["caller"]}), *['{"command": ["true"]}'] * 3]).encode()
    first = box.ask("POST", "/v1/jobs/batch", raw=raw, key="k")
    assert box.ask("POST", "/v1/jobs/batch", raw=raw, key="k") == first
    assert first[1]["ids"] == ["1", "2", "3"]
    assert box.queued() == 3
    body = {"destination": str(box.root / "copy.db")}
    copy = box.ask("POST", "/v1/backup", body, key="b")
    assert copy[0] == 200
    assert box.ask("POST", "/v1/backup", body, key="b") == copy
    assert box.ask("POST", "/v1/backup", body, key="other")[0] == 400


def test_a_path_that_is_no_text_is_a_path(box: Box) -> None:
    """A backup goes to a name of any bytes, and the refusal of a second one can be told."""
    body = {"destination": f"{box.root}/copy\udcff.db"}
    status, copy = box.ask("POST", "/v1/backup", body)
    assert (status, copy["path"]) == (200, f"{box.root}/copy\\xff.db")
    assert Path(body["destination"]).stat().st_size == copy["bytes"]
    status, problem = box.ask("POST", "/v1/backup", body)
    assert (status, problem["message"]) == (400, f"{body['destination']} exists")


def test_backups_of_one_second_are_three(box: Box) -> None:
    """Without a destination every backup is a file of its own."""
    answers = [box.ask("POST", "/v1/backup", {}) for _ in range(3)]
    paths = {answer["path"] for status, answer in answers if status == 200}
    assert len(paths) == 3
    assert {str(path) for path in (box.root / "state/backups").iterdir()} == paths


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs CAP_SYS_ADMIN")
def test_a_backup_leaves_the_room_kept_for_exits(tmp_path: Path) -> None:
    """On the disk of the state a backup that would take what is kept for bad days is refused; elsewhere it is made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m,mode=0700", "tmpfs", str(disk)], check=True)
    try:
        with running(disk) as box:
            for body in ({}, {"destination": str(box.root / "copy.db")}):
                status, problem = box.ask("POST", "/v1/backup", body)
                assert (status, problem["code"]) == (503, "unavailable")
                assert "another disk" in problem["hint"]
            assert box.ask("POST", "/v1/backup", {"destination": str(tmp_path / "copy.db")})[0] == 200
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_keys_belong_to_a_user(box: Box) -> None:
    """The same key of another uid is another key; a refused request leaves its key unused."""
    box.change(
        lambda change: change.connection.execute("INSERT INTO requests VALUES (12345, 'k', x'00', '{\"id\": 99}', 1)")
    )
    assert box.ask("POST", "/v1/jobs", box.submission("true", flags=[("--gpus", "9")]), key="k")[0] == 422
    status, answer = box.ask("POST", "/v1/jobs", box.submission("true"), key="k")
    assert (status, answer["id"]) == (201, "1")


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb", "é"])
def test_a_key_is_short_and_printable(box: Box, key: str) -> None:
    """A key that could not be told from another is refused."""
    assert box.ask("POST", "/v1/jobs", box.submission("true"), key=key)[0] == 400


def test_a_hundred_at_once_under_one_key(box: Box) -> None:
    """However many come at the same time, one job is made and all are told of it."""
    body = box.submission("true")
    answers: list[tuple[int, object]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(box.ask("POST", "/v1/jobs", body, key="k"))) for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [answers[0]] * 100
    assert box.queued() == 1


def test_an_older_answer_is_never_changed(box: Box) -> None:
    """What was answered is kept for ever: the database itself refuses to change or drop it."""
    box.ask("POST", "/v1/jobs", box.submission("true"), key="k")
    for statement in ("UPDATE requests SET answer = '{}'", "DELETE FROM requests"):
        with pytest.raises(Exception, match="append-only"):
            box.change(lambda change, statement=statement: change.connection.execute(statement))


def test_a_long_series_is_thinned_and_keeps_its_extremes(box: Box) -> None:
    """The whole run is shown in at most 2 000 points, spikes included; with a tail the last ones as they are."""
    box.finish(box.submit())
    points = [("loss", step, float(step % 7), step) for step in range(1, 20_001)]
    points[9_999] = ("loss", 10_000, 1e9, 10_000)
    box.change(lambda change: measurements.add_points(change.connection, 1, points))
    whole = box.ask("GET", "/v1/jobs/1/metrics")[1]
    assert len(whole["series"]["loss"]) <= 2_000
    assert whole["counts"] == {"loss": 20_000}
    assert [10_000, 1e9, 10_000] in whole["series"]["loss"]
    assert whole["series"]["loss"][0][0] < 20
    last = box.ask("GET", "/v1/jobs/1/metrics?tail=3000")[1]["series"]["loss"]
    assert [step for step, _, _ in last] == list(range(17_001, 20_001))


def test_a_secret_is_nowhere_in_clear(box: Box) -> None:
    """A variable's value is in no file, no answer and no event; only its name is shown."""
    canary = "canary-5f3a9c"
    body = box.submission("true", flags=[["--env", "API_TOKEN"], ["--env", f"PLAIN={canary}"]])
    body["caller"]["env"]["API_TOKEN"] = canary
    _, answer = box.ask("POST", "/v1/jobs", body, key="k")
    told = [answer, box.ask("POST", "/v1/jobs", body | {"dry_run": True})[1]]
    told += [box.ask("GET", f"/v1/jobs/1{path}")[1] for path in ("", "/explain", "/outputs", "/metrics")]
    told += [box.ask("GET", path)[1] for path in ("/v1/jobs", "/v1/events", "/v1/runner")]
    assert canary not in json.dumps(told)
    assert told[2]["env_names"] == ["PLAIN"]
    box.change(lambda change: change.connection.execute("SELECT 1"))
    for file in box.root.rglob("*"):
        if file.is_file():
            assert canary.encode() not in file.read_bytes(), file


def test_secrets_are_masked_in_logs(box: Box) -> None:
    """A secret that a job printed is starred out wherever its log is shown; the job's own file keeps it."""
    body = box.submission("true", flags=[["--env", "API_TOKEN"]])
    body["caller"]["env"]["API_TOKEN"] = "canary-5f3a9c"
    box.ask("POST", "/v1/jobs", body)
    box.finish(1)
    log = Path(box.paths.job_log(1, 0))
    log.parent.mkdir(parents=True)
    log.write_text("token canary-5f3a9c\n")
    wire = box.connect()
    wire.sendall(b"GET /v1/jobs/1/logs HTTP/1.1\r\nHost: stoker\r\nConnection: close\r\n\r\n")
    shown = b""
    while piece := wire.recv(1000):
        shown += piece
    wire.close()
    assert b"token " in shown
    assert b"canary" not in shown


def test_events_tell_of_an_array_as_a_whole(box: Box) -> None:
    """Events carry the job, the element and what happened, in order."""
    array = box.submit(flags=[("--array", "0-1")])
    box.finish(array, 1)
    until(lambda: len(box.ask("GET", "/v1/events")[1]["events"]) == 5)
    events = box.ask("GET", "/v1/events")[1]["events"]
    assert [event["kind"] for event in events] == ["submitted", "starting", "running", "saving", "succeeded"]
    assert [event["index"] for event in events[1:]] == [1] * 4
    assert box.ask("GET", f"/v1/events?after={events[-1]['seq']}")[1]["events"] == []


def test_no_view_names_what_is_not_there(box: Box) -> None:
    """Showing an element that the array has not is not found."""
    array = box.submit(flags=[("--array", "0-1")])
    with pytest.raises(NotFound):
        views.outcome(box.room.reader(), resolve(box.room.reader(), f"{array}[7]", 0))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([("--output", "o"), ("--checkpoint", "o")], "inside the other"),
        ([("--output", "o"), ("--checkpoint", "./o/ckpt")], "inside the other"),
        ([("--output", "o"), ("--output", "p")], "--output is given twice"),
        ([("--output", "=s3://b/x/"), ("--output", "p=s3://b/y/")], "--output is given twice"),
        ([("--output", "o=")], "no address"),
        ([("--output", "file")], "is a file"),
        ([("--checkpoint", "file/ckpt")], "is a file"),
    ],
)
def test_directories_that_could_hold_nothing_are_refused(box: Box, flags: list[tuple[str, str]], says: str) -> None:
    """One that hides the other, one given twice, one where a file stands: nothing is queued that could save nothing."""
    (box.work / "file").touch()
    status, problem = box.ask("POST", "/v1/jobs", box.submission("true", flags=flags))
    assert status == 400 and says in str(problem), problem
    assert box.queued() == 0


def test_without_mounts_a_directory_is_a_link(box: Box) -> None:
    """Where mounts are not permitted DIR becomes a link to the job's own directory, made when the job is accepted."""
    box.mounts_permitted = False
    job = box.submit(flags=[("--output", "runs/out"), ("--checkpoint", "keep")])
    assert (box.work / "runs/out").readlink() == Path(f"{box.paths.jobs_dir}/{job}/attempt-1/output")
    assert (box.work / "keep").readlink() == Path(f"{box.paths.jobs_dir}/{job}/checkpoint")


def test_without_mounts_nobody_shares_a_directory(box: Box) -> None:
    """A DIR that exists, or that an unfinished job has, is refused with what to do; nothing is queued or left."""
    box.mounts_permitted = False
    first = box.submit(flags=[("--output", "out")])
    (box.work / "there").mkdir()
    (box.work / "dangling").symlink_to("/nowhere")
    for flags in (
        [("--checkpoint", "fresh"), ("--output", "there")],
        [("--output", "fresh"), ("--checkpoint", "out")],
        [("--output", "dangling")],
        [("--output", "fresh"), ("--array", "0-1")],
    ):
        status, problem = box.ask("POST", "/v1/jobs", box.submission("true", flags=flags))
        assert status == 400, flags
        assert "_DIR" in problem["hint"]
        assert not (box.work / "fresh").is_symlink()
    assert box.queued() == 1
    box.finish(first)
    second = box.submit(flags=[("--output", "out")])
    assert f"/{second}/" in str((box.work / "out").readlink())


def test_without_mounts_a_submit_does_not_refuse_itself(box: Box) -> None:
    """A link whose job was never written down hinders nobody: not who asks again, not who is given its number."""
    box.mounts_permitted = False
    caller = box.submission()["caller"]
    lines = [{"caller": caller}, {"command": ["true"], "output": "out"}, {"command": ["true"], "gpus": 9}]
    status, _ = box.ask("POST", "/v1/jobs/batch", raw="\n".join(map(json.dumps, lines)).encode())
    assert status == 422
    first = box.submit()
    assert (box.work / "out").readlink() == Path(f"{box.paths.jobs_dir}/{first}/attempt-1/output")
    second = box.submit(flags=[("--output", "out")])
    (box.work / "out").unlink()
    (box.work / "out").symlink_to(f"{box.paths.jobs_dir}/{second + 1}/attempt-1/output")
    box.finish(second)
    third = box.submit(flags=[("--output", "out")])
    assert (box.work / "out").readlink() == Path(f"{box.paths.jobs_dir}/{third}/attempt-1/output")
    (box.work / "again").symlink_to(box.work)
    again = box.submission("true", flags=[("--output", "again/out")])
    assert box.ask("POST", "/v1/jobs", again)[0] == 400


@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="mounting needs CAP_SYS_ADMIN")
def test_a_directory_that_hangs_keeps_nobody_else_waiting(box: Box) -> None:
    """While the working directory, or an input, of one submission does not answer, others are accepted and shown."""
    place = box.root / "hung"
    place.mkdir()
    known = box.submit()
    asked: list[int] = []
    wires = []
    for flags in ([("--cwd", str(place))], [("--input", f"x={place}/data")]):
        body = box.submission("true", flags=flags)
        wires.append(threading.Thread(target=lambda body=body: asked.append(box.ask("POST", "/v1/jobs", body)[0])))
    with hung_directory(place):
        for each in wires:
            each.start()
        assert box.ask("GET", f"/v1/jobs/{known}")[0] == 200
        box.submit()
        assert asked == []
    for each in wires:
        each.join()
    assert asked == [400, 400]


def test_a_link_follows_the_attempts(box: Box) -> None:
    """The link of a job leads to the attempt under way, and never over what somebody else put there."""
    job_dir, link = f"{box.paths.jobs_dir}/1", box.work / "out"
    places.point(str(link), f"{job_dir}/attempt-1/output", job_dir)
    places.point(str(link), f"{job_dir}/attempt-2/output", job_dir)
    assert str(link.readlink()) == f"{job_dir}/attempt-2/output"
    # A runner killed between the two calls of a move left this.
    (box.work / "out.1.tmp").symlink_to(f"{job_dir}/attempt-3/output")
    places.point(str(link), f"{job_dir}/attempt-3/output", job_dir)
    assert str(link.readlink()) == f"{job_dir}/attempt-3/output"
    assert not (box.work / "out.1.tmp").is_symlink()
    with pytest.raises(FileExistsError):
        places.point(str(link), f"{box.paths.jobs_dir}/11/attempt-1/output", f"{box.paths.jobs_dir}/11")
