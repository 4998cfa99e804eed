"""Keys over the API: written, changed, removed, and never read back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runner.service import keys as service
from runner.state import keys
from tests.integration.api_kit import Box, running
from tests.unit.test_credentials import CANARY, WHOLE

AWS = {"kind": "aws", "name": "work", "values": WHOLE["aws"]}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A runner without a daemon."""
    with running(tmp_path) as started:
        yield started


def values_of(box: Box, name: str) -> dict[str, str]:
    """Return what is sealed."""
    row = keys.find(box.room.reader(), _uid(box), name)
    assert row is not None
    return dict(service.open_key(box.room.sealer, row).values)


def _uid(box: Box) -> int:
    with closing(sqlite3.connect(box.paths.database)) as connection:
        return int(connection.execute("SELECT owner_uid FROM keys").fetchone()[0])


@pytest.mark.parametrize("kind", sorted(set(WHOLE) - {"git-ssh"}))
def test_a_key_is_written_and_never_read_back(box: Box, kind: str) -> None:
    """Each kind: no answer, no repeated answer and no byte of the database has the secret."""
    body = {"kind": kind, "name": "work", "values": WHOLE[kind]}
    answers = [
        box.ask("POST", "/v1/keys", body, key="once"),
        box.ask("POST", "/v1/keys", body, key="once"),
        box.ask("GET", "/v1/keys/work"),
        box.ask("GET", "/v1/keys"),
    ]
    assert [status for status, _ in answers] == [200, 200, 200, 200]
    assert answers[0] == answers[1]
    assert answers[2][1]["secrets"]
    assert CANARY not in json.dumps(answers)
    for file in Path(box.paths.state_dir).rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file
    assert {part: value.strip() for part, value in values_of(box, "work").items()} == WHOLE[kind]


def test_a_blank_secret_keeps_and_only_erase_takes_away(box: Box) -> None:
    """What is left blank stays; a part is gone when it was named; what a key needs cannot go."""
    box.ask("POST", "/v1/keys", AWS | {"values": WHOLE["aws"] | {"session_token": "token-1"}})
    change = {"values": {"secret_access_key": "", "access_key_id": "AKIAOTHER"}}
    assert box.ask("POST", "/v1/keys/work", change)[1]["public"] == {"access_key_id": "AKIAOTHER"}
    assert values_of(box, "work")["secret_access_key"] == CANARY
    assert box.ask("POST", "/v1/keys/work", {"erase": ["session_token"]})[1]["secrets"] == ["secret_access_key"]
    assert "session_token" not in values_of(box, "work")
    status, refused = box.ask("POST", "/v1/keys/work", {"erase": ["secret_access_key"]})
    assert (status, refused["message"]) == (400, "secret_access_key is missing")
    status, refused = box.ask("POST", "/v1/keys/work", {"values": {"secret_access_key": " "}})
    assert (status, refused["message"]) == (400, "nothing was changed: every value is blank")
    assert values_of(box, "work")["secret_access_key"] == CANARY


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (AWS | {"kind": "awz"}, 400, "that is no kind of key"),
        (AWS | {"name": "a/b"}, 400, "that is no name for a key"),
        (AWS | {"name": "AKIAIOSFODNN7EXAMPLE"}, 400, "that is no name for a key: it looks like a secret"),
        (AWS | {"values": {"secret": CANARY}}, 400, "the key names a part that aws keys do not have"),
        (AWS | {"values": {"access_key_id": 7}}, 400, "a value is no text"),
        (AWS | {"text": CANARY}, 400, "the values come in more than one way"),
        (AWS | {"values": None, "generate": True}, 400, "a aws key cannot be generated"),
        ({"kind": "git-ssh", "name": "x", "text": CANARY}, 400, "that is not a private key"),
        (AWS | {"secret": CANARY}, 400, "unknown key 'secret'"),
    ],
)
def test_a_bad_key_is_refused(box: Box, body: dict[str, Any], status: int, message: str) -> None:
    """Nothing is written, and the refusal does not repeat what was sent."""
    got, refused = box.ask("POST", "/v1/keys", body)
    assert (got, refused["message"]) == (status, message)
    assert CANARY not in json.dumps(refused)
    assert box.ask("GET", "/v1/keys")[1]["keys"] == []


def test_a_name_is_given_once(box: Box) -> None:
    """A second key of a name is a conflict; the first stays as it was."""
    box.ask("POST", "/v1/keys", AWS)
    status, refused = box.ask("POST", "/v1/keys", AWS | {"values": WHOLE["aws"] | {"access_key_id": "AKIAOTHER"}})
    assert (status, refused["message"]) == (409, "there is a key 'work' already")
    assert values_of(box, "work") == WHOLE["aws"]


def test_a_pair_is_made_and_its_public_half_shown(box: Box) -> None:
    """The private half never leaves; it is what the public half belongs to."""
    status, made = box.ask("POST", "/v1/keys", {"kind": "git-ssh", "name": "deploy", "generate": True})
    assert status == 200
    assert made["public"]["public_key"].startswith("ssh-ed25519 ")
    private = values_of(box, "deploy")["private_key"]
    assert private.splitlines()[1] not in json.dumps(box.ask("GET", "/v1/keys"))
    _, again = box.ask("POST", "/v1/keys", {"kind": "git-ssh", "name": "copy", "text": private})
    assert again["public"]["public_key"].split()[1] == made["public"]["public_key"].split()[1]


def test_removing_asks_first(box: Box) -> None:
    """What cannot be brought back goes with a yes only."""
    box.ask("POST", "/v1/keys", AWS)
    status, asked = box.ask("DELETE", "/v1/keys/work")
    assert (status, asked["details"]["asks"]) == (409, True)
    assert box.ask("DELETE", "/v1/keys/work?confirmed=1")[0] == 200
    assert box.ask("GET", "/v1/keys/work")[0] == 404


def test_an_unknown_name_that_may_be_a_secret_is_not_repeated(box: Box) -> None:
    """Who types the secret where the name belongs does not find it in a log of errors."""
    assert "'nothing'" in box.ask("GET", "/v1/keys/nothing")[1]["message"]
    assert box.ask("GET", f"/v1/keys/{'aB3' * 12}")[1]["message"] == "there is no such key"


def test_a_moved_blob_stays_locked(box: Box) -> None:
    """Sealed values are bound to their name: a row that takes another's is opened for nobody (X21)."""
    box.ask("POST", "/v1/keys", AWS)
    box.ask("POST", "/v1/keys", AWS | {"name": "other"})
    with closing(sqlite3.connect(box.paths.database)) as connection, connection:
        connection.execute(
            "UPDATE keys SET sealed = (SELECT sealed FROM keys WHERE name = 'work') WHERE name = 'other'"
        )
    status, refused = box.ask("POST", "/v1/keys/other", {"values": {"region": "eu"}})
    assert status == 503
    assert "belongs to another owner, kind or name" in refused["message"]
