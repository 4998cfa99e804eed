"""Proxies and limits as a user sets them, through a whole runner."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.contracts.test_proxies import proxy_server
from tests.kit import Box
from tests.servers import http_server

CANARY = "canary-of-a-proxy"


def test_inputs_come_by_the_proxy_of_the_settings_and_its_password_is_nowhere(tmp_path: Path) -> None:
    """The proxy is asked and signed in to; `config show`, the job and the runner's log hold nothing of it."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/f").write_text("here")
    with http_server(tmp_path / "www") as web, proxy_server() as proxy:
        url = f"http://me:{CANARY}@127.0.0.1:{proxy.port}"
        with Box(tmp_path, STOKER_SOURCES__HTTP_PROXY=url, STOKER_STORAGE__BANDWIDTH="1G") as box:
            job = box.submit("--input", f"data={web.url}/f", "--", "sh", "-c", 'cat "$STOKER_INPUT_data/f"')
            assert box.wait(job)["state"] == "succeeded"
            assert box.ok("logs", job) == "here"
            shown = box.ok("config", "show") + box.ok("config", "show", "--json") + box.ok("show", job, "--json")
            assert CANARY not in shown
            assert "http://***@127.0.0.1" in shown
            log = Path(box.paths.runner_log)
            assert not log.exists() or CANARY not in log.read_text()
        basic = "Basic " + base64.b64encode(f"me:{CANARY}".encode()).decode()
        assert {each[2] for each in proxy.asked} == {basic}


def test_the_environment_names_the_proxy_where_no_setting_does(tmp_path: Path) -> None:
    """HTTP_PROXY of whoever starts the runner counts; `none` in the settings is stronger."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/f").write_text("here")
    with http_server(tmp_path / "www") as web, proxy_server() as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        with Box(tmp_path, HTTP_PROXY=url) as box:
            assert box.wait(box.submit("--input", f"data={web.url}/f", "--", "true"))["state"] == "succeeded"
        assert proxy.asked
        proxy.asked.clear()
        with Box(tmp_path / "other", HTTP_PROXY=url, STOKER_SOURCES__HTTP_PROXY="none") as box:
            assert box.wait(box.submit("--input", f"data={web.url}/f", "--", "true"))["state"] == "succeeded"
        assert not proxy.asked


def test_a_proxy_that_is_none_is_refused_when_the_runner_starts(tmp_path: Path) -> None:
    """With what to write instead, and without the value, which may hold a password."""
    with Box(tmp_path, STOKER_SOURCES__HTTPS_PROXY=f"socks5://me:{CANARY}@h:1") as box:
        done = box.cli("config", "check")
        assert done.returncode == 2
        assert "http://HOST:PORT" in done.stderr and CANARY not in done.stderr
