"""Reads what a user typed as a source into one value; pure: a bad address is refused before anything is opened."""

from __future__ import annotations

import difflib
import os.path
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePath
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from storage.errors import BadUri

SCHEMES = ("file", "http", "https", "s3")
MAX_CHARACTERS = 4096

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BYTES = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python writes them
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SECRET_QUERY = re.compile(r"sig|token|key|secret|password|credential|auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Uri:
    """One source: `text` is the whole address and may hold a password; `shown` never does.

    `path` is what the scheme's source reads: an absolute path, a URL path, or `bucket/key`. `is_tree` is true when
    the text ended in `/`. `name` is a safe file name for a source that is one file.
    """

    scheme: str
    text: str = field(repr=False)
    shown: str
    path: str = field(repr=False)
    is_tree: bool
    name: str


def parse(text: str, cwd: PurePath) -> Uri:
    """Return the source that `text` names, a relative path being relative to `cwd`; raise `BadUri`."""
    if not text.strip():
        raise BadUri("the source is empty", "give a path or a URI such as s3://bucket/key")
    if len(text) > MAX_CHARACTERS:
        raise BadUri(f"the source is {len(text)} characters long, more than {MAX_CHARACTERS}")
    if any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in text):
        raise BadUri("the source holds a control character", "check for a stray newline or escape sequence")
    found = _SCHEME.match(text)
    if found is None:
        return _local(text, cwd)
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        raise BadUri(
            f"unknown scheme {scheme}://",
            f"did you mean {near[0]}://?" if near else f"known: {', '.join(f'{name}://' for name in SCHEMES)}",
        )
    if scheme == "s3":
        return _s3(text[len(found[0]) :])
    return _file(text) if scheme == "file" else _http(scheme, text)


def _local(text: str, cwd: PurePath) -> Uri:
    path = os.path.join(str(cwd), text)
    if not os.path.isabs(path):
        raise BadUri(f"{text} is relative and the working directory is not absolute")
    return _at(path, is_tree=text.endswith("/"))


def _file(text: str) -> Uri:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise BadUri("not a valid file:// address", "write file:///absolute/path") from None
    if parts.netloc not in {"", "localhost"}:
        raise BadUri("a file:// source cannot name a host", "write file:///absolute/path")
    path = unquote(parts.path, errors="surrogateescape")
    if not path.startswith("/") or any(unicodedata.category(character) == "Cc" for character in path):
        raise BadUri("a file:// source needs an absolute path without control characters")
    return _at(path, is_tree=path.endswith("/"))


def _at(path: str, *, is_tree: bool) -> Uri:
    """Return the source at a path; one that is not all text is written as a file:// address, which is."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise BadUri("the source holds text that no path can") from None
    text = "file://" + quote(raw) if _BYTES.search(path) else path
    if len(text) > MAX_CHARACTERS:
        raise BadUri(f"the source is {len(text)} characters long, more than {MAX_CHARACTERS}")
    return Uri("file", text, text, path, is_tree=is_tree, name=_name(os.path.normpath(path)))


def _http(scheme: str, text: str) -> Uri:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadUri(f"not a valid {scheme}:// address") from None
    if not host or any(character.isspace() for character in text):
        raise BadUri(f"the {scheme}:// address names no host, or holds a space", "write spaces as %20")
    shown_host = f"[{host}]" if ":" in host else host
    user = f"{parts.username}:***@" if parts.password is not None else (f"{parts.username}@" if parts.username else "")
    netloc = f"{user}{shown_host}" + (f":{port}" if port is not None else "")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(key, "***" if _SECRET_QUERY.search(key) else value) for key, value in pairs], safe="*/")
    path = parts.path or "/"
    sent = urlunsplit((scheme, parts.netloc, quote(path, safe="/%:@!$&'()*+,;=~-._"), parts.query, ""))
    shown = urlunsplit((scheme, netloc, path, query, ""))
    name = _name(unquote(path)) if path.strip("/") else _name(host)
    return Uri(scheme, sent, shown, path, is_tree=path.endswith("/") and not parts.query, name=name)


def _s3(rest: str) -> Uri:
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise BadUri("an s3:// source cannot hold credentials", "put them in ~/.aws/credentials")
    if not _BUCKET.fullmatch(bucket):
        raise BadUri("the s3:// source names no valid bucket", "write s3://bucket/key, or s3://bucket/ for all of it")
    if not key and not rest.endswith("/"):
        raise BadUri(f"s3://{bucket} names a bucket only", f"write s3://{bucket}/ for all of it")
    text = f"s3://{bucket}/{key}"
    return Uri("s3", text, text, f"{bucket}/{key}", is_tree=text.endswith("/"), name=_name(key or bucket))


def _name(path: str) -> str:
    """Return the last part of a path as a name that any tree may hold."""
    last = path.rstrip("/").rpartition("/")[2].replace("\0", "").replace("/", "_")
    while len(last.encode("utf-8", "surrogateescape")) > 255:
        last = last[1:]
    return "data" if last in {"", ".", ".."} else last
