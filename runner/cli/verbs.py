"""Every verb, argument and flag of the command line, declared once: the fast parser, typer and completion read this.

Read on every command: nothing heavy may be imported here.
"""

from __future__ import annotations

from runner.core.flags import JOB_FLAGS

VERSION = "0.1.0"
KEY_KINDS = ("aws", "gcp", "azure", "git-ssh", "kaggle", "wasabi", "hf", "registry")
FORMATS = ("table", "wide", "json", "jsonl", "csv", "name")


class Flag:
    """One flag: its spellings, what it takes (`metavar` empty: nothing) and whether it fills the job's document."""

    __slots__ = ("choices", "help", "job", "key", "metavar", "names", "repeats")

    def __init__(
        self,
        names: str,
        help: str,  # noqa: A002
        metavar: str = "",
        *,
        repeats: bool = False,
        job: bool = False,
        choices: tuple[str, ...] = (),
    ) -> None:
        self.names = names.split("/")
        self.key = self.names[-1].lstrip("-").replace("-", "_")
        self.help = help
        self.metavar = metavar
        self.repeats = repeats
        self.job = job
        self.choices = choices


class Verb:
    """One verb: its summary, what else its help says, arguments and flags, and whether it may start the runner.

    `starts` is `need` for by need, `always` where it also ends what `service stop` began, `never`, or `apart` for a
    verb that has nothing to do with a runner.
    `words` is the metavar of its arguments: `JOB` exactly one, `[JOB]` at most one, `JOB...` at least one,
    `[NAME...]` any number, empty none; `[CMD]` is a script, a job file or a command with all that follows it.
    `actions` are the words of a noun's second level, the first is the default. `hot` verbs are read without typer, and
    `starts` says when one may bring a runner up: `always`, by `need` but not after a stop, or `never`.
    """

    __slots__ = ("actions", "flags", "hot", "more", "name", "starts", "summary", "words")

    def __init__(
        self,
        name: str,
        summary: str,
        words: str = "",
        flags: tuple[Flag, ...] = (),
        *,
        actions: tuple[str, ...] = (),
        hot: bool = True,
        starts: str = "need",
        more: str = "",
    ) -> None:
        self.name = name
        self.summary = summary
        self.words = words
        self.flags = flags
        self.actions = actions
        self.hot = hot
        self.starts = starts
        self.more = more


GLOBAL_FLAGS = (
    Flag("-h/--help", "Show this message and exit."),
    Flag("-V/--version", "Show the version and exit."),
    Flag("-v/--verbose", "Say more on stderr.", repeats=True),
    Flag("-q/--quiet", "Ids only, no notes."),
    Flag("-o/--format", "How to print: table, wide, json, jsonl, csv or name.", "FORMAT", choices=FORMATS),
    Flag("--json", "The same as --format json."),
    Flag("--color", "Colour: auto, always or never.", "WHEN", choices=("auto", "always", "never")),
    Flag("--debug", "Show tracebacks."),
    Flag("--no-input", "Never ask."),
    Flag("--private", "Use a private runner even where the box has a system runner."),
    Flag("--config", "Read this configuration file only.", "FILE"),
    Flag("--no-config", "Read no configuration file."),
)

_JOB = tuple(
    Flag(("-n/" if flag.flag == "--name" else "") + flag.flag, flag.help, flag.metavar, repeats=flag.repeats, job=True)
    for flag in JOB_FLAGS
)
_KEY = Flag("--idempotency-key", "Send again with the same key to get the same answer, never a second job.", "KEY")
_GRACE = Flag("--grace", "Time between the signal and SIGKILL.", "DURATION")
_SAME_CODE = Flag("--same-code", "Run the very code that the job ran, or say what of it is missing.")
_RAW = Flag("--raw", "Pass every byte of the log to the terminal.")
_SCRIPT = (
    "Flags of the job may stand in a script as #STOKER lines, up to its first command. The script itself is not "
    "copied: it runs from where it lies, as it is when the job starts, but with --snapshot."
)
_KEYS = """KIND is aws, gcp, azure, git-ssh, kaggle, wasabi, hf or registry. Values are asked for, or come from --stdin
or --file: one JSON object, lines of NAME=VALUE, for gcp the key file and for git-ssh the private key itself. They are
never words of the command line, and once stored nobody can read them back.

`rotate` asks for the secrets and `edit` for everything. A value left blank stays as it was stored; only --erase PART
takes one away. (In trainML, saving a blank secret erases it.)

An input uses the key that it names, --input data=s3://bucket/x/,key=work, else your only one of that kind; the job
never sees it. A job is given a key only by --key NAME of `submit` and `run`.

\b
  stoker key add aws work
  stoker key add wasabi archive --file ~/archive.env
  stoker key add gcp lab --file service-account.json
  stoker key add git-ssh deploy --generate
  pass show hf | stoker key add hf me --stdin
  stoker key test work s3://bucket/prefix/"""
