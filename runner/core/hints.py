"""What each key of a job document should look like, for whoever wrote it wrong."""

from __future__ import annotations

SEE_SCHEMA = "`stoker schema job` describes the document"
HINTS = {
    "array": "first and last index, and how many at once: 0-99%8",
    "command": "a job needs a command: stoker run -- python train.py",
    "cpus": "cpus is a number of cores, like 4 or 0.25",
    "code_digest": "of code that was kept: `stoker rerun JOB --same-code` fills it in",
    "digest": "the 64 hex digits of a tree, as `stoker show JOB --json` has them",
    "endpoint": "the URL of a server: https://host, or http://host:port",
    "env": "a name is letters, digits and underscore: --env NAME=VALUE",
    "every": "at least 10s: write it as 30s, 10m or 1h30m",
    "from": "the kind of source, like aws, gcp, azure, wasabi, git, hf or kaggle",
    "type": "of a source from kaggle: competition, dataset or kernel",
    "git": "a repository: --git https://host/x.git@REF",
    "gpus": "gpus is a whole number of devices, like 1",
    "grace": "write it as 90s, 30m, 1h30m or 2d",
    "key": "the name of a key of yours; `stoker key ls` lists them",
    "kind": "leave it out: a job of kind training runs any command to its end",
    "mem": "write it as 512M, 8G or 1.5T",
    "name": "letters, digits, dot, dash and underscore; it begins with a letter or digit, 63 characters at most",
    "pass_env": "a name is letters, digits and underscore: --env NAME",
    "priority": "a whole number from -1000 to 1000",
    "snapshot": "true or false, and not beside --git: a job runs from one of them",
    "signal": "a name like TERM, INT or USR1",
    "time": "write it as 90s, 30m, 1h30m or 2d",
}
