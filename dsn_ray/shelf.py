"""Data sets ready for training: each loaded once, its bulk in Ray's object store."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dsn_ray.config import Config
from dsn_ray.errors import UserError
from dsn_ray.runtime import apart, fetched

if TYPE_CHECKING:
    import ray
    from numpy.typing import NDArray
    from rich.console import Console

    from dsn_ray.data.catalog import Domain, Source, Split
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


class Shelf:
    """The data sets of a run, whose bulk all its trainings share.

    What is loaded is loaded once: trainings that differ in what the teacher sees share the
    pictures, and those that differ in the pictures' size the weights.

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
            found: the data sets by name; raw pictures are prepared into the user's cache, once.
            roots: where they were read from; None for the embedded ones.
            console: says what each holds, and what is wrong with it.
        """
        self._found, self._roots, self._console = found, roots, console
        self._kept: dict[tuple[Any, ...], Any] = {}
        self.shards: dict[str, Shards] = {}

    def data(self, name: str, config: Config) -> TrainingData:
        """A data set as a training wants it: pictures, teacher's logits, mask and weights.

        Raises:
            UserError: If the data or the backbone's weights cannot be used.
        """
        import ray

        from dsn_ray.data.shards import open_shards

        is_new, started = name not in self.shards, time.monotonic()
        text = f"{name}: preparing pictures and the teacher's logits"
        with self._console.status(text) if is_new else nullcontext():
            shards = self.shards.get(name) or open_shards(self._found[name])
            self.shards[name] = shards
            stored = config.data.teacher_sees == "stored"
            heldout = config.train.keep == "best_seen" and shards.counts.get("heldout/sketch")
            contents = Contents(
                sketches=self._seen(
                    shards, "sketch", config, stored and config.loss.distilled == "all"
                ),
                photos=self._seen(shards, "photo", config, stored),
                heldout=self._pictures(shards, "heldout", "sketch", config) if heldout else None,
                mask=self._mask(shards, config.data.semantics),
                weights=self._weights(config).held,
            )
        if is_new:
            without = int((~contents.mask.any(axis=1)).sum())
            note = f"; the semantic mask of {without} of {len(contents.mask)} seen classes is empty"
            took = f" ({time.monotonic() - started:.0f} s)"
            self._console.print(f"{shards}{note * (without > 0)}{took}", soft_wrap=True)
        return TrainingData(name, self._roots[name], shards.seen_classes, ray.put(contents))

    def check_weights(self, config: Config) -> None:
        """Checks that the backbone's weights are there and that an embedding can start from them.

        Raises:
            UserError: If they are not, or their classifier's rank is below `network.dim`.
        """
        rank = self._weights(config).rank
        if rank is not None and config.network.dim > rank:
            raise UserError(
                f"network.dim={config.network.dim}: it must be at most {rank}, the rank of the "
                "classifier that the embedding starts from."
            )

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _pictures(
        self, shards: "Shards", split: "Split", domain: "Domain", config: Config
    ) -> "Pictures":
        from dsn_ray.data.pictures import load_pictures

        of = shards.name, split, domain, config.data.px
        return self._once(("pictures", *of), lambda: load_pictures(shards, *of[1:]))

    def _seen(self, shards: "Shards", domain: "Domain", config: Config, judged: bool) -> "Pictures":
        import ray

        from dsn_ray.data.teaching import teacher_logits

        pictures = self._pictures(shards, "seen", domain, config)
        if not judged:
            return pictures
        teacher = config.network.backbone, config.network.weights, config.data.teacher_px
        weights = self._weights(config)
        logits = self._once(
            ("logits", shards.name, domain, *teacher),
            lambda: ray.put(teacher_logits(shards, config, domain, weights.held, weights.digest)),
        )
        return replace(pictures, logits=logits)

    def _mask(self, shards: "Shards", file: str | None) -> "NDArray[np.float32]":
        from dsn_ray.data.semantics import mask_rows

        return self._once(
            ("mask", shards.name, file),
            lambda: mask_rows(shards.semantics, shards.seen_classes, Path(file) if file else None),
        )

    def _weights(self, config: Config) -> "_SharedWeights":
        of = config.network.backbone, config.network.weights
        return self._once(("weights", *of), lambda: _share_weights(*of))


class _SharedWeights(NamedTuple):
    """A backbone's ImageNet weights in the object store, and what is to be known of them.

    Attributes:
        held: the weights; None for random ones.
        digest: of their values; None for random ones.
        rank: of their classifier; None for random ones.
    """

    held: "ray.ObjectRef[ImagenetWeights | None]"
    digest: str | None
    rank: int | None


def _share_weights(backbone: str, weights: str | None) -> _SharedWeights:
    """Reads them in a process of its own: this one does without torch.

    Raises:
        UserError: If they cannot be had.
    """
    held, *facts = apart(_read, results=3).remote(backbone, weights)
    return _SharedWeights(held, *fetched(facts))


def _read(
    backbone: str, weights: str | None
) -> "tuple[ImagenetWeights | None, str | None, int | None]":
    from dsn_ray.model import imagenet_weights
    from dsn_ray.model.network import rank_of

    found = imagenet_weights(backbone, weights)
    return (found, found.digest, rank_of(found.classifier_svd)) if found else (None, None, None)
