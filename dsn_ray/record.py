"""What a run writes down of itself: its epochs, when and on what it ran; and reading it back."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ray import tune
from ray.tune.experiment import Trial

from dsn_ray.errors import UserError

EPOCHS, SESSIONS = "epochs.jsonl", "sessions.jsonl"
_PACKAGES = ("dsn-ray", "torch", "torchvision", "ray", "optuna", "numpy")
_KEPT = ("mAP", "pictures_per_second", "waiting_for_data", "seconds")


class Name(NamedTuple):
    """Of a training, for people."""

    title: str
    dataset: str


NameOf = Callable[[dict[str, Any]], Name]
"""Names a training by what was proposed to Tune."""


def name_of_trial(dataset: str, proposal: dict[str, Any]) -> Name:
    """Names a trial of a search."""
    return Name(f"trial {proposal['number']}, seed {proposal['seed']}", dataset)


def name_of_final(names: Sequence[Name], proposal: dict[str, Any]) -> Name:
    """Names a training of the final job."""
    return names[proposal["number"]]


class EpochLog(tune.Callback):
    """Adds a line to a file for each epoch of each training.

    A training that goes on after an interruption may write an epoch again; the last line counts.
    """

    def __init__(self, path: Path, name_of: NameOf) -> None:
        """Writes nothing yet.

        Args:
            path: the file.
            name_of: names a training by its proposal.
        """
        self._path, self._name_of = path, name_of

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Writes the line."""
        if "loss_total" not in result:
            return
        title, dataset = self._name_of(trial.config)
        kept = {k: v for k, v in result.items() if k.startswith("loss_") or k in _KEPT}
        line = {"training": title, "dataset": dataset, "epoch": result["epoch"], **kept}
        _add_line(self._path, line)


def _add_line(path: Path, line: dict[str, Any]) -> None:
    """Adds to a JSON-lines file, from which a last line cut short, as by a full disk, goes."""
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(json.dumps(line).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; none where it is missing. A last one cut short is left out.

    Raises:
        ValueError: If another line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise
    return found


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder holds, finished or not.

    Attributes:
        folder: the run's.
        config: contents of `config.yaml`.
        trials: of the search, by number and seed.
        epochs: of all trainings, as they were reported.
        sessions: the processes that ran it.
        final: contents of `final.json`, or of what is there of it.
        finished: whether nothing is missing.
        details: folders that `dsn_ray.details` wrote.
    """

    folder: Path
    config: dict[str, Any]
    trials: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    final: dict[str, Any]
    finished: bool
    details: list[Path]

    @property
    def last_epochs(self) -> list[dict[str, Any]]:
        """Each epoch of each training once: one that is resumed reports its last epoch again."""
        last = {(line["training"], line["epoch"]): line for line in self.epochs}
        return [line for _, line in sorted(last.items(), key=lambda item: item[0])]


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder.

    Raises:
        UserError: If it is none, or a file in it cannot be read.
    """
    from dsn_ray.details import ABOUT

    settings = folder / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{folder}: this is no run's folder; it has no config.yaml.")
    try:
        final = [
            path
            for name in ("final", "final.unfinished")
            if (path := folder / f"{name}.json").exists()
        ]
        return RunRecord(
            folder,
            yaml.safe_load(settings.read_text(encoding="utf-8")),
            read_lines(folder / "trials.jsonl"),
            read_lines(folder / EPOCHS),
            read_lines(folder / SESSIONS),
            json.loads(final[0].read_text(encoding="utf-8")) if final else {},
            (folder / "final.json").exists(),
            sorted(path.parent for path in folder.glob(f"final/*/details/{ABOUT}")),
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: a file of this run cannot be read: {reason}.") from None


@contextmanager
def session(folder: Path, cluster: str) -> Iterator[None]:
    """Writes down, when a process's part of a run ends, how long it was and on what it ran.

    Args:
        folder: of the run.
        cluster: what the cluster has, in words.
    """
    started, clock = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic()
    try:
        yield
    finally:
        line = {
            "started": started,
            "seconds": round(time.monotonic() - clock),
            "cluster": cluster,
            "system": platform.platform(),
            "processor": _processor(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in _PACKAGES},
        }
        _add_line(folder / SESSIONS, line)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
