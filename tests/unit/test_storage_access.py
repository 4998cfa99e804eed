"""Credentials come from the files that are named, and from nowhere else; retries wait as they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePath
from typing import cast

import pytest

from runner.config import load
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, Wanted, source_options
from storage.errors import Cancelled, SourceFailed, SourceRefused
from storage.filesystems import AwsAccess, aws_access
from storage.sources.base import SourceOptions
from storage.transfer import Retry
from storage.uri import parse


def test_the_profile_is_read_from_both_files(tmp_path: Path) -> None:
    """Keys come from `credentials`, region and endpoint from `config`; options win."""
    (tmp_path / "credentials").write_text(
        "[other]\naws_access_key_id=K\naws_secret_access_key=S\naws_session_token=T\n"
    )
    (tmp_path / "config").write_text("[profile other]\nregion=eu-west-1\nendpoint_url=http://h:1\n")
    options = SourceOptions(aws_dir=tmp_path, aws_profile="other")
    assert aws_access(options) == AwsAccess("K", "S", "T", "eu-west-1", "http://h:1")
    assert aws_access(SourceOptions(aws_dir=tmp_path, aws_profile="other", s3_region="x", s3_endpoint="http://y")) == (
        AwsAccess("K", "S", "T", "x", "http://y")
    )
    assert aws_access(SourceOptions(aws_dir=tmp_path)) == AwsAccess()
    assert aws_access(SourceOptions(aws_dir=tmp_path / "none")) == AwsAccess()


def test_a_home_that_a_job_states_is_read_only_by_a_runner_of_ones_own() -> None:
    """What a job says is its home may be another's: of no tool that keeps credentials there."""
    wanted = Wanted(parse("s3://bucket/x", PurePath("/")), "key", home="/nowhere/somebody")
    own, shared = (
        Fetcher(cast(Context, None), SourceOptions(allow_local_addresses=own)).options_for(wanted)
        for own in (True, False)
    )
    assert own.aws_dir == Path("/nowhere/somebody/.aws")
    assert {shared.aws_dir, shared.gcloud_dir, shared.azure_dir, shared.ssh_dir} == {None}


def test_a_system_runner_reaches_less_than_ones_own() -> None:
    """Nothing on this machine but the hosts that the settings list; no path by its own right; nobody's home."""
    config = load([], {"STOKER_SOURCES__ALLOW_HOSTS": '["mirror.lab"]'})
    system, own = (source_options(config, {}, system=system) for system in (True, False))
    assert (system.allow_local_addresses, system.allow_hosts) == (False, {"mirror.lab"})
    assert own.allow_local_addresses
    for text in ("/etc/shadow", "git+file:///root/repo"):
        wanted = Wanted(parse(text, PurePath("/")), "key", home="/root")
        with pytest.raises(SourceRefused, match="only a runner of your own"):
            Fetcher(cast(Context, None), system).options_for(wanted)
        assert Fetcher(cast(Context, None), own).options_for(wanted).ssh_dir == Path("/root/.ssh")


def test_secrets_are_in_no_error_and_no_repr(tmp_path: Path) -> None:
    """A broken credentials file is refused without quoting it."""
    (tmp_path / "credentials").write_text("aws_secret_access_key=TOPSECRET\n")
    with pytest.raises(SourceRefused) as caught:
        aws_access(SourceOptions(aws_dir=tmp_path))
    assert "TOPSECRET" not in caught.value.message + caught.value.hint
    assert caught.value.__suppress_context__
    assert "TOPSECRET" not in repr(AwsAccess("K", "TOPSECRET", "TOPSECRET"))


def test_a_profile_that_needs_another_program_is_refused(tmp_path: Path) -> None:
    """Single sign-on and the like say what to do instead of failing at the server."""
    (tmp_path / "config").write_text("[default]\nsso_start_url=https://x\n")
    with pytest.raises(SourceRefused, match="another program"):
        aws_access(SourceOptions(aws_dir=tmp_path))


def test_waits_double_up_to_the_cap_and_obey_the_server() -> None:
    """Full jitter below base, 2 base, 4 base …; Retry-After is a floor."""
    slept: list[float] = []
    retry = Retry(tries=6, base_s=1.0, cap_s=3.0, sleep=slept.append, random=lambda: 1.0)
    failures = iter([None, None, None, 10.0])

    def work() -> str:
        try:
            wanted = next(failures)
        except StopIteration:
            return "done"
        raise SourceFailed("no", retry_after_s=wanted)

    assert retry.run(work, lambda: False) == "done"
    assert sum(slept) == pytest.approx(1 + 2 + 3 + 10)


def test_what_is_not_transient_is_not_retried() -> None:
    """A permanent failure comes out at once, a transient one after all tries."""
    for transient, tries in ((False, 1), (True, 4)):
        seen: list[int] = []

        def work(transient: bool = transient, seen: list[int] = seen) -> None:
            seen.append(1)
            raise SourceFailed("no", transient=transient)

        with pytest.raises(SourceFailed):
            Retry(tries=4, base_s=0.0).run(work, lambda: False)
        assert len(seen) == tries


def test_cancelling_ends_a_wait() -> None:
    """A wait of minutes ends at the next look."""
    looks = iter([False, True])
    with pytest.raises(Cancelled):
        Retry(base_s=600.0, sleep=lambda _: None, random=lambda: 1.0).wait(0, SourceFailed("gone"), lambda: next(looks))


def test_nothing_heavy_loads_before_it_is_needed() -> None:
    """The room imports without any cloud library."""
    code = "import sys, storage.download, storage.checkout; " + (
        "print([m for m in ('fsspec', 's3fs', 'botocore', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
