"""Lists a repository of the Hugging Face Hub by its own library: a script, run in a process of its own.

The library reads tokens, endpoints and proxies from wherever it finds them; started with an empty environment and an
empty home it finds only what stands on its standard input.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit


def main() -> None:
    """Read what is asked for as JSON and print what was found, or what went wrong, as JSON."""
    asked = json.load(sys.stdin)
    try:
        # Only here: an extra, which may not be installed.
        import huggingface_hub
    except ImportError:
        json.dump({"error": "package"}, sys.stdout)
        return
    try:
        found = _found(asked, huggingface_hub)
    # Whatever goes wrong in there is the answer: the caller turns it into words.
    except Exception as error:
        found = _failure(error)
    json.dump(found, sys.stdout)


def _found(asked: dict[str, Any], hub: Any) -> dict[str, Any]:
    hub.set_client_factory(lambda: _client(asked["endpoint"]))
    api = hub.HfApi(endpoint=asked["endpoint"], token=asked["token"] or False, library_name="stoker")
    place = {"repo_id": asked["repository"], "repo_type": asked["kind"]}
    commit = api.repo_info(**place, revision=asked["revision"] or "main", timeout=asked["timeout_s"]).sha
    path = asked["path"]
    if path and not path.endswith("/"):
        found = api.get_paths_info(**place, paths=[path], revision=commit)
    else:
        found = api.list_repo_tree(**place, path_in_repo=path.rstrip("/") or None, recursive=True, revision=commit)
    files = [
        [each.path, each.size, each.blob_id, each.lfs.sha256 if each.lfs else None]
        for each in found
        if isinstance(each, hub.hf_api.RepoFile)
    ]
    return {"commit": commit, "files": files}


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
