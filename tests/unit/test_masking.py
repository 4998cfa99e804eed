"""Known secrets never come out of a log, however it is cut."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.telemetry.masking import FORM_MAX_BYTES, NO_MASK, mask_for

SECRET = "s3cr3t/with+odd=chars"


@pytest.mark.parametrize(
    "shown",
    [
        SECRET.encode(),
        quote(SECRET, safe="").encode(),
        quote(SECRET, safe="").lower().encode(),
        base64.b64encode(SECRET.encode()),
        base64.urlsafe_b64encode(SECRET.encode()),
    ],
)
def test_a_secret_is_blanked_in_every_form(shown: bytes) -> None:
    """The value, its base64 and its URL forms are replaced by as many asterisks; the rest stays."""
    masked = mask_for([SECRET]).apply(b"a " + shown + b" b")
    assert masked[:2] + masked[-2:] == b"a  b"
    assert len(masked) == len(shown) + 4
    assert shown[2:-6] not in masked


@pytest.mark.parametrize("prefix", [b"", b"u", b"us", b"use", b"user"])
def test_a_secret_inside_a_longer_base64_text_is_blanked(prefix: bytes) -> None:
    """Basic credentials: whatever stands before the secret shifts its base64 form, and all three shifts are known."""
    encoded = base64.b64encode(prefix + b":" + SECRET.encode() + b":tail")
    masked = mask_for([SECRET]).apply(encoded)
    assert masked.count(b"*") >= len(SECRET) * 4 // 3 - 2
    assert SECRET[2:-2].encode() not in base64.b64decode(masked.replace(b"*", b"A"))


def test_short_values_and_no_values_hide_nothing() -> None:
    """A value under 8 bytes would blank ordinary words: it is left alone, and so is everything without secrets."""
    assert mask_for(["short", ""]) == NO_MASK
    data = b"short" * 100
    assert NO_MASK.apply(data) is data
    assert NO_MASK.held(data) == 0


def test_each_line_of_a_key_is_a_secret() -> None:
    """A private key that is printed line by line, or on one line with escapes, is hidden."""
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nBAQEFAASCBKcwggSjAgEAAo\n-----END KEY-----\n"
    mask = mask_for([key])
    for shown in (b"MIIEvQIBADANBgkqhkiG9w0", key.strip().replace("\n", "\\n").encode()):
        assert set(mask.apply(shown)) == {ord("*")}


def test_overlapping_secrets_are_both_hidden() -> None:
    """Where one secret begins inside another, no part of either is left."""
    assert mask_for(["abcdefgh", "efghijkl"]).apply(b"-abcdefghijkl-") == b"-" + b"*" * 12 + b"-"


def test_a_very_long_secret_is_hidden_in_pieces() -> None:
    """A secret longer than a window may look ahead is still hidden whole."""
    secret = "".join(f"{number:06d}" for number in range(2000))
    mask = mask_for([secret])
    assert mask.margin < FORM_MAX_BYTES
    assert set(mask.apply(secret.encode())) == {ord("*")}


@given(st.binary(max_size=60), st.binary(max_size=60), st.data())
def test_a_stream_cut_anywhere_is_masked_like_the_whole(before: bytes, after: bytes, data: st.DataObject) -> None:
    """What is sent of a log that grows piece by piece is what one look at all of it would show (X24)."""
    mask = mask_for([SECRET, "aaaaaaaaab"])
    whole = before + SECRET.encode() + b"aaaaaaaaaaaab" + after
    expected = mask.apply(whole)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=12)) | {len(whole)})
    sent = b""
    for cut in cuts:
        begin = max(0, len(sent) - mask.margin)
        window = whole[begin:cut]
        end = cut if cut == len(whole) else cut - mask.held(window)
        if end > len(sent):
            sent += mask.apply(window)[len(sent) - begin : end - begin]
        assert expected.startswith(sent)
    assert sent == expected
