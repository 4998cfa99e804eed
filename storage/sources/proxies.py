"""Which proxy leads to a host, by the rules that curl and Python keep; pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from storage.errors import SourceRefused
from storage.sources.base import Proxies


def proxy_for(proxies: Proxies, scheme: str, host: str, port: int) -> SplitResult | None:
    """Return the proxy's URL, None where the host is reached directly; raise `SourceRefused` for one that is none."""
    text = proxies.https if scheme == "https" else proxies.http
    if not text or _is_direct(proxies.direct, host.lower(), port):
        return None
    try:
        found = urlsplit(text if "://" in text else f"http://{text}")
        known = found.scheme == "http" and bool(found.hostname) and found.port != 0
    except ValueError:
        known = False
    if not known:
        raise SourceRefused(f"the proxy for {scheme} is no http:// address", "check https_proxy and http_proxy")
    return found


def _is_direct(names: str, host: str, port: int) -> bool:
    """Say whether a list such as `localhost,.corp.example,10.0.0.0/8,box:8080` names a host."""
    for each in names.lower().replace(",", " ").split():
        if each == "*" or each in {host, f"{host}:{port}"}:
            return True
        if host.endswith("." + each.lstrip("*").lstrip(".")):
            return True
        if "/" in each:
            try:
                if ipaddress.ip_address(host) in ipaddress.ip_network(each, strict=False):
                    return True
            except ValueError:
                continue
    return False
