"""The format of an entry's hash, which every release must be able to check again."""

from __future__ import annotations

import hashlib

import pytest

from runner.ledger.chain import GENESIS, entry_hash


def test_the_format_never_changes() -> None:
    """The hash is SHA-256 over the hash before and the fields as compact ASCII JSON, led by the format's number."""
    first = entry_hash(GENESIS, (1, "k", None, "für"))
    assert first == hashlib.sha256(bytes(32) + b'[1,1,"k",null,"f\\u00fcr"]').digest()
    assert entry_hash(first, (2,)) == hashlib.sha256(first + b"[1,2]").digest()


def test_fields_do_not_run_into_each_other() -> None:
    """Neither moving a character over a border nor changing a type keeps the hash."""
    rows: list[tuple[int | str | None, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (None,)]
    hashes = [entry_hash(GENESIS, fields) for fields in rows]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("value", [b"bytes", float("nan")])
def test_what_is_no_plain_value_has_no_hash(value: object) -> None:
    """Bytes and numbers that are none never enter the chain."""
    with pytest.raises((TypeError, ValueError)):
        entry_hash(GENESIS, (value,))  # type: ignore[arg-type]
