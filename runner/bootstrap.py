"""The only composition root: builds the runner out of its parts, in the order of recovery, and runs it.

Started as `python -I -m runner.bootstrap --state-dir DIR` by the spawner; never from a job's folder. With `--check`
behind it only says, as JSON on stdout, what would keep the runner from starting.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner import config as configuration
from runner.api import server as http
from runner.api.app import Report, make_app
from runner.api.room import Room
from runner.config import Config
from runner.core.errors import NoRunner, StokerError
from runner.core.money import parse_credits
from runner.daemon import cache
from runner.daemon.board import Board
from runner.daemon.context import Clock, Context
from runner.daemon.devices import Devices
from runner.daemon.expire import Expirer
from runner.daemon.fetch import Fetcher, source_options
from runner.daemon.finish import Finisher
from runner.daemon.live import live_facts
from runner.daemon.loop import Loop
from runner.daemon.make import Maker
from runner.daemon.measure import Measurer
from runner.daemon.meter import Meter
from runner.daemon.mirror import Mirrorer
from runner.daemon.prepare import Preparer
from runner.daemon.push import Pusher
from runner.daemon.recover import recover
from runner.daemon.save import Saver
from runner.daemon.stage import Stager
from runner.daemon.start import Starter
from runner.daemon.steps import stepper
from runner.daemon.turn import Turn
from runner.daemon.upload import Uploader
from runner.daemon.verify import Verifier
from runner.daemon.watch import Watch
from runner.executors import mounts
from runner.executors.cgroups import CgroupRoots, find_cgroups, remove_old_groups
from runner.executors.link import SpawnerLink
from runner.executors.marks import this_box
from runner.executors.process import ProcessExecutor
from runner.executors.spares import Spares
from runner.gpus.nvml import Nvml
from runner.identity.sealing import Sealer
from runner.identity.users import user_name
from runner.ledger.accounts import AccountKind
from runner.ledger.pricing import Price, PriceKind
from runner.paths import Paths, config_files
from runner.service.desk import Desk, Hub, Leave
from runner.service.rotation import finish_rotation
from runner.state import books
from runner.state.audit import audit
from runner.state.ballast import Ballast
from runner.state.engine import Database, examine_database, open_database
from runner.telemetry.tail import LogTail
from storage.checkout import Permitted, can_reflink
from storage.files import remove_directory
from storage.store import Store

CHAIN_TAIL = 1000
ANSWERS_S = 3.0
TRIAL_S = 30.0

log = logging.getLogger("stoker")


def main(argv: list[str] | None = None) -> int:
    """Run the runner of a state directory until it is told to leave; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) < 2 or arguments[0] != "--state-dir" or arguments[2:] not in ([], ["--check"]):
        sys.stderr.write("error: this is started by `stoker serve`\n")
        return 2
    paths = Paths(arguments[1])
    os.umask(0o077)
    if arguments[2:]:
        return _check(paths)
    try:
        return _serve(paths)
    except StokerError as error:
        _write_failure(paths, error)
        return error.exit_code


def _check(paths: Paths) -> int:
    try:
        configuration.load(config_files(os.environ), os.environ)
        examine_database(paths.database, paths.backup_dir)
    except StokerError as error:
        sys.stdout.write(json.dumps(error.document()))
        return error.exit_code
    return 0


