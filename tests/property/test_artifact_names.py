"""Names of artifacts under any history of creating, renaming and removing: a version is given once, for ever."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.state import artifacts
from runner.state.engine import migrations

NAMES = st.sampled_from(["a", "b", "c"])
ACTS = st.lists(
    st.tuples(st.just("add"), NAMES, NAMES) | st.tuples(st.sampled_from(["rename", "remove"]), NAMES, NAMES),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(ACTS)
def test_no_version_of_a_name_is_ever_two_artifacts(acts: list[tuple[str, str, str]]) -> None:
    """Whoever wrote NAME@V down is given that artifact or none; the latest is the newest that is left."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for _, sql in migrations():
            connection.executescript(sql)
        meant: dict[tuple[str, int], int] = {}
        for now_us, (act, name, other) in enumerate(acts):
            found = artifacts.find(connection, 7, "model", name)
            if act == "add":
                artifacts.add(connection, owner_uid=7, account="eve", kind="model", name=name, now_us=now_us)
            elif found is not None and act == "remove":
                artifacts.remove(connection, found.id, now_us)
            elif found is not None:
                artifacts.rename(connection, found, other)
            left = artifacts.listing(connection, 7, "model")
            for each in left:
                assert meant.setdefault((each.name, each.version), each.id) == each.id
            for each in {each.name: each for each in reversed(left)}.values():
                newest = artifacts.find(connection, 7, "model", each.name)
                assert newest is not None
                assert newest.version == max(one.version for one in left if one.name == each.name)
