"""One frozen Config: weakest first, the origin of each value kept, and every wrong one refused with a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import config
from runner.core.errors import UsageError
from runner.paths import Paths, config_files, state_dir


def load(tmp_path: Path, text: str, **environ: str) -> config.Config:
    """Load one file and an environment."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    return config.load([str(file)], environ)


def test_the_stronger_wins_and_is_named(tmp_path: Path) -> None:
    """The environment wins over a later file, that over an earlier one, and each value knows where it is from."""
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text('[storage]\nlog_limit = "8MiB"\nmin_free = "2GiB"\n[credits.models]\nA100 = "2"\n')
    second.write_text('[storage]\nlog_limit = "9MiB"\n[credits.models]\nH200 = "4.5"\n')
    found = config.load([str(first), str(second)], {"STOKER_DEFAULTS__GPUS": "0", "STOKER_STATE_DIR": "/x"})
    assert found.storage.log_limit_bytes == 9 << 20
    assert found.storage.min_free_bytes == 2 << 30
    assert found.credits.models == {"A100": "2", "H200": "4.5"}
    assert found.defaults.gpus == 0
    assert found.origins["storage.log_limit"] == str(second)
    assert found.origins["storage.min_free"] == str(first)
    assert found.origins["defaults.gpus"] == "STOKER_DEFAULTS__GPUS"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[defaults]\ngpsu = 1", "gpus"),
        ("[defualts]\ngpus = 1", "defaults"),
        ("[defaults]\ngpus = true", ""),
        ("[defaults]\ngpus = '2'", ""),
        ("[defaults]\ngpus = 2.0", ""),
        ("[defaults]\ngpus = -1", "least"),
        ("[defaults]\ngpus = 1000000000000000000000000", "most"),
        ("[box]\ncpus = nan", ""),
        ("[box]\ncpus = inf", ""),
        ("[box]\ncpus = 1e400", ""),
        ("[box]\ncpus = -4", "least"),
        ("[box]\ncpus = true", ""),
        ("[defaults]\ngrace = 120", "unit"),
        ("[defaults]\ngrace = 'soon'", "1h30m"),
        ("[credits]\npost_every = '0s'", "least"),
        ("[metrics]\ninterval = '0s'", "least"),
        ("[storage]\nlog_limit = '1B'", "least"),
        ("[storage]\nlog_limit = '9999999P'", ""),
        ("[credits]\ngpu_hour = 1.5", ""),
        ("[credits.models]\nA100 = 2", ""),
        ("[credits]\ngpu_hour = '-1'", "no sign"),
        ("[credits]\ncpu_hour = 'nan'", "1.5"),
        ("[credits]\ncpu_hour = 'inf'", "1.5"),
        ("[credits]\ncpu_hour = '1e400'", "1.5"),
        ("[credits]\ncpu_hour = '٣'", "1.5"),
        ("[credits]\ncpu_hour = ''", "1.5"),
        ("[credits]\ncpu_hour = '0.0000001'", "six decimals"),
        ("[credits.models]\nA100 = '-2'", "no sign"),
        ("[credits.models]\n'--' = '2'", "RTX 4090"),
        ("[box]\ncpus = 0.0000001", "counts them"),
        ("[gpu]\nlock_dir = 'here'", "whole path"),
        ("x = " + "9" * 5000, "config.example.toml"),
        ("[log]\nlevel = 'loud'", "info"),
        ("[gpu]\nexclude = 'GPU-1'", ""),
        ("[gpu]\nexclude = [1]", ""),
        ("storage = 1", ""),
        ("[storage]\nlog_limit = {a = 1}", ""),
        ("[a]\n[a]", "config.example.toml"),
        ("a = 1\na = 2", "config.example.toml"),
        ("x = " + "[" * 5000, "config.example.toml"),
        ("#" + "x" * (2 << 20), "few lines"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_settings(tmp_path: Path, text: str, hint: str) -> None:
    """An unknown key, a wrong type or an absurd value is refused with what would be right."""
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert hint in caught.value.hint
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STOKER_DEFAULTS__GPSU", "1"),
        ("STOKER_DEFAULTS__GPUS", "two"),
        ("STOKER_CREDITS__MODELS__A", "1"),
        ("STOKER_A__B", "1"),
    ],
)
def test_wrong_variables(tmp_path: Path, name: str, value: str) -> None:
    """A variable that names no setting, or no value of it, is refused by its name."""
    with pytest.raises(UsageError, match=name):
        load(tmp_path, "", **{name: value})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and bytes that are no text are refusals."""
    (tmp_path / "latin").write_bytes(b"a = '\xff'")
    for name in ("missing", ".", "latin"):
        with pytest.raises(UsageError):
            config.load([str(tmp_path / name)], {})


def test_where_the_state_lies(tmp_path: Path) -> None:
    """STOKER_STATE_DIR, then XDG_STATE_HOME, then HOME; without any of them, or with a relative one, a refusal."""
    assert state_dir({"STOKER_STATE_DIR": "/a/../b", "HOME": "/h"}) == "/b"
    assert state_dir({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == "/x/stoker"
    assert state_dir({"XDG_STATE_HOME": "x", "HOME": str(tmp_path)}) == f"{tmp_path}/.local/state/stoker"
    relative = {"STOKER_STATE_DIR": "rel", "HOME": "/h"}
    for environ in ({}, {"HOME": ""}, {"HOME": "h"}, {"HOME": f"{tmp_path}/gone"}, relative):
        with pytest.raises(UsageError) as caught:
            state_dir(environ)
        assert caught.value.hint


def test_which_files_are_read(tmp_path: Path) -> None:
    """A named file alone, none when told so, else the user's over the box's where they exist."""
    (tmp_path / "stoker").mkdir()
    (tmp_path / "stoker/config.toml").touch()
    assert config_files({"XDG_CONFIG_HOME": str(tmp_path)})[-1] == f"{tmp_path}/stoker/config.toml"
    assert config_files({"STOKER_CONFIG": "/c.toml", "XDG_CONFIG_HOME": str(tmp_path)}) == ["/c.toml"]
    assert config_files({"STOKER_NO_CONFIG": "1", "STOKER_CONFIG": "/c.toml"}) == []


def test_paths_are_below_the_state() -> None:
    """Everything of a runner lies below its state directory, logs in bounded folders."""
    paths = Paths("/s")
    assert all(str(value).startswith("/s") for value in vars(paths).values())
    assert paths.job_dir(42, None) == "/s/jobs/42"
    assert paths.job_dir(42, 7) == "/s/jobs/42/7"
    assert paths.job_log(12345, 1) == "/s/logs/12/12345.1"
