"""What a job writes to beside the store: its output and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from runner.core.spec import JobSpec

# Beside the names of inputs, which cannot be these: the addresses of output and checkpoint, where they hold a secret.
UPLOAD = "=upload"
MIRROR = "=mirror"


def keys_stated(spec: JobSpec) -> dict[str, tuple[str | None, str]]:
    """Return, by these names, the key that a job states for the place, and what errors call it."""
    upload, mirror = spec.upload, spec.mirror
    return {
        UPLOAD: (upload.key if upload is not None else None, "--output"),
        MIRROR: (mirror.key if mirror is not None else None, "--checkpoint"),
    }


def with_keys(spec: JobSpec, names: Mapping[str, str | None]) -> JobSpec:
    """Return a spec that says which keys its job writes with: that is settled when it is submitted."""
    update: dict[str, object] = {}
    if spec.upload is not None:
        update["upload"] = spec.upload.model_copy(update={"key": names[UPLOAD]})
    if spec.mirror is not None:
        update["mirror"] = spec.mirror.model_copy(update={"key": names[MIRROR]})
    return spec.model_copy(update=update) if update else spec
