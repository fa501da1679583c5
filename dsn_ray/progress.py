"""What a person sees of a sweep and of a training while they run, and the record of the trials."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Self

from ray import tune
from ray.train import UserCallback
from ray.tune.experiment import Trial
from ray.util.queue import Queue
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dsn_ray.config import OBJECTIVE
from dsn_ray.space import describe

State = Literal["running", "finished", "stopped early", "diverged", "failed"]
_ROWS_SHOWN = 10


class TrialsView(tune.Callback):
    """Shows trials as they run: a live view on a terminal, else plain lines."""

    def __init__(self, console: Console) -> None:
        """Shows nothing yet."""
        self._console = console
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: Tune keeps its callbacks in a file."""
        mine = ("_console", "_live")
        return {key: value for key, value in self.__dict__.items() if key not in mine}

    def __enter__(self) -> Self:
        """Opens the live view."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last view on the screen."""
        if self._live:
            self._live.stop()
            self._live = None

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Redraws the view."""
        if self._live:
            self._live.update(self._view(trials))

    def _view(self, trials: list[Trial]) -> RenderableType:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        (self._live.console if self._live else self._console).print(text, soft_wrap=True)


class SearchProgress(TrialsView):
    """Shows the trials of a search and keeps `trials.jsonl`.

    A trial is known by its number and its seed; what an earlier process recorded stays.
    """

    def __init__(self, console: Console, record: Path, planned: int, epochs: int) -> None:
        """Starts the clock.

        Args:
            console: where to show.
            record: the file that gets one line per finished trial.
            planned: trials that the search will run, those of earlier processes included.
            epochs: epochs of a full trial.
        """
        super().__init__(console)
        self._planned, self._epochs, self._record = planned, epochs, record
        self._started = time.monotonic()
        self._epochs_seen = 0
        self._seconds: dict[str, float] = {}
        text = record.read_text(encoding="utf-8") if record.exists() else ""
        self._lines = {_key(line): line for line in map(json.loads, text.splitlines())}

    @property
    def epochs_run(self) -> int:
        """Epochs of all trials that have ended."""
        return sum(line["epochs"] for line in self._lines.values())

    @property
    def stopped_early(self) -> int:
        """Trials that the scheduler stopped."""
        return sum(line["state"] == "stopped early" for line in self._lines.values())

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tells of a finished epoch."""
        if result["epoch"] <= _epoch(trial):
            return  # a training that was interrupted tells its last one again
        self._epochs_seen += 1
        seconds = self._seconds.get(trial.trial_id, 0.0)
        self._seconds[trial.trial_id] = seconds + result.get("seconds", 0.0)
        if not self._live and OBJECTIVE in result:
            self._say(
                f"{self._name(trial)} epoch {result['epoch']}/{self._epochs} "
                f"mAP {result[OBJECTIVE]:.4f}  {describe(trial.config['settings'])}  "
                f"{result['pictures_per_second']:.0f} pictures/s  {self._time_left(trials)}"
            )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Writes the record anew, and tells of a trial that was stopped."""
        state = self.how_it_ended(trial)
        self._write(trial, state)
        if not self._live and state != "finished":
            self._say(f"{self._name(trial)} {state}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Writes the record anew, and tells."""
        self._write(trial, "failed")
        self._say(f"{self._name(trial)} failed; the log says why")

    def _name(self, trial: Trial) -> str:
        return f"trial {trial.config['number']}/{self._planned}"

    def state_of(self, trial: Trial) -> State:
        """How a trial ended, or that it has not."""
        if trial.status == Trial.ERROR:
            return "failed"
        if trial.status != Trial.TERMINATED:
            return "running"
        return self.how_it_ended(trial)

    def how_it_ended(self, trial: Trial) -> State:
        """What a trial that has just ended came to."""
        if _value(trial) is None:
            return "diverged"
        return "finished" if _epoch(trial) >= self._epochs else "stopped early"

    def _write(self, trial: Trial, state: State) -> None:
        line = {
            "number": trial.config["number"],
            "seed": trial.config["seed"],
            "parameters": trial.config["settings"],
            "value": _value(trial),
            "epochs": _epoch(trial),
            "state": state,
            "seconds": round(self._seconds.get(trial.trial_id, 0.0), 1),
        }
        self._lines[_key(line)] = line
        unfinished = self._record.with_suffix(".unfinished")
        text = "".join(json.dumps(self._lines[key]) + "\n" for key in sorted(self._lines))
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self._record)

    def _view(self, trials: list[Trial]) -> RenderableType:
        rows = dict(self._lines)
        for trial in trials:
            if not trial.is_finished():
                line = {"value": _value(trial), "epochs": _epoch(trial), "state": "running"}
                line |= {"parameters": trial.config["settings"], **trial.config}
                rows[_key(line)] = line
        rated = [row for row in rows.values() if row["value"] is not None]
        rated = [row for row in rated if row["state"] in ("running", "finished", "stopped early")]
        best = max(rated, key=lambda row: (row["epochs"], row["value"]), default=None)
        latest = sorted(rows, reverse=True)
        latest.sort(key=lambda key: rows[key]["state"] != "running")
        latest.sort(key=lambda key: rows[key] is not best)
        table = Table("trial", "settings", "epoch", "mAP", "", box=None, header_style="bold")
        for key in sorted(latest[:_ROWS_SHOWN]):
            row = rows[key]
            table.add_row(
                str(row["number"]),
                describe(row["parameters"]),
                f"{row['epochs']}/{self._epochs}",
                "" if row["value"] is None else f"{row['value']:.4f}",
                "best" if row is best else row["state"],
            )
        head = f"{len(self._lines)} of {self._planned} trials done, {self.epochs_run} epochs"
        if best is not None:
            head += f", best mAP {best['value']:.4f}"
        speed = _speed([trial.last_result or {} for trial in trials if not trial.is_finished()])
        foot = ", ".join(filter(None, (speed, self._time_left(trials))))
        return Group(table, Text(head, style="cyan"), Text(foot, style="cyan"))

    def _time_left(self, trials: list[Trial]) -> str:
        if not self._epochs_seen:
            return "time left not known yet"
        running = [trial for trial in trials if not trial.is_finished()]
        waiting = max(0, self._planned - len(self._lines) - len(running))
        left = sum(self._epochs - _epoch(trial) for trial in running) + waiting * self._epochs
        return f"{_minutes(self._started, self._epochs_seen, left)} to the final job"