def _serve(paths: Paths) -> int:
    lock = _make_state(paths)
    config = configuration.load(config_files(os.environ), os.environ)
    _log_to(paths, config)
    Path(paths.run_dir, "failed").unlink(missing_ok=True)
    network = config.storage.allow_network_filesystem
    database = open_database(paths.database, backup_dir=paths.backup_dir, allow_network_filesystem=network)
    context, executor = _compose(paths, config, database)
    loop = Loop(context.clock)
    devices = Devices(context, loop, Nvml())
    starter = Starter(context, loop, devices)
    fetcher = Fetcher(context, source_options(config, os.environ, system=context.system))
    saver = Saver(context, Uploader(context, fetcher), Mirrorer(context, loop, fetcher))
    tail = LogTail()
    stager = Stager(context, fetcher, tail)
    preparer = Preparer(context, loop, stager)
    maker = Maker(context, fetcher)
    measurer = Measurer(context, loop, devices.usage)
    finisher = Finisher(
        context,
        loop,
        devices=devices,
        starter=starter,
        saver=saver,
        measurer=measurer,
        tail=tail,
        sweepers=ThreadPoolExecutor(2, "sweep"),
    )
    turn = Turn(
        context,
        loop,
        devices=devices,
        preparer=preparer,
        starter=starter,
        finisher=finisher,
        saver=saver,
        meter=Meter(context, loop),
        expirer=Expirer(context, loop, saver),
        measurer=measurer,
        maker=maker,
    )
    watch = Watch(context, loop, starter)
    watch.open()
    devices.first_look()
    recover(context, loop, starter=starter, preparer=preparer, saver=saver)
    maker.load()
    room = Room(
        version=importlib.metadata.version("stoker"),
        config=config,
        paths=paths,
        database=database,
        desk=context.desk,
        hub=context.hub,
        shelf=context.shelf,
        sealer=context.sealer,
        store=context.store,
        live=live_facts(context, devices, preparer=preparer, saver=saver, maker=maker, cgroups=executor.cgroups),
        tail=tail,
        account=account_name,
        started_us=context.clock.now_us(),
        sweep=lambda scraps: cache.sweep(context, scraps=scraps),
        verify=Verifier(context, fetcher, stager=stager, maker=maker).verify,
        push=Pusher(fetcher).push,
        sources=fetcher.options,
        lookout=context.lookout,
    )
    listener = http.bind(paths.api_socket)
    server, serving = http.serve(make_app(room, Report(Path(paths.reports_dir), context.clock.now_us)), listener)
    _leave_on_signal(context.desk)
    watch.ready()
    log.info("serving %s as pid %d", paths.state_dir, os.getpid())
    leaving = turn.run()
    server.end()
    serving.join(ANSWERS_S)
    return _leave(database, leaving, lock)


