import io
import json
import pickle
from types import SimpleNamespace

from ray.tune.experiment import Trial
from rich.console import Console
from rich.text import Text

from dsn_ray.progress import FinalProgress, SearchProgress


def trial(number, status, epoch, value, lambda1=0.1):
    result = {"epoch": epoch, "mAP": value, "pictures_per_second": 50.0, "loss_total": 2.0}
    result |= {"waiting_for_data": 0.1, "seconds": 30.0}
    return SimpleNamespace(
        trial_id=str(number),
        status=status,
        last_result=result if epoch else {},
        config={"number": number, "seed": 0, "settings": {"loss.lambda1": lambda1}},
        is_finished=lambda: status in (Trial.TERMINATED, Trial.ERROR),
    )


TRIALS = [
    trial(1, Trial.TERMINATED, 3, 0.5),
    trial(2, Trial.TERMINATED, 1, 0.2, 0.2),
    trial(3, Trial.ERROR, 2, 0.3, 0.3),
    trial(4, Trial.RUNNING, 1, 0.4, 0.4),
    trial(5, Trial.TERMINATED, 1, float("nan"), 0.5),
]


def progress(tmp_path, terminal=False):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    return SearchProgress(console, tmp_path / "trials.jsonl", planned=5, epochs=3), console


def all_end(shown):
    for one in TRIALS:
        if one.status == Trial.ERROR:
            shown.on_trial_error(1, TRIALS, one)
        elif one.status == Trial.TERMINATED:
            shown.on_trial_complete(1, TRIALS, one)


def record(tmp_path):
    return [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]


def test_the_record_has_a_line_for_each_trial_that_ended(tmp_path):
    shown, _ = progress(tmp_path)
    result = {**TRIALS[1].last_result, "seconds": 1.5}
    # Tune tells its callbacks before it notes the result.
    shown.on_trial_result(1, TRIALS, trial(2, Trial.RUNNING, 0, 0.0), result)
    shown.on_trial_result(1, TRIALS, TRIALS[1], result)  # once more, after an interruption
    all_end(shown)
    lines = record(tmp_path)
    assert [(x["number"], x["state"], x["epochs"], x["value"]) for x in lines] == [
        (1, "finished", 3, 0.5),
        (2, "stopped early", 1, 0.2),
        (3, "failed", 2, 0.3),
        (5, "diverged", 1, None),
    ]
    assert lines[1]["parameters"] == {"loss.lambda1": 0.2}
    assert lines[1]["seconds"] == 1.5
    assert (shown.epochs_run, shown.stopped_early) == (7, 1)


def test_what_an_earlier_process_recorded_stays(tmp_path):
    all_end(progress(tmp_path)[0])
    before = record(tmp_path)
    later, _ = progress(tmp_path)
    later.on_trial_complete(1, [], trial(4, Trial.TERMINATED, 3, 0.6))
    after = record(tmp_path)
    assert [line["number"] for line in after] == [1, 2, 3, 4, 5]
    assert [line for line in after if line["number"] != 4] == before


def test_without_a_terminal_each_epoch_is_a_line(tmp_path):
    shown, console = progress(tmp_path)
    with shown:
        before = trial(4, Trial.RUNNING, 0, 0.0, lambda1=0.4)
        shown.on_trial_result(1, TRIALS, before, TRIALS[3].last_result)
        shown.on_trial_result(1, TRIALS, TRIALS[3], TRIALS[3].last_result)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("trial 4/5 epoch 1/3 mAP 0.4000  lambda1=0.4  50 pictures/s")
    assert line.endswith("to the final job")


def test_the_live_view_fits_80_columns_and_names_the_best(tmp_path):
    shown, console = progress(tmp_path, terminal=True)
    with shown:
        all_end(shown)
        shown.on_step_end(1, TRIALS)
    text = console.file.getvalue()
    assert "best mAP 0.5000" in text
    assert "4 of 5 trials done, 7 epochs" in text
    assert "50 pictures/s, 0.5 min an epoch, 10% waiting for data" in text
    assert max(map(len, Text.from_ansi(text).plain.splitlines())) <= 80
    assert "stopped early" in text
    assert "diverged" in text
    assert "running" in text


def test_the_best_and_those_that_run_are_never_out_of_sight(tmp_path):
    shown, console = progress(tmp_path, terminal=True)
    trials = [
        trial(1, Trial.RUNNING, 1, 0.2),
        trial(2, Trial.TERMINATED, 3, 0.5),
        trial(3, Trial.ERROR, 3, 0.9),
        *(trial(number, Trial.TERMINATED, 1, 0.1) for number in range(4, 24)),
    ]
    for one in trials:
        one.config["settings"] = {
            **{"loss.lambda1": 0.0704123, "loss.lambda2": 1.96234, "loss.temperature": 0.0818},
            **{"memory.k": 27, "optimizer.learning_rate": 0.00012345},
        }
    shown.on_trial_error(1, trials, trials[2])
    for one in (trials[1], *trials[3:]):
        shown.on_trial_complete(1, trials, one)
    with shown:
        shown.on_step_end(1, trials)
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    assert max(map(len, lines)) <= 80
    numbered = {line.split()[0]: line for line in lines if line[:4].strip().isdigit()}
    assert list(numbered) == ["1", "2", *map(str, range(16, 24))]
    assert numbered["1"].rstrip().endswith("running")
    assert numbered["2"].rstrip().endswith("best")
    assert any("best mAP 0.5000" in line for line in lines)


def test_tune_can_pickle_it_while_it_shows(tmp_path):
    shown, _ = progress(tmp_path, terminal=True)
    with shown:
        all_end(shown)
        assert pickle.loads(pickle.dumps(shown)).epochs_run == 7


def test_final_trainings_are_shown_by_name():
    console = Console(file=io.StringIO(), width=80)
    shown = FinalProgress(console, ["sketchy, baseline, seed 0", "sketchy, both, seed 0"], [3, 5])
    result = trial(1, Trial.RUNNING, 1, 0.0).last_result
    running = trial(1, Trial.RUNNING, 0, 0.0)
    with shown:
        shown.on_trial_result(1, [running], running, result)
        shown.on_trial_result(1, [running], running, {"epoch": 3, "rows": []})
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("sketchy, both, seed 0: epoch 1/5 loss 2.000 50 pictures/s")
    assert line.endswith("to the end")
