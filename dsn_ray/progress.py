"""What a person sees of a sweep and of a training while they run, and the record of the trials."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Self

from ray import tune
from ray.train import UserCallback
from ray.tune.experiment import Trial
from ray.util.queue import Queue
from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dsn_ray.space import describe
from dsn_ray.worker import OBJECTIVE

State = Literal["running", "finished", "stopped early", "diverged", "failed"]
_ROWS_SHOWN = 10


class SweepProgress(tune.Callback):
    """Shows trials as they run and keeps `trials.jsonl`; plain lines where there is no terminal.

    Attributes:
        planned: trials that the sweep will run.
        epochs: epochs of a trial that is not stopped early.
    """

    def __init__(self, console: Console, record: Path, planned: int, epochs: int) -> None:
        """Starts the clock.

        Args:
            console: where to show.
            record: the file that gets one line per finished trial.
            planned: trials that the sweep will run.
            epochs: epochs of a full trial.
        """
        self.planned, self.epochs = planned, epochs
        self._record, self._console = record, console
        self._started = time.monotonic()
        self._epochs_before: int | None = None
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

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tells of a finished epoch."""
        if self._epochs_before is None:
            self._epochs_before = _epochs_done(trials) - 1
        if not self._live and OBJECTIVE in result:
            self._say(
                f"trial {trials.index(trial) + 1}/{self.planned} epoch {result['epoch']}/"
                f"{self.epochs} mAP {result[OBJECTIVE]:.4f}  {describe(trial.config)}  "
                f"{result['pictures_per_second']:.0f} pictures/s  {self._time_left(trials)}"
            )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Writes the record anew, and tells of a trial that was stopped."""
        self._write(trials, trial)
        state = self._how_it_ended(trial)
        if not self._live and state != "finished":
            self._say(f"trial {trials.index(trial) + 1}/{self.planned} {state}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Writes the record anew, and tells."""
        self._write(trials, trial)
        self._say(f"trial {trials.index(trial) + 1}/{self.planned} failed; the log says why")

    def state_of(self, trial: Trial) -> State:
        """How a trial ended, or that it has not."""
        if trial.status == Trial.ERROR:
            return "failed"
        if trial.status != Trial.TERMINATED:
            return "running"
        return self._how_it_ended(trial)

    def _how_it_ended(self, trial: Trial) -> State:
        if _value(trial) is None:
            return "diverged"
        return "finished" if _epoch(trial) >= self.epochs else "stopped early"

    def _write(self, trials: list[Trial], ended: Trial) -> None:
        lines = []
        for number, trial in enumerate(trials, start=1):
            state = self.state_of(trial)
            if state == "running" and trial is not ended:
                continue
            if state == "running":
                state = self._how_it_ended(trial)
            lines.append(
                json.dumps(
                    {
                        "number": number,
                        "parameters": trial.config,
                        "value": _value(trial),
                        "epochs": _epoch(trial),
                        "state": state,
                    }
                )
            )
        unfinished = self._record.with_suffix(".unfinished")
        unfinished.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        unfinished.replace(self._record)

    def _view(self, trials: list[Trial]) -> Group:
        table = Table("trial", "settings", "epoch", "mAP", "", box=None, header_style="bold")
        best = _best(trials)
        for number, trial in list(enumerate(trials, start=1))[-_ROWS_SHOWN:]:
            value = _value(trial)
            table.add_row(
                str(number),
                describe(trial.config),
                f"{_epoch(trial)}/{self.epochs}",
                "" if value is None else f"{value:.4f}",
                "best" if trial is best else self.state_of(trial),
            )
        ended = sum(t.is_finished() for t in trials)
        head = f"{ended} of {self.planned} trials done, {_epochs_done(trials)} epochs"
        if best is not None:
            head += f", best mAP {best.last_result[OBJECTIVE]:.4f}"
        return Group(table, Text(f"{head}, {self._time_left(trials)}", style="cyan"))

    def _time_left(self, trials: list[Trial]) -> str:
        done = _epochs_done(trials) - (self._epochs_before or 0)
        if done <= 0:
            return "time left not known yet"
        open_epochs = sum(self.epochs - _epoch(t) for t in trials if not t.is_finished())
        open_epochs += (self.planned - len(trials)) * self.epochs
        seconds = (time.monotonic() - self._started) / done * open_epochs
        left = f"at most {seconds / 60:.0f} min" if seconds > 90 else "a minute"
        return f"{left} to the final job"

    def _say(self, text: str) -> None:
        (self._live.console if self._live else self._console).print(text, soft_wrap=True)


def _epoch(trial: Trial) -> int:
    return int((trial.last_result or {}).get("epoch", 0))


def _value(trial: Trial) -> float | None:
    """The trial's objective; None before its first epoch, and where it has diverged."""
    value = (trial.last_result or {}).get(OBJECTIVE)
    return None if value is None or math.isnan(value) else float(value)


def _epochs_done(trials: list[Trial]) -> int:
    return sum(map(_epoch, trials))


def _best(trials: list[Trial]) -> Trial | None:
    rated = [trial for trial in trials if _value(trial) is not None]
    return max(rated, key=lambda t: (_epoch(t), t.last_result[OBJECTIVE]), default=None)


@contextmanager
def training_progress(console: Console, name: str, epochs: int) -> Iterator[UserCallback]:
    """Shows one training's epochs as they end.

    Args:
        console: where to show.
        name: of the training.
        epochs: of the training.

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