def _compose(paths: Paths, config: Config, database: Database) -> tuple[Context, ProcessExecutor]:
    trial = _try_mounts(paths)  # beside all the rest
    box = this_box()
    clock = Clock()
    link = SpawnerLink(Path(paths.state_dir), runner_argv(paths))
    cgroups = find_cgroups() if config.box.cgroup else CgroupRoots()
    remove_old_groups(cgroups, time.time())
    executor = ProcessExecutor(Path(paths.control_dir), link, cgroups, box, notify=Path(paths.notify_socket))
    ballast = Ballast(paths.ballast, config.storage.ballast_bytes)
    name = account_name(os.geteuid())
    with database.transaction() as connection:
        account = books.ensure_account(connection, name, AccountKind.USER, now_us=clock.now_us())
        prices = _prices(database, config, clock.now_us())
        verdict = audit(connection, CHAIN_TAIL)
        sealed = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM variables) OR EXISTS (SELECT 1 FROM keys)"
        ).fetchone()[0]
    if not verdict.ok:
        raise NoRunner(
            f"the ledger is broken at entry {verdict.first_broken}: {verdict.reason}",
            hint=f"keep {paths.database}; restore a backup as docs/backup.md says",
        )
    context = Context(
        config=config,
        paths=paths,
        database=database,
        desk=Desk(),
        hub=Hub(),
        board=Board(_cpu_milli(config), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        executor=executor,
        link=link,
        sealer=Sealer.open(Path(paths.key_file), create=not sealed),
        store=Store(Path(paths.store_dir)),
        boot_id=box.boot_id,
        permitted=_permitted(paths, config, trial),
        prices=prices,
        account_ids={name: account.id},
        ballast=ballast,
        trees=Spares(paths.jobs_dir),
        clock=clock,
        step=stepper(os.environ),
    )
    finish_rotation(database, context.sealer)
    if not ballast.take():
        context.admission = "the disk that holds the state is full"
    return context, executor


def runner_argv(paths: Paths) -> list[str]:
    """Return the command that starts this runner."""
    return [sys.executable, "-I", "-m", "runner.bootstrap", "--state-dir", paths.state_dir]


def account_name(uid: int) -> str:
    """Return the name of a user's own account."""
    return user_name(uid) or str(uid)


def _make_state(paths: Paths) -> int:
    """Make the state directory's layout and take its lock: one runner a state directory."""
    try:
        for directory in (paths.state_dir, paths.run_dir, paths.control_dir, paths.job_logs_dir, paths.jobs_dir):
            Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        state = Path(paths.state_dir).stat()
        lock = os.open(paths.runner_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the state directory {paths.state_dir} cannot be written: {error.strerror}"
        raise NoRunner(message, hint="set STOKER_STATE_DIR to a directory of yours") from None
    if state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise NoRunner(
            f"the state directory {paths.state_dir} is not yours alone",
            hint=f"chmod 700 {paths.state_dir}, or choose another",
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NoRunner(f"another runner serves {paths.state_dir}", hint="`stoker service status` shows it") from None
    return lock


def _prices(database: Database, config: Config, now_us: int) -> tuple[Price, ...]:
    """Bring the price list to what the configuration says; a price that did not change is not written again."""
    wanted = [
        Price(PriceKind.GPU, "", parse_credits(config.credits.gpu_hour)),
        Price(PriceKind.CPU, "", parse_credits(config.credits.cpu_hour)),
        *(Price(PriceKind.GPU, model, parse_credits(text)) for model, text in sorted(config.credits.models.items())),
    ]
    present = {(each.kind, each.condensed): each for each in books.list_prices(database.writer, now_us)}
    for price in wanted:
        known = present.pop((price.kind, price.condensed), None)
        if known is None or known.rate_micro_per_hour != price.rate_micro_per_hour:
            _set_price(database, price, price.rate_micro_per_hour, now_us)
    for price in present.values():
        _set_price(database, price, None, now_us)
    return tuple(wanted)


def _set_price(database: Database, price: Price, rate: int | None, now_us: int) -> None:
    books.set_price(
        database.writer,
        kind=price.kind,
        model=price.model,
        rate_micro_per_hour=rate,
        starts_us=now_us,
        actor="configuration",
        now_us=now_us,
    )


def _cpu_milli(config: Config) -> int:
    if config.box.cpus:
        return int(config.box.cpus * 1000)
    return len(os.sched_getaffinity(0)) * 1000


def _try_mounts(paths: Paths) -> subprocess.Popen[bytes]:
    """Begin to try what jobs can be given on the disk of the state: at each start, since it is a setting of the box."""
    trial = Path(paths.run_dir, "trial")
    remove_directory(trial)
    trial.mkdir()
    argv = [sys.executable, "-I", "-S", mounts.__file__, str(trial)]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _permitted(paths: Paths, config: Config, trial: subprocess.Popen[bytes]) -> Permitted:
    trouble: dict[str, str] = {}
    try:
        trouble = json.loads(trial.communicate(timeout=TRIAL_S)[0])
    except (subprocess.TimeoutExpired, ValueError) as error:
        trial.kill()
        log.warning("what may be mounted could not be tried: %s", error)
    remove_directory(Path(paths.run_dir, "trial"))
    for kind, why in trouble.items():
        if why:
            log.info("no job is given a mount of kind %s: %s", kind, why)
    return Permitted(
        mounts=trouble.get("bind") == "",
        overlay=trouble.get("overlay") == "",
        user_overlay=trouble.get("user_overlay") == "" and config.storage.user_namespaces,
        reflink=can_reflink(Path(paths.store_dir)),
    )


def _log_to(paths: Paths, config: Config) -> None:
    levels = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if config.log.level not in levels:
        raise NoRunner(f"[log] level is no level: {config.log.level!r}", hint="debug, info, warning or error")
    logging.basicConfig(
        filename=paths.runner_log,
        level=levels[config.log.level],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )


def _leave_on_signal(desk: Desk) -> None:
    """SIGTERM and SIGINT end the runner politely; jobs go on."""

    def leave(_: int, __: object) -> None:
        desk.put(lambda change: change.effects.append(Leave(for_good=False)))

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _leave(database: Database, leaving: Leave, lock: int) -> int:
    database.close()
    os.close(lock)
    log.info("left; jobs go on under their watchers")
    logging.shutdown()
    # Threads may be deep in a download; nothing of theirs is committed, so there is nothing to wait for.
    sys.stdout.flush()
    os._exit(0 if leaving.for_good else 75)


def _write_failure(paths: Paths, error: StokerError) -> None:
    """Leave word for the client that waits for this runner."""
    sys.stderr.write(f"error: {error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
    try:
        path = Path(paths.run_dir, "failed")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(error.document() | {"exit_code": error.exit_code}))
        whole.rename(path)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
