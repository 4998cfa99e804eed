"""Third-party credentials: what is read, what is refused, and that no refusal repeats what was given."""

from __future__ import annotations

import json
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.verbs import KEY_KINDS
from storage import credentials
from storage.credentials import KINDS, VALUES_BYTES_MAX, Credential, check, kind_for, public, read, secrets
from storage.errors import BadCredential
from storage.uri import parse

CANARY = "wJalrXUtnFEMIcanary7f3a9c"
ACCOUNT = {
    "type": "service_account",
    "project_id": "lab",
    "private_key_id": "0123456789abcdef",
    "private_key": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n",
    "client_email": "runner@lab.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}
WHOLE = {
    "aws": {"access_key_id": "AKIAEXAMPLE", "secret_access_key": CANARY},
    "wasabi": {"access_key_id": "WASABIEXAMPLE", "secret_access_key": CANARY},
    "gcp": {"service_account_json": json.dumps(ACCOUNT)},
    "azure": {"account_name": "lab", "sas_token": f"sv=2024&sig={CANARY}"},
    "git-ssh": {"private_key": CANARY},
    "kaggle": {"username": "eve", "key": CANARY},
    "hf": {"token": CANARY},
    "registry": {"server": "registry.example", "username": "eve", "password": CANARY},
}


def test_the_command_line_knows_the_kinds() -> None:
    """What completion offers is what there is."""
    assert set(KEY_KINDS) == set(KINDS) == set(WHOLE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_holds_no_secret(kind: str) -> None:
    """Neither what may be shown nor the value's own text has a secret in it; what is masked has every one."""
    credential = check(kind, WHOLE[kind])
    assert CANARY not in json.dumps(public(credential))
    assert CANARY not in repr(credential)
    assert any(CANARY in secret for secret in secrets(credential))


@pytest.mark.parametrize(
    ("kind", "text", "values"),
    [
        ("aws", "export AWS_ACCESS_KEY_ID=a\nAWS_REGION=b=c\n", {"access_key_id": "a", "region": "b=c"}),
        ("wasabi", "[default]\naws_access_key_id = a\n# mine\n\nregion = b\n", {"access_key_id": "a", "region": "b"}),
        ("kaggle", '{"username": "eve", "key": "b"}', {"username": "eve", "key": "b"}),
        ("hf", "hf_abc\n", {"token": "hf_abc"}),
        ("git-ssh", "-----BEGIN X\nA\n", {"private_key": "-----BEGIN X\nA\n"}),
        ("gcp", '{"type": "x"}', {"service_account_json": '{"type": "x"}'}),
    ],
)  # fmt: skip
def test_files_are_read_as_their_providers_write_them(kind: str, text: str, values: dict[str, str]) -> None:
    """A user hands over the file that they have."""
    assert read(kind, text) == values


@pytest.mark.parametrize(
    ("kind", "text", "message", "hint"),
    [
        ("aws", f"access_key_id=a\n{CANARY}", "line 2 is not NAME=VALUE", "aws keys have"),
        ("aws", f"{CANARY}=b", "line 1 names a part that aws keys do not have", "aws keys have"),
        ("aws", f"secret_acess_key={CANARY}", "line 1 names a part", "did you mean secret_access_key?"),
        ("aws", f"access_key_id=a\naccess_key_id={CANARY}", "line 2 gives access_key_id again", ""),
        ("aws", f'{{"access_key_id": ["{CANARY}"]}}', "a value is no text", ""),
        ("aws", f'{{"access_key_id": "{CANARY}"', "that is not one JSON object", ""),
        ("aws", f'{{"region": "{CANARY}", "region": "b"}}', "a name is given twice", ""),
        ("aws", CANARY * 4000, "more than the 64 KiB", ""),
        ("awz", CANARY, "that is no kind of key", "did you mean aws?"),
        (CANARY, CANARY, "that is no kind of key", "kinds: aws"),
    ],
)
def test_a_refusal_repeats_nothing(kind: str, text: str, message: str, hint: str) -> None:
    """Where the text is wrong the error says the line and the nearest part, never what was typed."""
    with pytest.raises(BadCredential) as caught:
        read(kind, text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert CANARY not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("aws", {"access_key_id": "a"}, "secret_access_key is missing"),
        ("aws", {"access_key_id": "a", "secret_access_key": " "}, "secret_access_key is missing"),
        ("aws", {"access_key_id": "a\nb", "secret_access_key": CANARY}, "access_key_id holds a character"),
        ("aws", WHOLE["aws"] | {"endpoint": "host:9000"}, "endpoint is no URL"),
        ("aws", WHOLE["aws"] | {"endpoint": "http://[::1"}, "endpoint is no URL"),
        ("azure", WHOLE["azure"] | {"endpoint": "https://:443"}, "endpoint is no URL"),
        ("gcp", {"service_account_json": json.dumps(ACCOUNT | {"token_uri": "http://h:99999"})}, "token_uri is no URL"),
        ("registry", WHOLE["registry"] | {"server": "httpx://h"}, "server is no host"),
        ("registry", WHOLE["registry"] | {"server": "a host"}, "server is no host"),
        ("registry", WHOLE["registry"] | {"server": "[::1"}, "server is no host"),
        ("azure", {"account_name": "lab"}, "account_key or sas_token is missing"),
        ("gcp", {"service_account_json": CANARY}, "not the JSON key file"),
        ("gcp", {"service_account_json": '{"type": "authorized_user"}'}, "not the key file of a service account"),
        ("gcp", {"service_account_json": '{"type": "service_account"}'}, "lacks client_email"),
        ("registry", WHOLE["registry"] | {"password": CANARY + "x" * VALUES_BYTES_MAX}, "more than the 64 KiB"),
        ("hf", {"token": "a\ud800"}, "token holds a character"),
    ],
)
def test_values_must_be_whole(kind: str, values: dict[str, str], message: str) -> None:
    """A key that could not work is refused when it is given, by the part that is wrong."""
    with pytest.raises(BadCredential) as caught:
        check(kind, values)
    assert message in caught.value.message
    assert CANARY not in caught.value.message + caught.value.hint


@given(st.text(max_size=200), st.sampled_from(sorted(KINDS)))
def test_any_text_is_read_or_refused(text: str, kind: str) -> None:
    """Nothing but the one error comes out of hostile text."""
    try:
        check(kind, read(kind, text))
    except BadCredential:
        return


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("s3://bucket/key", "aws"),
        ("gs://bucket/key", "gcp"),
        ("az://container/key", "azure"),
        ("https://lab.blob.core.windows.net/container/key", "azure"),
        ("https://host/path", None),
        ("/data/set", None),
    ],
)
def test_an_address_asks_for_a_kind(address: str, kind: str | None) -> None:
    """What a source is decides which keys open it."""
    assert kind_for(parse(address, PurePath("/"))) == kind


def test_keys_of_s3_stand_for_each_other() -> None:
    """A Wasabi key opens an s3:// address when it is named, a Kaggle key does not."""
    assert credentials.fits("wasabi", "aws")
    assert not credentials.fits("kaggle", "aws")


def test_a_credential_says_nothing_of_its_values() -> None:
    """Its text form is safe to log."""
    assert repr(Credential("hf", {"token": CANARY})) == "Credential(kind='hf')"
