"""What the final job is to train, and `final.json`, where it keeps what came of it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsn_ray.config import Config
from dsn_ray.rating import Row
from dsn_ray.tables import title_of


@dataclass(frozen=True)
class Candidate:
    """One training of the final job.

    Attributes:
        variant: name of what is compared; empty for the best setting of a search.
        settings: what it differs in, by dotted name.
        dataset: the data set.
        root: where it is read from; None for the embedded ones.
        config: the training, seed included.
    """

    variant: str
    settings: dict[str, Any]
    dataset: str
    root: str | None
    config: Config

    @property
    def title(self) -> str:
        """For people."""
        return title_of(_about(self))

    @property
    def folder(self) -> str:
        """The name of its folder: equal trainings on the same pictures have the same."""
        digest = _digest(self.root or "", self.config.model_dump_json())
        return f"{self.dataset.replace(':', '-')}-{digest}-seed{self.config.train.seed}"

    @property
    def trunk(self) -> str:
        """Stands for what decides the numbers before training."""
        network = self.config.network
        return _digest(self.root, network.backbone, network.weights, self.config.data.px)


def _digest(*parts: object) -> str:
    return hashlib.sha256("".join(map(str, parts)).encode()).hexdigest()[:8]


class FinalResults:
    """The contents of `final.json`, in `final.unfinished.json` until all of them are there.

    Attributes:
        setting: the best of the search; None for variants.
        rows: one per data set, variant, seed, codes, protocol and metric.
        diverged: one per training that has no numbers, because its loss became none.
        untrained: as rows, of the trunk before training, without seed and checkpoint.
        official: whether each data set is the complete official one.
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
        self.diverged: list[dict[str, Any]] = kept.get("diverged", [])
        self.untrained: list[Row] = kept.get("untrained", [])
        self.official: dict[str, bool] = kept.get("official", {})
        self._candidates: Sequence[Candidate] = ()

    def has(self, candidate: Candidate) -> bool:
        """Whether it is known what came of a training."""
        return any(_is_of(row, candidate) for row in [*self.rows, *self.diverged])

    def reopen(self) -> None:
        """Takes the file's name back until `finish`: something may be missing now."""
        if self._unfinished.exists():
            self._path.unlink(missing_ok=True)
        elif self._path.exists():
            self._path.replace(self._unfinished)

    def keep_only(self, candidates: Sequence[Candidate]) -> None:
        """Drops what is there of trainings that are not asked for any more."""
        self._candidates = candidates
        trunks = {one.dataset: one.trunk for one in reversed(candidates)}
        self.untrained = [r for r in self.untrained if trunks.get(r["dataset"]) == r.get("trunk")]
        self._arrange()

    def add(self, one: Candidate, rows: list[Row], checkpoint: Path) -> None:
        """Takes a training's rows, whose place is that of their candidate, whenever it ended."""
        about = _about(one)
        self.rows += [{**row, **about, "checkpoint": str(checkpoint)} for row in rows]
        self._arrange()
        self.save()

    def add_diverged(self, one: Candidate, reason: str) -> None:
        """Takes down that a training has no numbers."""
        self.diverged.append({**_about(one), "reason": reason})
        self._arrange()
        self.save()

    def _arrange(self) -> None:
        self.rows, self.diverged = (
            [row for one in self._candidates for row in rows if _is_of(row, one)]
            for rows in (self.rows, self.diverged)
        )

    def save(self) -> None:
        """Writes what is there so far, whole or not at all."""
        names = ("setting", "rows", "diverged", "untrained", "official")
        contents = {name: getattr(self, name) for name in names}
        new = self._unfinished.with_suffix(".new")
        new.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
        new.replace(self._unfinished)

    def finish(self) -> None:
        """Gives the file its own name: nothing is missing any more."""
        self.save()
        self._unfinished.replace(self._path)


def _about(one: Candidate) -> dict[str, Any]:
    return {
        "dataset": one.dataset,
        **({"variant": one.variant} if one.variant else {}),
        "seed": one.config.train.seed,
        "parameters": one.settings,
        "training": one.folder,
    }


def _is_of(row: Row, one: Candidate) -> bool:
    return (row.get("training"), row.get("variant", "")) == (one.folder, one.variant)


def candidates_of(
    settings: Iterable[tuple[str, dict[str, Any], dict[str, Config]]],
    data: Mapping[str, str | None],
    seeds: int,
) -> list[Candidate]:
    """The trainings of a final job: every data set, every seed, every setting, in this order.

    Args:
        settings: of each its variant's name, what it differs in, and its configuration on each
            data set.
        data: where each data set is read from.
        seeds: trainings of each on each data set, with seeds from `train.seed` on.
    """
    settings = list(settings)
    found: dict[tuple[str, str], Candidate] = {}
    for dataset, root in data.items():
        for number in range(seeds):
            for variant, differs, configs in settings:
                config = configs[dataset]
                config = config.with_settings({"train.seed": config.train.seed + number})
                one = Candidate(variant, differs, dataset, root, config)
                found.setdefault((variant, one.folder), one)
    return list(found.values())
