"""Credentials as the files that each provider's own library looks for, and the variables that point there; pure.

No variable holds a value: an environment is read by more programs, and printed by more, than a file.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping

from storage.credentials import Credential
from storage.filesystems import wasabi_endpoint

# Where the files are, for what no library looks for by itself.
DIRECTORY = "STOKER_KEYS_DIR"


def files_of(keys: Mapping[str, Credential], directory: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return (content by path below `directory`, variables) for keys by name; of a kind, the first is the default."""
    files: dict[str, str] = {}
    variables = {DIRECTORY: directory} if keys else {}
    s3 = _of(keys, "aws", "wasabi")
    if s3:
        files |= {"aws/credentials": _profiles(s3, _s3_secrets), "aws/config": _profiles(s3, _s3_settings)}
        variables |= {
            "AWS_SHARED_CREDENTIALS_FILE": f"{directory}/aws/credentials",
            "AWS_CONFIG_FILE": f"{directory}/aws/config",
            "AWS_PROFILE": "default",  # not the one of the shell that submitted
        }
    for name, credential in _of(keys, "gcp").items():
        files[f"gcp/{name}.json"] = credential.values["service_account_json"]
        variables.setdefault("GOOGLE_APPLICATION_CREDENTIALS", f"{directory}/gcp/{name}.json")
    for name, credential in _of(keys, "azure").items():
        # Azure's libraries read no file: this one is for a shell's `.`, or for python-dotenv.
        files[f"azure/{name}.env"] = _azure(credential)
        variables.setdefault("STOKER_AZURE_ENV_FILE", f"{directory}/azure/{name}.env")
    for name, credential in _of(keys, "kaggle").items():
        files[f"kaggle/{name}/kaggle.json"] = json.dumps(dict(credential.values))
        variables.setdefault("KAGGLE_CONFIG_DIR", f"{directory}/kaggle/{name}")
    for name, credential in _of(keys, "hf").items():
        files[f"hf/{name}"] = credential.values["token"]
        variables.setdefault("HF_TOKEN_PATH", f"{directory}/hf/{name}")
    registries = _of(keys, "registry")
    if registries:
        files["docker/config.json"] = json.dumps({"auths": dict(map(_auth, registries.values()))})
        variables["DOCKER_CONFIG"] = f"{directory}/docker"
    ssh = _of(keys, "git-ssh")
    if ssh:
        files |= {f"ssh/{name}": credential.values["private_key"] for name, credential in ssh.items()}
        trusted = [each.values["known_hosts"] for each in ssh.values() if "known_hosts" in each.values]
        if trusted:
            files["ssh/known_hosts"] = "".join(trusted)
        variables["GIT_SSH_COMMAND"] = _ssh(list(ssh), f"{directory}/ssh", trusts=bool(trusted))
    return files, variables


def _of(keys: Mapping[str, Credential], *kinds: str) -> dict[str, Credential]:
    return {name: credential for name, credential in keys.items() if credential.kind in kinds}


def _profiles(keys: Mapping[str, Credential], values: object) -> str:
    """Return an INI file with a profile a key, the first of them as `default` too."""
    assert callable(values)
    first = next(iter(keys.values()))
    in_config = values is _s3_settings
    sections = {"default": first, **{f"profile {name}" if in_config else name: each for name, each in keys.items()}}
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values(credential).items()) + "\n"
        for name, credential in sections.items()
    )


def _s3_secrets(credential: Credential) -> dict[str, str]:
    values = credential.values
    token = {"aws_session_token": values["session_token"]} if "session_token" in values else {}
    return {"aws_access_key_id": values["access_key_id"], "aws_secret_access_key": values["secret_access_key"], **token}


def _s3_settings(credential: Credential) -> dict[str, str]:
    values = credential.values
    endpoint = values.get("endpoint")
    if endpoint is None and credential.kind == "wasabi":
        endpoint = wasabi_endpoint(values.get("region"))
    region = {"region": values["region"]} if "region" in values else {}
    return {**region, **({"endpoint_url": endpoint} if endpoint else {})}


def _azure(credential: Credential) -> str:
    values = credential.values
    named = {
        "AZURE_STORAGE_ACCOUNT": values["account_name"],
        "AZURE_STORAGE_KEY": values.get("account_key"),
        "AZURE_STORAGE_SAS_TOKEN": values.get("sas_token"),
        "AZURE_STORAGE_SERVICE_ENDPOINT": values.get("endpoint"),
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in named.items() if value)


def _auth(credential: Credential) -> tuple[str, dict[str, str]]:
    values = credential.values
    encoded = base64.b64encode(f"{values['username']}:{values['password']}".encode()).decode("ascii")
    server = values["server"].rstrip("/")
    # The one registry that docker does not know by its host.
    hub = server.removeprefix("https://") in {"docker.io", "index.docker.io", "registry-1.docker.io"}
    return "https://index.docker.io/v1/" if hub else server, {"auth": encoded}


def _ssh(names: list[str], directory: str, *, trusts: bool) -> str:
    words = ["ssh"]
    for name in names:
        words += ["-i", f"{directory}/{name}"]
    words += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    return shlex.join([*words, "-o", f"UserKnownHostsFile={directory}/known_hosts"] if trusts else words)
