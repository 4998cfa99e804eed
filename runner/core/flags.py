"""The flags of a job, declared once: the fast parser, typer's options, `#STOKER` lines and the docs are made from this.

No import at all: the client reads it on every command.
"""

from __future__ import annotations

# The longest reference to a job, and the most bytes of one batch: both ends of the wire hold them.
REF_MAX = 100
BATCH_MAX_BYTES = 256 << 20


class JobFlag:
    """One flag of `run` and `submit`: what it is called, which key of the job document it fills, how it reads."""

    __slots__ = ("flag", "help", "key", "metavar", "repeats")

    def __init__(self, flag: str, key: str, metavar: str, repeats: bool, help: str) -> None:  # noqa: A002
        self.flag = flag
        self.key = key
        self.metavar = metavar
        self.repeats = repeats
        self.help = help


_OUTPUT = (
    "Make DIR the output directory: what lands there is saved, for `stoker outputs pull`, and does not stay in DIR; "
    "the job does not see what DIR held before. With =URI it is written there too: out=s3://bucket/runs/{job}/; "
    "key=NAME, endpoint=URL and from=KIND go with it as with an input."
)
_CHECKPOINT = (
    "Make DIR the checkpoint directory; it outlives attempts. With =URI its last consistent state is kept there too, "
    "every 10m while the job runs (,every=2m) and once it has ended; ,key=NAME opens the place. A job that finds its "
    "own checkpoint directory empty begins with what is there: leave out {job} to go on from another job's. Without "
    "DIR, =s3://bucket/ckpt/{job}/, it is $STOKER_CHECKPOINT_DIR. A state in which nothing changed for 2s is taken for "
    "consistent, unless the job holds the directory by flock."
)
_INPUT = (
    "Fetch URI before the job needs a GPU; rw gives a private copy, path=SUB/DIR only that part of it, refresh asks "
    "the source again. from=KIND says what the URI alone does not (from=kaggle takes type=competition, dataset or "
    "kernel), endpoint=URL which server has it, key=NAME which of your keys opens it, digest=SHA256 which tree it must "
    "be. A .zip or .tar, .tar.gz … is unpacked, one directory that holds all of it is kept; no-extract leaves it the "
    "file that it is. model:NAME, data:NAME and job:42/sub are what is here already."
)
_MODEL = "Base model, of `stoker model ls` or at a URI: the input named model."
_KEY = "Give the job one of your keys, as files that its libraries find; $STOKER_KEYS_DIR has them."
_TIME = "Time limit of an attempt: 90s, 30m, 1h30m, 2d, 01:30:00; a bare number is seconds."
_SNAPSHOT = (
    "Keep a copy of the work tree (else the directory) and run from it: without what .gitignore and .stokerignore name."
)
_GIT = "Run from a checkout of its own of a repository; --cwd is a directory of it. ,key=NAME opens it."
JOB_FLAGS = (
    JobFlag("--name", "name", "NAME", False, "Name of the job; an adjective and a noun when not given."),
    JobFlag("--gpus", "gpus", "N", False, "GPUs a worker needs; 0 hides them all."),
    JobFlag("--cpus", "cpus", "N", False, "Cores, fractions allowed; 0 counts nothing. A stated value is a limit."),
    JobFlag("--mem", "mem", "SIZE", False, "Main memory (8G is 8 GiB); a limit where the box can enforce one."),
    JobFlag("--time", "time", "DURATION", False, _TIME),
    JobFlag("--priority", "priority", "N", False, "-1000 to 1000; higher starts first."),
    JobFlag("--env", "env", "NAME[=VALUE]", True, "Set a variable, or pass one of yours that looks secret."),
    JobFlag("--env-file", "env_file", "FILE", True, "Variables from a file of NAME=VALUE lines."),
    JobFlag("--cwd", "cwd", "DIR", False, "Working directory; yours when not given."),
    JobFlag("--snapshot", "snapshot", "", False, _SNAPSHOT),
    JobFlag("--git", "git", "URL[@REF]", False, _GIT),
    JobFlag("--input", "input", "NAME=URI[,rw]", True, _INPUT),
    JobFlag("--key", "key", "NAME", True, _KEY),
    JobFlag("--model", "input", "NAME[@V]", False, _MODEL),
    JobFlag("--output", "output", "DIR[=URI]", False, _OUTPUT),
    JobFlag("--keep-model", "keep_model", "NAME", False, "On success make the output the next version of this model."),
    JobFlag("--checkpoint", "checkpoint", "DIR[=URI]", False, _CHECKPOINT),
    JobFlag("--requirements", "requirements", "FILE", False, "Run in a virtual environment built once from FILE."),
    JobFlag("--metric", "metric", "NAME=REGEX", True, "Read a metric from the log; one group catches the number."),
    JobFlag("--param", "param", "NAME=VALUE", True, "A parameter, given to the job in STOKER_PARAMS_FILE."),
    JobFlag("--retries", "retries", "N", False, "Tries after a failure of the job's own."),
    JobFlag("--requeue", "requeue", "always|never", False, "What to do when the box or the runner went away."),
    JobFlag("--grace", "grace", "DURATION", False, "Time between the stop signal and SIGKILL; 120s."),
    JobFlag("--signal", "signal", "NAME", False, "The signal that asks the job to stop; TERM."),
    JobFlag("--array", "array", "FIRST-LAST[%N]", False, "One element an index, at most N at once."),
    JobFlag("--executor", "executor", "process", False, "How to run it."),
)
