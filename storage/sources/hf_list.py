"""Lists a repository of the Hugging Face Hub by its own library: a script, run in a process of its own.

The library reads tokens, endpoints and proxies from wherever it finds them; started with an empty environment and an
empty home it finds only what stands on its standard input. What it makes of an answer is bounded by its memory.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

MAX_MEMORY_BYTES = 256 << 20


def main() -> None:
    """Read what is asked for as JSON; print the commit, and each file as it is listed, or at last what went wrong.

    Every line is JSON of its own, and printed at once: a long listing is told apart from one that does not come.
    """
    with suppress(ValueError):  # where less is allowed already
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    asked = json.load(sys.stdin)
    try:
        # Only here: an extra, which may not be installed.
        import huggingface_hub
    except ImportError:
        _tell({"error": "package"})
        return
    try:
        for found in _found(asked, huggingface_hub):
            _tell(found)
    # Whatever goes wrong in there is the answer: the caller turns it into words.
    except Exception as error:
        _tell(_failure(error))


def _tell(found: Any) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _found(asked: dict[str, Any], hub: Any) -> Iterator[Any]:
    hub.set_client_factory(lambda: _client(asked["endpoint"]))
    api = hub.HfApi(endpoint=asked["endpoint"], token=asked["token"] or False, library_name="stoker")
    place = {"repo_id": asked["repository"], "repo_type": asked["kind"]}
    revision = asked["revision"] or "main"
    # Not all that it says of a repository: every file would be in it, too.
    commit = api.repo_info(**place, revision=revision, expand=["sha"], timeout=asked["timeout_s"]).sha
    yield commit
    path = asked["path"]
    if path and not path.endswith("/"):
        found = api.get_paths_info(**place, paths=[path], revision=commit)
    else:
        found = api.list_repo_tree(**place, path_in_repo=path.rstrip("/") or None, recursive=True, revision=commit)
    for each in found:
        if isinstance(each, hub.hf_api.RepoFile):
            yield [each.path, each.size, each.blob_id, each.lfs.sha256 if each.lfs else None]


def _client(endpoint: str) -> Any:
    """Return the library's client, which here asks nobody but the hub itself."""
    # As above; the library makes a new client after a broken connection, so that one alone cannot be changed.
    from huggingface_hub.utils._http import default_client_factory

    here = urlsplit(endpoint)

    def check(request: Any) -> None:
        there = urlsplit(str(request.url))
        if (there.scheme, there.netloc) != (here.scheme, here.netloc):
            raise PermissionError("the hub leads to another server")

    client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks.get("request", []), check]}
    return client


def _failure(error: Exception) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return {
        "error": type(error).__name__,
        "status": getattr(response, "status_code", None),
        "said": getattr(error, "server_message", None) or "",
        "retry_after": response.headers.get("retry-after") if response is not None else None,
    }


if __name__ == "__main__":
    main()
