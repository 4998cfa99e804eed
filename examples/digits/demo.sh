#!/usr/bin/env bash
# The main job, end to end: a real model trained under a private runner. Run it with `make demo`.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)

# Example prices, for a runner that is started here.
export STOKER_CREDITS__GPU_HOUR=${STOKER_CREDITS__GPU_HOUR:-1}
export STOKER_CREDITS__CPU_HOUR=${STOKER_CREDITS__CPU_HOUR:-0.05}
# The job's Python is the caller's own, never the product's; uv, behind it, only builds the environment faster.
export PATH="$PATH:$root/.venv-tools/bin"
stoker() { "$root/.venv/bin/stoker" --private "$@"; }
show() {
    printf '\n$ stoker %s\n' "$*"
    stoker "$@"
}

stoker service start >/dev/null
if [ "$(stoker gpu ls --format name)" ]; then
    requirements=requirements-gpu.txt training=(train_gpu.py) device=(--gpus 1)
else
    requirements=requirements.txt training=(train.py) device=(--gpus 0)
fi

show run --name digits "${device[@]}" --requirements "$requirements" --input digits=data -- python "${training[@]}"
show metrics @last --name loss --plot
show outputs ls @last
show show @last
show credit balance
printf '\nThe private runner stays up for the next job. Stop it with: %s service stop\n' "$root/.venv/bin/stoker"
