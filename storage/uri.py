"""Reads what a user typed as a source into one value; pure: a bad address is refused before anything is opened."""

from __future__ import annotations

import difflib
import os.path
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from storage.address import Form, Given, Uri, file_name, has_control, shown_netloc, shown_query, split
from storage.errors import BadUri
from storage.hubs import GIT_SCHEMES, claims_git, of_type, read_git, read_hf, read_kaggle

__all__ = ["EXTRAS", "FORMS", "MAX_CHARACTERS", "OTHERS", "WITH_ENDPOINT", "Uri", "check_endpoint", "of_type", "parse"]

MAX_CHARACTERS = 4096
# Kinds whose addresses do not say which server is asked.
WITH_ENDPOINT = ("aws", "wasabi", "gcp", "azure", "hf", "kaggle")
# What fsspec opens beyond the sources of our own, with the package that each needs. Left out on purpose: whatever
# reads this machine, wraps another address, or runs code.
OTHERS: Mapping[str, str] = {
    "box": "boxfs",
    "dbfs": "requests",
    "dropbox": "dropboxdrivefs",
    "gdrive": "gdrive-fsspec",
    "gist": "requests",
    "github": "requests",
    "hdfs": "pyarrow",
    "jupyter": "requests",
    "lakefs": "lakefs-spec",
    "oci": "ocifs",
    "ocilake": "ocifs",
    "oss": "ossfs",
    "root": "fsspec-xrootd",
    "sftp": "paramiko",
    "smb": "smbprotocol",
    "ssh": "paramiko",
    "tos": "tosfs",
    "wandb": "wandbfs",
    "webdav": "webdav4",
    "webhdfs": "requests",
}

# Schemes whose package an extra of ours brings.
EXTRAS = frozenset({"sftp"})

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::")
_BYTES = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python writes them
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}|\$root|\$web|\$logs")
_AZURE_HOST = re.compile(
    r"([a-z0-9]{3,24})\.((?:z[0-9]{1,3}\.)?)(?:blob|dfs)\."
    r"(core\.windows\.net|core\.usgovcloudapi\.net|core\.chinacloudapi\.cn|storage\.azure\.net)"
)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def parse(text: str, cwd: PurePath, kind: str | None = None, env: Mapping[str, str] | None = None) -> Uri:
    """Return the source that `text` names, a relative path being relative to `cwd`; raise `BadUri`.

    `kind` is what the user says it is, where the address alone would say another, or nothing. `env` has what `~/` and
    `$NAME` of a local path stand for.
    """
    if not text.strip():
        raise BadUri("the source is empty", "give a path or a URI such as s3://bucket/key")
    if len(text) > MAX_CHARACTERS:
        raise BadUri(f"the source is {len(text)} characters long, more than {MAX_CHARACTERS}")
    if has_control(text):
        raise BadUri("the source holds a control character", "check for a stray newline or escape sequence")
    if _CHAIN.match(text):
        raise BadUri("chained addresses are not opened", "give the innermost address; an archive is extracted anyway")
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    given = Given(scheme, text, text[len(found[0]) :] if found else text, cwd, env or {})
    form = _by_scheme(given) if kind is None else _by_kind(given, kind)
    return replace(form.read(given), kind=form.kind)


def check_endpoint(uri: Uri, endpoint: str | None) -> None:
    """Raise `BadUri` where an endpoint is stated for a source that is always at the same place."""
    if endpoint is not None and uri.kind not in WITH_ENDPOINT:
        raise BadUri(f"a source from {uri.kind} has no endpoint", f"endpoint= goes with {', '.join(WITH_ENDPOINT)}")


def _by_scheme(given: Given) -> Form:
    for form in FORMS:
        if given.scheme in form.schemes and form.claims(given):
            return form
    known = list(dict.fromkeys(scheme for form in FORMS for scheme in form.schemes if scheme))
    near = difflib.get_close_matches(given.scheme, known, n=1)
    common = [scheme for scheme in known if scheme not in OTHERS]
    raise BadUri(
        f"unknown scheme {given.scheme}://",
        f"did you mean {near[0]}://?{_with(near[0])}" if near else f"known: {', '.join(common)}, {', '.join(OTHERS)}",
    )


