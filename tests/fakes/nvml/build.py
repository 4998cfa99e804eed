"""Build the fake driver library with the machine's compiler, else with the ziglang wheel, so that no test lacks it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
Compiler = tuple[str, ...]


def build_fake_nvml(cache_dir: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Return the directory to put in LD_LIBRARY_PATH, building the library there once per source and options.

    `without` names calls that the library shall lack, as an older driver does. Raises RuntimeError when no
    compiler can build it.
    """
    options = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{LIBRARY}", *(f"-D{call}=absent_{call}" for call in without)]
    key = hashlib.sha256(SOURCE.read_bytes() + repr(options).encode()).hexdigest()[:16]
    directory = cache_dir / f"fake-nvml-{key}"
    if (directory / LIBRARY).exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    failures = []
    for candidate in _compilers():
        error = _compile(candidate, options, directory, cache_dir / "zig")
        if error is None:
            return directory
        failures.append(f"{' '.join(candidate)}: {error}")
    raise RuntimeError("no C compiler could build the fake NVML library:\n" + "\n".join(failures or ["none was found"]))


def _compilers() -> list[Compiler]:
    """Return the compilers at hand, the machine's own first."""
    own = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    found: list[Compiler] = [(own,)] if own else []
    if importlib.util.find_spec("ziglang"):
        found.append((sys.executable, "-m", "ziglang", "cc"))
    return found


def _compile(compiler: Compiler, options: list[str], directory: Path, zig_cache: Path) -> str | None:
    """Compile beside the target and rename onto it: two test processes may build at once."""
    descriptor, partial = tempfile.mkstemp(dir=directory, suffix=".so")
    os.close(descriptor)
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(zig_cache), "ZIG_LOCAL_CACHE_DIR": str(zig_cache)}
    built = subprocess.run(
        [*compiler, *options, "-o", partial, str(SOURCE), "-lpthread"],
        env=os.environ | cache,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        Path(partial).unlink()
        return built.stderr.strip()[-2000:] or f"exit code {built.returncode}"
    os.chmod(partial, 0o755)
    os.replace(partial, directory / LIBRARY)
    return None
