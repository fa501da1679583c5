import io
import json
import pickle
from types import SimpleNamespace

from ray.tune.experiment import Trial
from rich.console import Console

from dsn_ray.progress import SweepProgress


def trial(status, epoch, value, lambda1=0.1):
    result = {"epoch": epoch, "mAP": value, "pictures_per_second": 50.0} if epoch else {}
    return SimpleNamespace(
        status=status,
        last_result=result,
        config={"loss.lambda1": lambda1},
        is_finished=lambda: status in (Trial.TERMINATED, Trial.ERROR),
    )


TRIALS = [
    trial(Trial.TERMINATED, 3, 0.5),
    trial(Trial.TERMINATED, 1, 0.2, 0.2),
    trial(Trial.ERROR, 2, 0.3, 0.3),
    trial(Trial.RUNNING, 1, 0.4, 0.4),
    trial(Trial.TERMINATED, 1, float("nan"), 0.5),
]


def progress(tmp_path, terminal=False):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    return SweepProgress(console, tmp_path / "trials.jsonl", planned=5, epochs=3), console


def test_the_record_has_a_line_for_each_trial_that_ended(tmp_path):
    shown, _ = progress(tmp_path)
    shown.on_trial_complete(1, TRIALS, TRIALS[1])
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [(x["number"], x["state"], x["epochs"], x["value"]) for x in lines] == [
        (1, "finished", 3, 0.5),
        (2, "stopped early", 1, 0.2),
        (3, "failed", 2, 0.3),
        (5, "diverged", 1, None),
    ]
    assert lines[1]["parameters"] == {"loss.lambda1": 0.2}


def test_without_a_terminal_each_epoch_is_a_line(tmp_path):
    shown, console = progress(tmp_path)
    with shown:
        shown.on_trial_result(1, TRIALS, TRIALS[3], TRIALS[3].last_result)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("trial 4/5 epoch 1/3 mAP 0.4000  lambda1=0.4  50 pictures/s")


def test_the_live_view_fits_80_columns_and_names_the_best(tmp_path):
    shown, console = progress(tmp_path, terminal=True)
    with shown:
        shown.on_step_end(1, TRIALS)
    text = console.file.getvalue()
    assert "best mAP 0.5000" in text
    assert "4 of 5 trials done, 8 epochs" in text
    assert "stopped early" in text
    assert "diverged" in text


def test_tune_can_pickle_it_while_it_shows(tmp_path):
    shown, _ = progress(tmp_path, terminal=True)
    with shown:
        assert pickle.loads(pickle.dumps(shown)).planned == 5