def _by_kind(given: Given, kind: str) -> Form:
    forms = [form for form in FORMS if form.kind == kind]
    if not forms:
        kinds = list(dict.fromkeys(form.kind for form in FORMS))
        near = difflib.get_close_matches(kind, kinds, n=1)
        common = ", ".join(each for each in kinds if each not in OTHERS)
        raise BadUri(
            f"unknown kind of source {kind[:40]!r}",
            f"did you mean {near[0]}?" if near else f"known: {common}, and the schemes that fsspec opens",
        )
    for form in forms:
        if given.scheme in form.schemes:
            return form
    prefixes = [f"{scheme}://" for form in forms for scheme in form.schemes if scheme]
    raise BadUri(
        f"a source from {kind} begins with {' or '.join(prefixes) or 'no scheme'}",
        f"write {forms[0].example}, or leave from={kind} out",
    )


def _with(scheme: str) -> str:
    return f" It needs the package {OTHERS[scheme]}." if scheme in OTHERS else ""


def _local(given: Given) -> Uri:
    text = given.text
    path = os.path.join(str(given.cwd), text)
    if not os.path.isabs(path):
        raise BadUri(f"{text} is relative and the working directory is not absolute")
    return _at(path, is_tree=text.endswith("/"))


def _stated_local(given: Given) -> Uri:
    """Read a path that was said to be local: from the root, the home directory or a variable, never from here."""
    text = given.text
    if text.startswith("~/"):
        text = "$HOME" + text[1:]

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in given.env:
            raise BadUri(f"{name} is not set in your environment", "write the path itself")
        return given.env[name]

    if text.startswith("$"):
        text = _VARIABLE.sub(value, text)
    if not text.startswith("/") or has_control(text):
        raise BadUri("a source from local begins with /, ~/ or $", "write the absolute path, or leave from=local out")
    return _at(text, is_tree=text.endswith("/"))


def _file(given: Given) -> Uri:
    try:
        parts = urlsplit(given.text)
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
    return Uri("file", text, text, path, is_tree=is_tree, name=file_name(os.path.normpath(path)))


def _web(given: Given) -> Uri:
    parts = split(given)
    path = parts.path or "/"
    sent = urlunsplit((given.scheme, parts.netloc, quote(path, safe="/%:@!$&'()*+,;=~-._"), parts.query, ""))
    shown = urlunsplit((given.scheme, shown_netloc(parts), path, shown_query(parts.query), ""))
    name = file_name(unquote(path)) if path.strip("/") else file_name(parts.hostname or "")
    return Uri(given.scheme, sent, shown, path, is_tree=path.endswith("/") and not parts.query, name=name)


def _ftp(given: Given) -> Uri:
    parts = split(given)
    # An FTP path is a word of a command line: what cannot be part of one never reaches the server.
    path = unquote(parts.path, errors="surrogateescape") or "/"
    if has_control(path) or has_control(unquote(parts.netloc)):
        raise BadUri(f"the {given.scheme}:// address holds a control character")
    if parts.query or parts.fragment:
        raise BadUri(f"a {given.scheme}:// address has no query", "write ? as %3F and # as %23")
    text = urlunsplit((given.scheme, parts.netloc, parts.path or "/", "", ""))
    shown = urlunsplit((given.scheme, shown_netloc(parts), parts.path or "/", "", ""))
    name = file_name(path) if path.strip("/") else file_name(parts.hostname or "")
    return Uri(given.scheme, text, shown, path, is_tree=path.endswith("/"), name=name)


def _object(given: Given) -> Uri:
    """Read `scheme://bucket/key` of S3 and Google, where a key is taken as it stands."""
    scheme = "gs" if given.scheme == "gcs" else given.scheme
    bucket, _, key = given.rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise BadUri(f"an {scheme}:// source cannot hold credentials", "`stoker key add` keeps them for you")
    if not _BUCKET.fullmatch(bucket):
        raise BadUri(
            f"the {scheme}:// source names no valid bucket", f"write {scheme}://bucket/key, or {scheme}://bucket/"
        )
    return _in(scheme, f"{scheme}://{bucket}/{key}", bucket, given.rest)


def _azure(given: Given) -> Uri:
    """Read `az://container/key`, and with the account `abfs://container@account.dfs.core.windows.net/key`."""
    place, _, key = given.rest.partition("/")
    container, at, host = place.partition("@")
    found = _AZURE_HOST.fullmatch(host.lower())
    if at and not found:
        raise BadUri(
            f"an {given.scheme}:// source names its account after the @",
            "write abfs://container@account.dfs.core.windows.net/path, or az://container/path with a key",
        )
    _check_container(container)
    text = f"{given.scheme}://{container}{'@' + found[0] if found else ''}/{key}"
    uri = _in("az", text, container, f"{container}/{key}" if "/" in given.rest else container)
    return replace(uri, endpoint=_azure_endpoint(found) if found else None)


