"""What successive halving saves, and what that costs, told from trials that all ran to their end.

    python -m benchmarks.asha RUN

RUN is a run's folder whose search had one trial at a time, settings that do not depend on earlier
trials' values (a grid, random or QMC) and no scheduler, such as that of `benchmarks/overhead.py`.
Its epochs are shown to the scheduler in the order in which they came; a trial that it stops is cut
there.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import optuna
import yaml
from ray.tune.schedulers import TrialScheduler

from dsn_ray.config import OBJECTIVE
from dsn_ray.space import Space
from dsn_ray.stopping import make_scheduler
from dsn_ray.study import STUDY, open_journal


def main() -> None:
    """Prints what would have been."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    run = parser.parse_args().run
    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    epochs = tree["config"]["train"]["epochs"]
    space = Space.model_validate({**tree["space"], "scheduler": {"name": "asha"}})
    study = optuna.load_study(study_name="search", storage=open_journal(run / STUDY))
    ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    scheduler = make_scheduler(space, OBJECTIVE, epochs)
    spent, kept = 0, []
    for trial in ended:
        curve = sorted(trial.intermediate_values.items())
        known = SimpleNamespace(config={"number": trial.number + 1})
        scheduler.on_trial_add(None, known)
        for epoch, value in curve:
            spent += 1
            result = {"epoch": epoch, OBJECTIVE: value}
            if scheduler.on_trial_result(None, known, result) == TrialScheduler.STOP:
                break
        if epoch == epochs:
            kept.append(value)
    best = max(trial.value for trial in ended if trial.value is not None)
    whole = len(ended) * epochs
    print(f"{len(ended)} trials of {epochs} epochs: {spent} epochs instead of {whole}")
    print(f"best validation mAP@all {max(kept):.4f} instead of {best:.4f}")


if __name__ == "__main__":
    main()
