"""What orchestration costs: a sweep of 8 trials beside the time that their steps took, in one run.

    python -m benchmarks.overhead --work FOLDER [--epochs N] [--px N]

Runs the sweep command on all of an embedded data set, one trial at a time and each to its end, and
stops it by Ctrl-C before the final job. Choose epochs and pictures so that a trial's steps take two
minutes. The time of the command is everything from its start: Ray's, the pictures', each trial's
start, validation and checkpoints.
"""

import argparse
import signal
import time
from pathlib import Path

from benchmarks.sweep import start_sweep
from dsn_ray.record import read_lines

TRIALS = 8
SPACE = """
parameters:
  loss.lambda1: {{distribution: loguniform, low: 0.01, high: 1.0}}
sampler: {{name: random}}
scheduler: {{name: none}}
budget: {{trials: {trials}}}
set: {{train.epochs: {epochs}, data.per_class: null, data.px: {px}}}
"""


def main() -> None:
    """Runs the sweep and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".bench"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--px", type=int, default=64, help="side of the pictures")
    parsed = parser.parse_args()
    space = SPACE.format(trials=TRIALS, epochs=parsed.epochs, px=parsed.px)
    started = time.perf_counter()
    sweep, run = start_sweep(parsed.work, "overhead", space)
    try:
        while len(trials := read_lines(run / "trials.jsonl")) < TRIALS:
            if sweep.poll() is not None:
                raise SystemExit(
                    f"The sweep ended after {len(trials)} trials; its log is in {parsed.work}."
                )
            time.sleep(0.5)
        took = time.perf_counter() - started
    finally:
        if sweep.poll() is None:
            sweep.send_signal(signal.SIGINT)
            sweep.wait(timeout=120)
    steps = [trial["seconds"] for trial in trials]
    each = f"{min(steps):.0f} to {max(steps):.0f} s each"
    print(f"{TRIALS} trials of {parsed.epochs} epochs at {parsed.px} px, {each}")
    print(f"command {took:.0f} s, steps {sum(steps):.0f} s, ratio {took / sum(steps):.3f}")


if __name__ == "__main__":
    main()
