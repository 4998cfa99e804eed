"""What both trainings share: the data, and how a job reports, keeps checkpoints and saves what it made."""

import json
import os
import time
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

ENOUGH = 0.95


def load():
    """Return (pixels, digits) to train on, then held out ones, from the job's input."""
    folder = os.environ.get("STOKER_INPUT_digits", Path(__file__).with_name("data"))
    rows = np.loadtxt(Path(folder, "digits.csv.gz"), delimiter=",", dtype=np.float32)
    pixels, digits = rows[:, :-1] / 16, rows[:, -1].astype(np.int64)
    seen, held_out, seen_digits, held_out_digits = train_test_split(
        pixels, digits, test_size=0.25, stratify=digits, random_state=0
    )
    return (seen, seen_digits), (held_out, held_out_digits)


def order(epoch, count):
    """Return the order of the examples in an epoch: the same after a resume as without one."""
    return np.random.default_rng(epoch).permutation(count)


class Run:
    """One training: prints and records its progress, resumes from the last checkpoint."""

    def __init__(self):
        self.checkpoint = Path(os.environ.get("STOKER_CHECKPOINT_DIR", "."), "digits.npz")
        self.output = Path(os.environ.get("STOKER_OUTPUT_DIR", "."))
        self.metrics = Path(os.environ.get("STOKER_METRICS_FILE", os.devnull))
        self.began = time.monotonic()

    def resume(self, weights):
        """Return (first epoch, weights): where the last attempt was, else the beginning."""
        if not self.checkpoint.exists():
            return 0, weights
        with np.load(self.checkpoint) as kept:
            print(f"resuming after epoch {kept['epoch']}")
            return int(kept["epoch"]) + 1, {name: kept[name] for name in weights}

    def report(self, epoch, weights, *, loss, accuracy):
        """Tell how an epoch went and keep its weights, by one rename: a kill leaves this checkpoint or the last."""
        print(f"epoch {epoch:3d}  loss={loss:.4f}  accuracy={accuracy:.4f}", flush=True)
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": epoch, "loss": loss, "accuracy": accuracy}) + "\n")
        partial = self.checkpoint.with_suffix(".partial.npz")
        np.savez(partial, epoch=epoch, **weights)
        partial.replace(self.checkpoint)

    def finish(self, weights, *, accuracy, where):
        """Save the model; end with 1 where it has not learned."""
        np.savez(self.output / "model.npz", **weights)
        print(f"trained on {where} in {time.monotonic() - self.began:.1f}s: accuracy={accuracy:.4f}")
        if accuracy <= ENOUGH:
            raise SystemExit(f"accuracy {accuracy:.4f} is not above {ENOUGH}")
