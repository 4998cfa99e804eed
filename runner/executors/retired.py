"""Removes built environments that no job needs any more: with what people train with, each is gigabytes."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from runner.executors.environments import MARK, BuildCancelled, locked, remove

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path


def sweep(root: Path, named: Callable[[], Collection[str]], before_s: float) -> list[str]:
    """Remove what `named` names no more and nobody has found since `before_s` (Unix time); return the digests.

    What a build left that died goes too. What is being built is left alone.
    """
    if not root.exists():
        return []
    kept = named()
    others = [each.name for each in os.scandir(root) if each.is_dir(follow_symlinks=False) and each.name not in kept]
    return [digest for digest in others if _give_up(root / digest, named, before_s)]


def _give_up(path: Path, named: Callable[[], Collection[str]], before_s: float) -> bool:
    mark, aside = path / MARK, path / "given-up"
    with suppress(BuildCancelled), locked(path.with_name(path.name + ".lock"), lambda: True):
        if mark.exists():
            if mark.stat().st_mtime >= before_s:
                return False
            # Without its mark nobody finds it from here on; who found it until now has made it fresh, or named it.
            path.chmod(0o700)
            mark.rename(aside)
            if aside.stat().st_mtime >= before_s or path.name in named():
                aside.rename(mark)
                path.chmod(0o555)
                return False
        remove(path)
        return True
    return False