class FinalProgress(TrialsView):
    """Shows the trainings of the final job."""

    def __init__(self, console: Console, names: list[str], epochs: list[int]) -> None:
        """Starts the clock.

        Args:
            console: where to show.
            names: of the trainings.
            epochs: of each.
        """
        super().__init__(console)
        self._names, self._epochs = names, epochs
        self._started = time.monotonic()
        self._epochs_seen = 0

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tells of a finished epoch."""
        if "pictures_per_second" not in result or result["epoch"] <= _epoch(trial):
            return
        self._epochs_seen += 1
        if not self._live:
            self._say(f"{self._line(trial, result)}  {self._time_left(trials)}")

    def _line(self, trial: Trial, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        text = f"{self._names[number]}: epoch {result.get('epoch', 0)}/{self._epochs[number]}"
        if "loss_total" in result:
            text += f" loss {result['loss_total']:.3f}"
            text += f" {result['pictures_per_second']:.0f} pictures/s"
        return text

    def _time_left(self, trials: list[Trial]) -> str:
        if not self._epochs_seen:
            return "time left not known yet"
        left = sum(self._epochs)
        left -= sum(
            self._epochs[trial.config["number"]] if trial.is_finished() else _epoch(trial)
            for trial in trials
        )
        return f"{_minutes(self._started, self._epochs_seen, left)} to the end"

    def _view(self, trials: list[Trial]) -> RenderableType:
        open_trials = [trial for trial in trials if not trial.is_finished()]
        running = [Text(self._line(trial, trial.last_result or {})) for trial in open_trials]
        done = sum(trial.is_finished() for trial in trials)
        head = f"{done} of {len(self._names)} trainings done, {self._time_left(trials)}"
        speed = _speed([trial.last_result or {} for trial in open_trials])
        return Group(
            *running, *([Text(speed, style="cyan")] if speed else []), Text(head, style="cyan")
        )


def _key(line: dict[str, Any]) -> tuple[int, int]:
    return line["number"], line["seed"]


def _minutes(started: float, done: int, left: int) -> str:
    """How long what is left takes at most, at the pace of what is done."""
    seconds = (time.monotonic() - started) / done * left
    return f"at most {seconds / 60:.0f} min" if seconds > 90 else "a minute"


def _speed(results: list[dict[str, Any]]) -> str:
    """How fast the trainings that run were in their last epoch; nothing before the first one."""
    rated = [result for result in results if "pictures_per_second" in result]
    if not rated:
        return ""
    pictures = sum(result["pictures_per_second"] for result in rated)
    waiting = sum(result["waiting_for_data"] for result in rated) / len(rated)
    minutes = sum(result["seconds"] for result in rated) / len(rated) / 60
    return f"{pictures:.0f} pictures/s, {minutes:.1f} min an epoch, {waiting:.0%} waiting for data"


def _epoch(trial: Trial) -> int:
    return int((trial.last_result or {}).get("epoch", 0))


def _value(trial: Trial) -> float | None:
    """The trial's objective; None before its first epoch, and where it has diverged."""
    value = (trial.last_result or {}).get(OBJECTIVE)
    return None if value is None or math.isnan(value) else float(value)


@contextmanager
def training_progress(
    console: Console, name: str, epochs: int, told: Callable[[dict[str, Any]], None]
) -> Iterator[UserCallback]:
    """Shows one training's epochs as they end.

    Args:
        console: where to show.
        name: of the training.
        epochs: of the training.
        told: is given each epoch's metrics.

    Yields:
        The callback to give to Ray Train.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"{name}: starting")

        def show() -> None:
            while (metrics := queue.get()) is not None:
                told(metrics)
                text = (
                    f"{name}: epoch {metrics['epoch']}/{epochs} loss {metrics['loss_total']:.3f} "
                    f"{metrics['pictures_per_second']:.0f} pictures/s"
                )
                bar.update(task, description=text)
                if not console.is_terminal:
                    console.print(text, soft_wrap=True)

        shower = Thread(target=show, daemon=True)
        shower.start()
        try:
            yield _Relay(queue)
        finally:
            queue.put(None)
            shower.join(timeout=10)
            queue.shutdown(force=True)


class _Relay(UserCallback):
    """Sends each epoch's metrics from Train's controller to the command."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Passes on the first rank's metrics, which are those of all."""
        self._queue.put(metrics[0])
