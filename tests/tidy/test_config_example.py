"""config.example.toml says what the program does."""

from __future__ import annotations

from runner import config
from tests.tidy.example_config import FILE, text


def test_the_example_is_what_the_settings_generate() -> None:
    """Every setting is in the file with its default and its meaning, and nothing else is."""
    assert FILE.read_text() == text(), "run `.venv/bin/python -m tests.tidy.example_config`"


def test_the_example_loads_as_the_defaults() -> None:
    """Copied as it is, the file changes nothing."""
    assert config.load([str(FILE)], {}) == config.Config()