def _azure_link(given: Given) -> Uri:
    """Read a link to the blob service, with or without a shared access signature."""
    parts = split(given)
    if parts.username is not None:
        raise BadUri("an Azure link cannot hold credentials", "`stoker key add azure` keeps them for you")
    container, slash, key = unquote(parts.path.removeprefix("/")).partition("/")
    if has_control(key):
        raise BadUri("the source holds a control character", "check for a stray %0A")
    _check_container(container)
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    text = urlunsplit(("https", parts.netloc.lower(), path, parts.query, ""))
    uri = _in("az", text, container, container + slash + key)
    shown = urlunsplit(("https", parts.netloc.lower(), path, shown_query(parts.query), ""))
    found = _AZURE_HOST.fullmatch(parts.netloc.lower())
    endpoint = _azure_endpoint(found) if found else f"https://{parts.netloc.lower()}"
    return replace(uri, shown=shown, endpoint=endpoint)


def _is_azure(given: Given) -> bool:
    return _AZURE_HOST.fullmatch(given.rest.partition("/")[0].rpartition("@")[2].lower()) is not None


def _azure_endpoint(host: re.Match[str]) -> str:
    return f"https://{host[1]}.{host[2]}blob.{host[3]}"


def _check_container(container: str) -> None:
    if not _CONTAINER.fullmatch(container):
        raise BadUri(
            "the source names no valid Azure container",
            "write az://container/path; a container has 3 to 63 small letters, digits and single dashes",
        )


def _in(scheme: str, text: str, bucket: str, rest: str) -> Uri:
    """Return the source `bucket/key`, where `rest` has the slash between them only if it was given."""
    key = rest.partition("/")[2]
    if not key and "/" not in rest:
        raise BadUri(f"{bucket} is all that is named", "add a trailing / for all of it, or the path of one file")
    return Uri(
        scheme, text, text, f"{bucket}/{key}", is_tree=not key or key.endswith("/"), name=file_name(key or bucket)
    )


def _other(given: Given) -> Uri:
    """Read an address that fsspec alone understands; all we need is what must not be shown."""
    if "::" in given.rest:
        raise BadUri("chained addresses are not opened", "give the innermost address; an archive is extracted anyway")
    text = f"{given.scheme}://{given.rest}"
    place, slash, path = given.rest.partition("/")
    user, at, host = place.rpartition("@")
    name, colon, _ = user.partition(":")
    path, mark, query = path.partition("?")
    if given.scheme != "github":  # there ORG:REPOSITORY@COMMIT, elsewhere USER:PASSWORD@HOST
        user = name + (":***" if colon else "")
    shown = f"{given.scheme}://{user}{at}{host}{slash}{path}{mark}{shown_query(query)}"
    if not given.rest.strip("/"):
        raise BadUri(f"the {given.scheme}:// address names nothing", f"write {given.scheme}://host/path")
    return Uri(given.scheme, text, shown, given.rest, is_tree=given.rest.endswith("/"), name=file_name(path or host))


# Asked in this order where the user says no kind, so that a special form stands before the general one.
FORMS: tuple[Form, ...] = (
    Form("git", GIT_SCHEMES, "https://host/path.git@REF", read_git, claims_git),
    Form("hf", ("hf", ""), "hf://owner/model@revision/path", read_hf, lambda given: given.scheme == "hf"),
    Form("kaggle", ("kaggle", ""), "kaggle://datasets/owner/name", read_kaggle, lambda given: given.scheme == "kaggle"),
    Form("aws", ("s3",), "s3://bucket/key", _object),
    Form("wasabi", ("s3",), "s3://bucket/key", _object),
    Form("gcp", ("gs", "gcs"), "gs://bucket/key", _object),
    Form("azure", ("az", "abfs", "abfss", "wasb", "wasbs"), "az://container/path", _azure),
    Form("azure", ("https",), "https://account.blob.core.windows.net/container/path", _azure_link, _is_azure),
    Form("web", ("http", "https"), "https://host/path", _web),
    Form("ftp", ("ftp", "ftps"), "ftp://host/path", _ftp),
    Form("web", ("ftp", "ftps"), "ftp://host/path", _ftp),
    Form("local", ("",), "/absolute/path", _stated_local, lambda _: False),
    Form("local", ("",), "/absolute/path", _local),
    Form("local", ("file",), "file:///absolute/path", _file),
    *(Form(scheme, (scheme,), f"{scheme}://host/path", _other) for scheme in OTHERS),
)
