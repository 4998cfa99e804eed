"""An FTP server over a directory, run as a process: pyftpdlib stands on modules that warn of their end when imported.

`python ftpd.py ROOT PORT USER PASSWORD CERTIFICATE|- [no-mlsd] [no-replace] [cut=BYTES] [hold=BYTES]
[most=CONNECTIONS] [log=FILE]`

The first transfer is cut off, or held, after so many bytes; where each began is logged.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

from pyftpdlib.authorizers import DummyAuthorizer  # noqa: E402
from pyftpdlib.handlers import DTPHandler, FTPHandler, TLS_FTPHandler  # noqa: E402
from pyftpdlib.servers import ThreadedFTPServer  # noqa: E402


class Cutting(DTPHandler):
    """Breaks the first transfer off in the middle, or says no more in it."""

    left = 0
    holds = False

    def send(self, data: bytes) -> int:
        """Send until the server has had enough."""
        if Cutting.left == 0:
            return int(super().send(data))
        if Cutting.left < 0:
            return 0
        sent = int(super().send(data[: Cutting.left]))
        Cutting.left -= sent
        if Cutting.left == 0 and Cutting.holds:
            Cutting.left = -1
        elif Cutting.left == 0:
            self.close()
        return sent


def noted(handler: Any, file: str, log: str, base: type[FTPHandler]) -> Any:
    """Write down where a transfer begins, and begin it."""
    with open(log, "a") as lines:
        lines.write(f"{handler._restart_position}\n")
    return base.ftp_RETR(handler, file)


def kept(handler: Any, path: str) -> None:
    """Rename, but not over a file."""
    if handler.fs.lexists(path):
        handler.respond("553 File exists.")
    else:
        FTPHandler.ftp_RNTO(handler, path)


def main(root: str, port: str, user: str, password: str, certificate: str, *words: str) -> None:
    """Serve until the process ends."""
    base = FTPHandler if certificate == "-" else TLS_FTPHandler
    stated: dict[str, Any] = {"authorizer": DummyAuthorizer(), "use_sendfile": False, "certfile": certificate}
    stated |= {"tls_control_required": True, "tls_data_required": True}
    options = dict(word.partition("=")[::2] for word in words)
    if "cut" in options or "hold" in options:
        Cutting.left, Cutting.holds = int(options.get("cut") or options["hold"]), "hold" in options
        stated["dtp_handler"] = Cutting
    if "log" in options:
        stated["ftp_RETR"] = lambda self, file: noted(self, file, options["log"], base)
    if "no-replace" in options:
        stated["ftp_RNTO"] = kept
    handler = type("Handler", (base,), stated)
    if "no-mlsd" in options:
        handler.proto_cmds = {name: facts for name, facts in handler.proto_cmds.items() if name not in {"MLSD", "MLST"}}
    handler.authorizer.add_user(user, password, root, perm="elradfmwMT")
    server = ThreadedFTPServer(("127.0.0.1", int(port)), handler)
    server.max_cons = int(options.get("most", "512"))
    server.serve_forever()


main(*sys.argv[1:])
