"""A fast S3 server for the bench: nginx sends the objects and a listing written ahead, plain and over TLS.

Real object stores are faster than any client on two cores; so is this one, which no emulator can be. It knows no
signatures, chooses one cipher for all clients, states each object's sha256 as S3 does for one that was uploaded with
it, and its tags are nginx's.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.servers import free_port, wait_for_port
from tests.tls import certify

BUCKET = "bench"
PAGE_KEYS = 1000
# name: (files, bytes each, folders)
SETS = {"small": (5000, 64 << 10, 50), "mid": (200, 5 << 20, 10), "one": (1, 1 << 30, 1)}

_CONFIG = """\
worker_processes 2; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log crit; {user}
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; types {{}} default_type application/octet-stream;
  keepalive_requests 1000000; open_file_cache max=20000 inactive=60s;
  map_hash_max_size 65536; map_hash_bucket_size 256;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $uri $sha256 {{ default ""; include {folder}/sha256.map; }}
  map $http_range $stated {{ default ""; "" $sha256; }}
  map $args $page {{ default 0; ~continuation-token=(?<token>[0-9]+) $token; }}
  map $args $below {{ default none; ~prefix=(?<name>[a-z]+)(/|%2F)?(&|$) $name; }}
  server {{
    listen 127.0.0.1:{plain} backlog=1024; listen 127.0.0.1:{tls} ssl backlog=1024;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:1m; ssl_buffer_size 16k;
    ssl_prefer_server_ciphers on; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384;
    root {data}; add_header x-amz-checksum-sha256 $stated; add_header x-amz-checksum-type FULL_OBJECT;
    location ~ ^/{bucket}/?$ {{ rewrite ^ /listings/$below-$page.xml last; }}
    location /listings/ {{ root {folder}; types {{}} default_type application/xml; }}
  }}
}}
"""


@dataclass(frozen=True)
class Front:
    """Where the server listens, and the certificate authority that its TLS is signed by."""

    plain: str
    tls: str
    ca_file: Path

    def endpoint(self, wire: str) -> str:
        """Return the URL for `plain` or `tls`."""
        return self.tls if wire == "tls" else self.plain


@contextmanager
def front(folder: Path, data: Path, scale: float) -> Iterator[Front]:
    """Serve the three sets from `data`, made where they are missing; raise `FileNotFoundError` without nginx."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise FileNotFoundError("nginx")
    folder.mkdir()
    objects = _make_sets(data / BUCKET, scale)
    _list(folder / "listings", data / BUCKET, objects)
    (folder / "sha256.map").write_text(
        "".join(f'"/{BUCKET}/{name}" {_sha256(data / BUCKET / name)};\n' for name in objects)
    )
    certify(folder)
    plain, tls = free_port(), free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    text = _CONFIG.format(folder=folder, data=data, bucket=BUCKET, plain=plain, tls=tls, user=user)
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        wait_for_port(plain, process)
        yield Front(f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}", folder / "ca.pem")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _make_sets(bucket: Path, scale: float) -> list[str]:
    made, source = [], random.Random(4)
    block = source.randbytes(1 << 20)
    for name, (count, size, folders) in SETS.items():
        count, size = (max(1, int(count * scale)), size) if count > 1 else (1, int(size * scale))
        for number in range(count):
            path = bucket / name / f"d{number % folders:02d}" / f"f{number:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                # Different bytes in every file and every MiB: equal ones would be stored once.
                for at in range(0, size, len(block)):
                    head = f"{name} {number} {at}".encode().ljust(32)
                    file.write((head + block[32:])[: size - at])
            made.append(str(path.relative_to(bucket)))
    return sorted(made)


def _list(folder: Path, bucket: Path, names: list[str]) -> None:
    """Write the pages that ListObjectsV2 answers with, for each set."""
    folder.mkdir()
    for prefix in SETS:
        inside = [name for name in names if name.startswith(f"{prefix}/")]
        for page, first in enumerate(range(0, len(inside), PAGE_KEYS)):
            more = first + PAGE_KEYS < len(inside)
            rows = "".join(_row(bucket, name) for name in inside[first : first + PAGE_KEYS])
            token = f"<NextContinuationToken>{page + 1}</NextContinuationToken>" if more else ""
            (folder / f"{prefix}-{page}.xml").write_text(
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<Name>{BUCKET}</Name><Prefix>{prefix}/</Prefix><MaxKeys>{PAGE_KEYS}</MaxKeys>"
                f"<KeyCount>{len(inside[first : first + PAGE_KEYS])}</KeyCount>"
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
            )


def _row(bucket: Path, name: str) -> str:
    facts = (bucket / name).stat()
    when = dt.datetime.fromtimestamp(facts.st_mtime, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    tag = f"{int(facts.st_mtime):x}-{facts.st_size:x}"  # as nginx makes it
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>{when}</LastModified><ETag>&quot;{tag}&quot;</ETag>"
        f"<Size>{facts.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
