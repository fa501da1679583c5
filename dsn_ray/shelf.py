"""Data sets ready for training: each loaded once, its bulk in Ray's object store."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsn_ray.config import Config
from dsn_ray.space import PREPARED_ONCE

if TYPE_CHECKING:
    import ray
    from numpy.typing import NDArray
    from rich.console import Console

    from dsn_ray.data.catalog import Domain, Source
    from dsn_ray.data.pictures import Pictures
    from dsn_ray.data.shards import Shards
    from dsn_ray.model.weights import ImagenetWeights


@dataclass(frozen=True)
class Contents:
    """What a training's workers take of a data set.

    Attributes:
        sketches: of the seen classes.
        photos: of the seen classes, with the teacher's logits unless training asks the teacher.
        heldout: sketches of the seen classes that the official lists keep out of training, for
            `train.keep=best_seen` to rate; None where nobody asks or there are none.
        mask: `[seen classes, 1000]` semantic mask.
        weights: the backbone's ImageNet weights; None for random ones.
    """

    sketches: "Pictures"
    photos: "Pictures"
    heldout: "Pictures | None"
    mask: "NDArray[np.float32]"
    weights: "ray.ObjectRef[ImagenetWeights | None]"


@dataclass(frozen=True)
class TrainingData:
    """A data set ready for any number of trainings, its bulk in Ray's object store.

    Attributes:
        name: the data set.
        root: where it was read from, as given; None for the embedded ones.
        seen_classes: class of each label.
        contents: the bulk, which is not opened where it is only handed on.
    """

    name: str
    root: str | None
    seen_classes: tuple[str, ...]
    contents: "ray.ObjectRef[Contents]"


def load_training_data(
    found: "Source | Shards", root: str | None, config: Config, console: "Console"
) -> "tuple[Shards, TrainingData]":
    """Puts a data set into the object store: pictures, teacher's logits, mask and weights.

    Args:
        found: the data set; raw pictures are prepared into the user's cache, once.
        root: where it was read from; None for the embedded ones.
        config: decides what is loaded.
        console: says what the data set holds, and what is wrong with it.

    Raises:
        UserError: If the data or the backbone's weights cannot be used.
    """
    import ray

    from dsn_ray.data.pictures import load_pictures
    from dsn_ray.data.semantics import mask_rows
    from dsn_ray.data.shards import open_shards
    from dsn_ray.data.teaching import teacher_logits
    from dsn_ray.model import imagenet_weights

    started = time.monotonic()
    with console.status(f"{found.name}: preparing pictures and the teacher's logits"):
        shards = open_shards(found)
        weights = imagenet_weights(config.network.backbone, config.network.weights)
        stored = config.data.teacher_sees == "stored"
        mask_file = Path(config.data.semantics) if config.data.semantics else None

        def pictures(domain: "Domain", judged: bool) -> "Pictures":
            logits = teacher_logits(shards, config, domain) if judged else None
            return load_pictures(shards, "seen", domain, config.data.px, logits)

        heldout = None
        if config.train.keep == "best_seen" and shards.counts.get("heldout/sketch"):
            heldout = load_pictures(shards, "heldout", "sketch", config.data.px)

        mask = mask_rows(shards.semantics, shards.seen_classes, mask_file)
        contents = Contents(
            sketches=pictures("sketch", stored and config.loss.distilled == "all"),
            photos=pictures("photo", stored),
            heldout=heldout,
            mask=mask,
            weights=ray.put(weights),
        )
        data = TrainingData(shards.name, root, shards.seen_classes, ray.put(contents))
    note = ""
    if without := int((~mask.any(axis=1)).sum()):
        note = f"; the semantic mask of {without} of {len(mask)} seen classes is empty"
    console.print(f"{shards}{note} ({time.monotonic() - started:.0f} s)", soft_wrap=True)
    return shards, data


class Shelf:
    """The data sets of a run, each loaded once for all trainings that prepare it alike.

    Attributes:
        shards: of each data set that was loaded.
    """

    def __init__(
        self,
        found: "Mapping[str, Source | Shards]",
        roots: Mapping[str, str | None],
        console: "Console",
    ) -> None:
        """Loads nothing yet.

        Args:
            found: the data sets by name.
            roots: where they were read from; None for the embedded ones.
            console: says what each holds.
        """
        self._found, self._roots, self._console = found, roots, console
        self._loaded: dict[tuple[Any, ...], TrainingData] = {}
        self.shards: dict[str, Shards] = {}

    def data(self, name: str, config: Config) -> TrainingData:
        """A data set as a training wants it.

        Raises:
            UserError: As `load_training_data`.
        """
        settings = config.model_dump(mode="json")
        keys = (setting.split(".") for setting in PREPARED_ONCE)
        prepared = [settings[section][key] for section, key in keys]
        wanted = (name, config.train.keep == "best_seen", *prepared)
        if wanted not in self._loaded:
            shards, data = load_training_data(
                self._found[name], self._roots[name], config, self._console
            )
            self.shards[name], self._loaded[wanted] = shards, data
        return self._loaded[wanted]
