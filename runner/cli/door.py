"""The door of `stoker`: reads the command line, runs the verb's module, turns whatever happens into an exit code.

Nothing heavy is imported on the way of a hot verb; a test on `sys.modules` holds that. The rest goes through typer.
"""

from __future__ import annotations

import os
import sys

from runner.cli.out import Out, OutputClosed
from runner.cli.parse import Args, parse
from runner.cli.verbs import VERSION
from runner.client import Client
from runner.core.errors import EXIT_BUG, EXIT_INTERRUPTED, StokerError
from runner.paths import Paths, state_dir

EXIT_CLOSED = 141


def main() -> None:
    """Run the command line of this process and leave with its exit code (DESIGN 4)."""
    out = Out(os.environ, sys.stdout, sys.stderr)
    code = guarded(sys.argv[1:], out)
    # Everything is flushed; taking the interpreter down tidily would be a seventh of the time of a submit.
    os._exit(code)


def guarded(argv: list[str], out: Out) -> int:
    """Run one command line; whatever goes wrong is told and becomes an exit code."""
    try:
        try:
            code = _run(argv, out)
            out.flush()
        except StokerError as error:
            out.error(error.message, error.hint)
            code = error.exit_code
            out.flush()
    except OutputClosed:
        code = EXIT_CLOSED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        from runner.cli.report import report_bug  # nobody waits for it

        code = report_bug(error, out, EXIT_BUG)
    return code


def execute(args: Args, out: Out) -> int:
    """Run the verb of a command line that is read."""
    if args.verb is None:
        raise AssertionError("a command line without a verb ends before")
    if args.get("version"):
        return _version(out)
    configure(args, out)
    name = "runner.cli.commands." + args.verb.name
    module = __import__(name, fromlist=["run"])
    return int(module.run(args, client_for(args, out), out))


def configure(args: Args, out: Out) -> None:
    """Let the global flags have their effect."""
    out.format = "json" if args.get("json") else args.get("format") or "table"
    out.quiet = bool(args.get("quiet"))
    out.verbose = len(args.get("verbose") or ())
    out.debug = bool(args.get("debug")) or os.environ.get("STOKER_DEBUG") == "1"
    out.no_input = bool(args.get("no_input"))
    out.colour_when = args.get("color") or "auto"
    if args.get("config"):
        os.environ["STOKER_CONFIG"] = os.path.abspath(args.get("config"))
    if args.get("no_config"):
        os.environ["STOKER_NO_CONFIG"] = "1"
    if args.get("private"):
        os.environ["STOKER_RUNNER"] = "private"


def client_for(args: Args, out: Out) -> Client:
    """Return the client of a verb; it starts a runner where the verb may. One that needs none needs no state either."""
    starts = args.verb.starts if args.verb else "never"
    if starts == "apart":
        return Client("")
    paths = Paths(state_dir(os.environ))
    if out.verbose:
        out.note(f"the runner's socket is {paths.api_socket}")

    def start(reviving: bool) -> None:
        from runner.cli.starting import ensure_runner, spawner_command  # only where no runner answers

        # A follower whose runner was stopped under it must not bring it back.
        allowed = starts == "always" and not reviving
        command = spawner_command(paths.state_dir, detach=True)
        ensure_runner(paths, command, after_stop=allowed, environ=os.environ, note=out.note)

    return Client(paths.api_socket, None if starts == "never" else start)


def _run(argv: list[str], out: Out) -> int:
    if argv and argv[0] == "_complete":
        from runner.cli.complete import complete  # not a verb: shells call it

        return complete(argv[1:], out)
    args = parse(argv)
    if args.get("version"):
        return _version(out)
    if args.verb is None or args.get("help") or not args.verb.hot:
        from runner.cli.app import run_app  # typer: help and the rare verbs

        return run_app(args, out, lambda read: execute(read, out))
    return execute(args, out)


def _version(out: Out) -> int:
    out.data(f"stoker {VERSION}")
    return 0
