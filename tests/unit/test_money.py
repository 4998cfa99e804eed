"""Credits in and out: decimal text to integers and back, and nothing else in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.errors import UsageError
from runner.core.money import CREDITS_MAX, MICRO, format_credits, parse_credits


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("0", 0),
        ("1.5", 1_500_000),
        ("0.000001", 1),
        ("9.999999", 9_999_999),
        ("007", 7_000_000),
        ("1e3", 1_000_000_000),
        ("2.5E-1", 250_000),
        ("1000000000", CREDITS_MAX * MICRO),
        ("1e9", CREDITS_MAX * MICRO),
    ],
)
def test_an_amount_becomes_exact_micro_credits(text: str, micro: int) -> None:
    """Decimal text is taken exactly, up to the bound and down to one micro-credit."""
    assert parse_credits(text) == micro


@pytest.mark.parametrize(
    "text",
    [
        "", " 1", "1 ", "1\n", "+1", "-1", "-0", "NaN", "nan", "Infinity", "inf", "sNaN", "1_0", "1,5", ".5", "1.",
        "１２", "١", "1e", "1e999999999", "1e30", "1e10", "1000000000.000001", "0.0000001", "0.123456789", "1e-7",
        "0x10", "1.5.5", "9" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    """No sign, no float words, no Unicode digits, no underscores, nothing out of bounds: `UsageError` (X29)."""
    with pytest.raises(UsageError) as caught:
        parse_credits(text)
    assert caught.value.hint
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (-1, "-0.000001"),
        (9_500_000, "9.5"),
        (-39_500_000, "-39.5"),
        (10_000_000, "10"),
        (10**24, "1000000000000000000"),
    ],
)
def test_an_amount_is_shown_exactly(micro: int, text: str) -> None:
    """Shown amounts carry every digit and no needless zero."""
    assert format_credits(micro) == text


@given(st.integers(0, CREDITS_MAX * MICRO))
def test_what_is_shown_can_be_typed_again(micro: int) -> None:
    """Parsing undoes formatting for every amount in bounds."""
    assert parse_credits(format_credits(micro)) == micro
