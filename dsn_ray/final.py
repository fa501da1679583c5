"""The final job: the best setting on all seen classes of each data set, rated on the unseen."""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.config import Config
from dsn_ray.data.shards import Shards
from dsn_ray.progress import training_progress
from dsn_ray.rating import Row, evaluate_checkpoint, evaluate_untrained, load_unseen
from dsn_ray.runtime import Resources
from dsn_ray.train import TrainingData, fit, kept_checkpoint, on_this_machine

PAPER: dict[tuple[str, int, str], tuple[float, float]] = {
    ("sketchy", 64, "real"): (0.484, 0.610),
    ("sketchy", 64, "binary"): (0.436, 0.553),
    ("sketchy", 512, "real"): (0.583, 0.704),
    ("sketchy", 512, "binary"): (0.581, 0.700),
    ("tuberlin", 64, "real"): (0.442, 0.538),
    ("tuberlin", 64, "binary"): (0.385, 0.497),
    ("tuberlin", 512, "real"): (0.481, 0.586),
    ("tuberlin", 512, "binary"): (0.484, 0.591),
}
"""mAP@all and Prec@100 of Table 1, protocol `published`."""


class FinalResults:
    """The contents of `final.json`, in `final.unfinished.json` until all of them are there.

    Attributes:
        setting: the best of the sweep; what is trained with it stays with it.
        rows: one per data set, seed, codes, protocol and metric.
        untrained: the same of the trunk before training, without seed and checkpoint.
        folder: where checkpoints are copied that a URL keeps.
    """

    def __init__(self, path: Path) -> None:
        """Reads what an earlier run wrote."""
        self._path, self._unfinished = path, path.with_name("final.unfinished.json")
        self.folder = path.parent / "final"
        found = next((file for file in (self._unfinished, path) if file.exists()), None)
        kept = json.loads(found.read_text(encoding="utf-8")) if found else {}
        self.setting: dict[str, Any] | None = kept.get("setting")
        self.rows: list[Row] = kept.get("rows", [])
        self.untrained: list[Row] = kept.get("untrained", [])

    def has(self, dataset: str, seed: int) -> bool:
        """Whether a training's rows are there."""
        return any((row["dataset"], row["seed"]) == (dataset, seed) for row in self.rows)

    def save(self) -> None:
        """Writes what is there so far, whole or not at all."""
        contents = {"setting": self.setting, "rows": self.rows, "untrained": self.untrained}
        new = self._unfinished.with_suffix(".new")
        new.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
        new.replace(self._unfinished)

    def finish(self) -> None:
        """Gives the file its own name: nothing is missing any more."""
        self.save()
        self._unfinished.replace(self._path)


def final_job(
    datasets: Iterable[tuple[Config, tuple[Shards, TrainingData]]],
    seeds: int,
    resources: Resources,
    storage: str,
    results: FinalResults,
    console: Console,
) -> None:
    """Trains and rates every data set with every seed; what `results` holds is not done again.

    Args:
        datasets: of each data set the configuration with the chosen setting, the shards and the
            training data.
        seeds: trainings per data set, with seeds from `train.seed` on.
        resources: of each training.
        storage: where checkpoints go.
        results: gains rows after each training.
        console: says what runs.
    """
    for config, (shards, data) in datasets:
        unseen = load_unseen(shards, config.data.px)
        if not any(row["dataset"] == shards.name for row in results.untrained):
            console.print(f"{shards.name}: rating the untrained trunk", soft_wrap=True)
            rows = evaluate_untrained(config, unseen, data.weights, resources)
            results.untrained += [{**row, "dataset": shards.name} for row in rows]
            results.save()
        for seed in range(config.train.seed, config.train.seed + seeds):
            if results.has(shards.name, seed):
                continue
            console.print(
                f"{shards.name}: training on all {len(shards.seen_classes)} seen classes, "
                f"seed {seed}, {config.train.epochs} epoch{'s' * (config.train.epochs > 1)}",
                soft_wrap=True,
            )
            seeded = config.with_settings({"train.seed": seed})
            name = f"{shards.name.replace(':', '-')}-seed{seed}"
            with training_progress(console, name, config.train.epochs) as callback:
                trained = fit(
                    seeded, data, resources, storage, name, validate=False, callbacks=[callback]
                )
            checkpoint = on_this_machine(
                kept_checkpoint(trained, config), storage, results.folder / name
            )
            rows = evaluate_checkpoint(open_checkpoint(checkpoint), unseen, resources)
            about = {
                "dataset": shards.name,
                "seed": seed,
                "checkpoint": str(checkpoint),
                "parameters": results.setting,
            }
            results.rows += [{**row, **about} for row in rows]
            results.save()


def final_table(results: FinalResults, shards: Iterable[Shards], random_weights: bool) -> Table:
    """The rows beside the untrained trunk's and the paper's, for people."""
    table = Table(title="Unseen classes, mAP@all / Prec@100", title_justify="left")
    for column in ("data set", "codes", "protocol", "trained", "untrained", "paper"):
        table.add_column(column)
    mark = " (random weights)" if random_weights else ""
    for data in shards:
        rows = [row for row in results.rows if row["dataset"] == data.name]
        repeats = any(row.get("deduplicated") for row in rows)
        for codes, protocol, once in product(
            ("real", "binary"), ("published", "standard"), (False, True)[: 1 + repeats]
        ):
            mine = _cells(results.rows, data.name, codes, protocol, once)
            before = _cells(results.untrained, data.name, codes, protocol, once)
            table.add_row(
                data.name,
                codes,
                protocol + ", each photo once" * once,
                _pair(mine) + mark * any(mine.values()),
                _pair(before) + mark * any(before.values()),
                "-" if once else _paper(data, mine, codes, protocol),
            )
    notes = ["untrained: the backbone's pooled features, all of their dimensions"]
    if not all(data.official for data in shards):
        notes.append("the paper's numbers compare only with the complete official data sets")
    small = {row["dataset"]: row["gallery"] for row in results.rows if row["gallery"] <= 100}
    notes += [f"{name}: {n} photos are too few for Prec@100" for name, n in small.items()]
    table.caption = "; ".join(notes) + "."
    table.caption_justify = "left"
    return table


def _cells(
    rows: list[Row], dataset: str, codes: str, protocol: str, once: bool
) -> dict[str, list[Row]]:
    wanted = [
        row
        for row in rows
        if (row["dataset"], row["codes"], row["protocol"]) == (dataset, codes, protocol)
        and row.get("deduplicated", False) == once
    ]
    return {m: [r for r in wanted if r["metric"] == m] for m in ("mAP@all", "Prec@100")}


def _pair(cells: dict[str, list[Row]]) -> str:
    if not any(cells.values()):
        return "-"
    return " / ".join(_mean_and_spread([row["value"] for row in rows]) for rows in cells.values())


def _mean_and_spread(values: list[float]) -> str:
    import statistics

    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def _paper(data: Shards, cells: dict[str, list[Row]], codes: str, protocol: str) -> str:
    rows = cells["mAP@all"]
    numbers = PAPER.get((data.name, rows[0]["dim"], codes)) if rows else None
    if numbers is None or protocol != "published":
        return "-"
    mark = "" if data.official else " (other data)"
    return f"{numbers[0]:.3f} / {numbers[1]:.3f}{mark}"