_YES = Flag("-y/--yes", "Do not ask.")
_DRY = Flag("--dry-run", "Show what would be queued, with the origin of each value; queue nothing.")
_TAIL = Flag("-n/--tail", "The last N lines only.", "N")
_FOLLOW = Flag("-f/--follow", "Go on as it grows.")

SHELF_ACTIONS = ("ls", "show", "create", "pull", "push", "rename", "rm", "verify", "pin", "unpin")
_SHELF = (
    Flag("--description", "create: what it is.", "TEXT"),
    Flag("--tag", "create, ls: a word to find it by; ls takes those that have all of them.", "TAG", repeats=True),
    Flag("--from", "create, push: the kind of place, where its address does not say.", "KIND"),
    Flag("--endpoint", "create, push: the server, where it is not the provider's own.", "URL"),
    Flag("--key", "create, push: open it with this key of yours.", "NAME"),
    Flag("--no-extract", "create: keep an archive as the file it is."),
    Flag("--checkpoint", "create: take the job's checkpoint directory, not its output."),
    Flag("--refresh", "create: ask the source again, though it was fetched before."),
    Flag("--no-wait", "create: return at once; it is fetched all the same."),
    Flag("-a/--all", "ls: outputs of jobs and every other kind too."),
    Flag("--overwrite", "pull: replace files that are there."),
    _YES,
    _KEY,
)


def _shelf_help(kind: str, name: str, use: str) -> str:
    return f"""\b
create NAME SOURCE  a new version: NAME@1, NAME@2, ... SOURCE is one of
    s3://bucket/dir/  ./dir  model.zip  a URI or path; a trailing / is a tree
    42   42:sub/dir   a job's output, or a part of it (--checkpoint: of that)
    model:NAME@2/sub  data:NAME  what is here already; nothing is copied
show NAME[@V]       where it came from, what came of it, its files
pull NAME[@V] DEST  copy it into a directory
push NAME[@V] URI   write it to s3://bucket/dir/ or a directory, manifest last
rename NAME NEW     all its versions; rm, verify, pin, unpin take NAME[@V]

\b
stoker {kind} create {name} s3://bucket/{name}/ --tag vision
stoker {kind} push {name} s3://bucket/out/{name}/ --key work
stoker run {use} -- python train.py

NAME alone is its latest version that did not fail. No version is given twice."""


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "run",
            "Queue a job and follow it; the exit code is the job's. Ctrl-C detaches.",
            "[CMD]",
            (*_JOB, Flag("-d/--detach", "Queue it and return."), _DRY, _KEY, _RAW),
            starts="always",
            more=_SCRIPT,
        ),
        Verb(
            "submit",
            "Queue a script, a job file, a command, or JSON lines from stdin (-); print the id.",
            "[CMD]",
            (*_JOB, Flag("-w/--wait", "Wait for its end; the exit code is the job's."), _DRY, _KEY),
            starts="always",
            more=_SCRIPT,
        ),
        Verb(
            "ps",
            "List jobs and why they wait.",
            "[JOB...]",
            (
                Flag("-a/--all", "Finished jobs too, however old."),
                Flag("--state", "Only these states, separated by commas.", "STATES"),
                Flag("--name", "Only names that match the pattern.", "GLOB"),
                Flag("--limit", "At most N jobs.", "N"),
                Flag("--before", "Only jobs older than this id.", "ID"),
                Flag("--elements", "One row for each element of an array."),
            ),
        ),
        Verb(
            "show",
            "Show all that is known of a job.",
            "JOB",
            (
                Flag("--spec", "Only its specification."),
                Flag("--env", "Only the names of its variables."),
                Flag("--events", "Only its history."),
                Flag("--attempts", "Only its attempts."),
            ),
        ),
        Verb("explain", "Say why a job waits and what would change that.", "JOB"),
        Verb(
            "logs",
            "Print the log of a job.",
            "JOB",
            (
                _FOLLOW,
                _TAIL,
                Flag("--attempt", "The log of this attempt, not of the last.", "N"),
                Flag("--rank", "The log of this worker, not of worker 0.", "N"),
                Flag("--from", "Begin at this byte.", "OFFSET"),
                _RAW,
            ),
        ),
        Verb("attach", "Follow a job; the exit code is the job's. Ctrl-C detaches.", "JOB", (_RAW,)),
        Verb(
            "wait",
            "Wait until jobs have ended; 0 only when all succeeded.",
            "JOB...",
            (
                Flag("--all", "Until all of them have ended: the default."),
                Flag("--any", "Until the first of them has ended; the exit code is its own."),
                Flag("--timeout", "Give up after this time (90s, 30m); exit code 124.", "DURATION"),
            ),
        ),
        Verb("stop", "Stop jobs: their signal, their grace, then SIGKILL.", "JOB...", (_GRACE, _KEY)),
        Verb("start", "Take stopped or failed jobs back into the queue, or free held ones.", "JOB...", (_KEY,)),
        Verb(
            "rm",
            "Remove finished jobs: their logs, directories and outputs.",
            "[JOB...]",
            (
                Flag("--older-than", "Every job that ended longer ago than this.", "DURATION"),
                Flag("--keep-outputs", "Leave their output artifacts in the store."),
                _YES,
                _KEY,
            ),
        ),
        Verb("rerun", "Queue a job again, with flags that change it.", "JOB", (*_JOB, _SAME_CODE, _KEY)),
        Verb(
            "outputs",
            "List what a job made, print a file of it, copy it out, or write it to a URI.",
            "JOB [DEST]",
            (
                Flag("--overwrite", "pull: replace what is there."),
                Flag("--from", "push: the kind of place, where its address does not say.", "KIND"),
                Flag("--endpoint", "push: the server, where it is not the provider's own.", "URL"),
                Flag("--key", "push: open it by this.", "NAME"),
                _KEY,
            ),
            actions=("ls", "cat", "pull", "push"),
            more="\b\nstoker outputs cat 42:log/loss.csv > loss.csv\nstoker outputs pull 42 ./model\n"
            "stoker outputs push 42 s3://bucket/run-42/ --key work",
        ),
        Verb(
            "cp",
            "Copy an output, a model or data set, or a part of one, to a file or directory.",
            "SOURCE DEST",
            (Flag("--overwrite", "Replace files that are there."), _KEY),
            more="SOURCE is JOB[:path], model:NAME[@V][/path] or data:NAME[@V][/path].\n\n"
            "\b\nstoker cp 42:best.pt .\nstoker cp model:resnet@2/config.json old.json",
        ),
        Verb(
            "checkpoint",
            "List what jobs keep across attempts, show, copy or remove it.",
            "[JOB] [OTHER]",
            (Flag("--overwrite", "restore: replace what is there."), _YES, _KEY),
            actions=("ls", "show", "restore", "rm"),
            more="restore JOB OTHER gives another job, one that does not run, a copy; a word with a slash is a "
            "directory to copy it into. `model create NAME JOB --checkpoint` keeps one. rm spares mirrors.\n\n"
            "\b\nstoker checkpoint restore 42 57\nstoker checkpoint restore 42 ./ckpt",
        ),
        Verb(
            "metrics",
            "Print the metrics of a job as a table, CSV or a plot.",
            "JOB",
            (
                Flag("--name", "Only this metric.", "NAME"),
                Flag("--tail", "The last N points only.", "N"),
                Flag("--plot", "Draw it."),
                Flag("--samples", "Memory, CPU and GPU samples instead."),
            ),
        ),
        Verb("gpu", "List devices and who holds them.", actions=("ls",)),
        Verb(
            "model",
            "Name models, of any source or of what a job made; list, show, copy out, remove.",
            "[NAME] [SOURCE]",
            _SHELF,
            actions=SHELF_ACTIONS,
            more=_shelf_help("model", "resnet", "--model resnet"),
        ),
        Verb(
            "data",
            "Name data sets, of any source or of what a job made; list, show, copy out, remove.",
            "[NAME] [SOURCE]",
            _SHELF,
            actions=SHELF_ACTIONS,
            more=_shelf_help("data", "faces", "--input d=data:faces"),
        ),
        Verb(
            "cache",
            "Show what the store holds, give up what nothing needs, or check its bytes.",
            "",
            (
                Flag("--dry-run", "Prune: show what would go; give up nothing."),
                Flag("--damaged", "Prune: remove what verify set aside, too; it may be all that is left of a file."),
                Flag("--all", "Verify: models, data and outputs too, not only staged inputs."),
                _KEY,
            ),
            actions=("df", "prune", "verify"),
        ),
        Verb(
            "key",
            "Keep the credentials that open sources: list, add, change, try or remove them.",
            "[NAME...]",
            (
                Flag("--stdin", "Read the values from standard input."),
                Flag("--file", "Read the values from a file of yours.", "PATH"),
                Flag("--generate", "Make a git-ssh key pair and print its public half."),
                Flag("--erase", "Forget this part of a key; what is left blank is kept.", "PART", repeats=True),
                _YES,
                _KEY,
            ),
            actions=("ls", "show", "add", "edit", "rotate", "test", "rm"),
            hot=False,
            more=_KEYS,
        ),
        Verb(
            "credit",
            "Show the balance, its history, or check the books.",
            "",
            (Flag("--limit", "At most N lines.", "N"),),
            actions=("balance", "history", "verify"),
        ),
        Verb("serve", "Run the runner in the foreground.", hot=False, starts="never"),
        Verb(
            "service",
            "Start, stop or look at the runner itself; or give it a new key.",
            "",
            (_FOLLOW, _TAIL),
            actions=("status", "start", "stop", "restart", "logs", "rotate-key"),
            hot=False,
            starts="never",
        ),
        Verb("backup", "Copy the database while the runner works, and check the copy.", "[DEST]", hot=False),
        Verb("doctor", "Check what the box needs; each line with its remedy.", hot=False, starts="never"),
        Verb("info", "Show versions, paths and the runner.", hot=False, starts="never"),
        Verb(
            "config",
            "Show the configuration with the origin of each value, check it, or print its paths.",
            "[FILE]",
            actions=("show", "check", "path"),
            hot=False,
            starts="apart",
        ),
        Verb(
            "completion",
            "Print the completion script of a shell, or install it.",
            "[SHELL]",
            actions=("show", "install", "bash", "zsh", "fish"),
            hot=False,
            starts="apart",
        ),
        Verb("schema", "Print the JSON Schema of a document.", "", (), actions=("job", "event", "config"), hot=False),
    )
}

# What people type who come from somewhere else; never shown in the help.
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ls", "list", "status", "squeue", "jobs"), ("ps",)),
    **dict.fromkeys(("cancel", "kill", "scancel"), ("stop",)),
    "add": ("submit",),
    "queue": ("submit",),
    "sbatch": ("submit",),
    "describe": ("show",),
    "inspect": ("show",),
    "why": ("explain",),
    "follow": ("logs", "-f"),
    "tail": ("logs", "-f"),
    "log": ("logs",),
    **dict.fromkeys(("delete", "remove"), ("rm",)),
    "restart": ("start",),
    "resume": ("start",),
    "release": ("start",),
    "retry": ("start",),
    "output": ("outputs",),
    "gpus": ("gpu",),
    "devices": ("gpu",),
    "models": ("model",),
    "credits": ("credit",),
    "keys": ("key",),
    "secret": ("key",),
    "balance": ("credit", "balance"),
    "daemon": ("serve",),
    "version": ("--version",),
    "help": ("--help",),
}
