"""The data sets that can be opened by name, and what each of them holds.

A data set is a list of pictures, each a sketch or a photo of one class, and a split of the classes
into seen ones, which train, and unseen ones, which test. Published sets (Sketchy and TU-Berlin, as
Liu et al., ICCV 2019, extended and split them; QuickDraw) are opened by `official`, a folder of
one's own as `folder:LABEL` by `folders`, and two small sets are embedded, see `openmoji`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dsn_ray.data.roots import DataError, LocalRoot, Root

Domain = Literal["sketch", "photo"]
Split = Literal["seen", "heldout", "unseen"]

_FETCHED_AT_ONCE = 16
_FETCHED_AHEAD = 32
_FETCHED_BYTES = 64 * 2**20

DOMAINS: tuple[Domain, ...] = ("sketch", "photo")


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a data set.

    Attributes:
        path: the file relative to the root, '/'-separated; repeats where a list repeats it.
            Sketchy lists thousands of photos twice, as one file name in each photo folder.
        class_name: the class shown.
        domain: whether it is a sketch or a photo.
        split: `heldout` are sketches of seen classes that the official lists keep out of training.
    """

    path: str
    class_name: str
    domain: Domain
    split: Split


@dataclass(frozen=True, slots=True)
class Source:
    """An opened data set.

    Attributes:
        name: the name it was opened by, such as `sketchy` or `folder:mine`.
        root: where its pictures are; None where they are embedded.
        records: all its pictures, in the order of its lists.
        seen_classes: a seen class's label is its index here.
        unseen_classes: an unseen class's label is its index here.
        official: whether it is the complete official set, so that its numbers compare with
            published ones.
        semantics: which semantic mask its classes have; see `dsn_ray.data.semantics`.
        note: what people should know of how it was put together.
    """

    name: str
    root: Root | None
    records: tuple[Record, ...]
    seen_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    official: bool
    semantics: str
    note: str = ""

    def classes_of(self, split: Split) -> tuple[str, ...]:
        """The classes of a split, in the order of their labels."""
        return self.unseen_classes if split == "unseen" else self.seen_classes

    def read(self, record: Record) -> bytes:
        """Return the encoded bytes of a picture.

        Raises:
            DataError: the path leads, by itself or by a symbolic link, out of the root.
            OSError: the file cannot be read.
            ValueError: it is too large, or an embedded picture cannot be drawn.
            RootError: nothing can be read there at present.
        """
        if self.root is None:
            from dsn_ray.data import openmoji

            return openmoji.render(record.path)
        return self.root.read(record.path)

    def reading(
        self, records: Sequence[Record], sizes: Sequence[int]
    ) -> Iterator[Callable[[], bytes]]:
        """Yields, picture by picture, what gives its bytes as `read` does.

        Behind a URL several are fetched ahead, since each takes its time to come, but few where
        they are large.

        Args:
            records: the pictures.
            sizes: of their files.
        """
        if self.root is None or self.root.is_local:
            yield from (partial(self.read, record) for record in records)
            return
        coming: deque[tuple[int, Future[bytes]]] = deque()
        ahead = 0
        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            for record, size in zip(records, sizes, strict=True):
                while coming and (ahead + size > _FETCHED_BYTES or len(coming) == _FETCHED_AHEAD):
                    ahead -= coming[0][0]
                    yield coming.popleft()[1].result
                coming.append((size, pool.submit(self.read, record)))
                ahead += size
            yield from (one.result for _, one in coming)

    def states(self) -> list[tuple[int, str]]:
        """Size and time of change of each picture's file, in the order of the records.

        Embedded pictures have none until they are drawn.
        """
        if self.root is None:
            return [(0, "")] * len(self.records)
        return self.root.states(record.path for record in self.records)

    def fingerprint(self, states: Iterable[tuple[int, str]] | None = None) -> str:
        """Return a SHA-256 in hexadecimal that changes whenever the pictures may have changed.

        It covers the name, the classes, the records, and each file's size and time of change, or
        for embedded pictures whatever they are drawn with.

        Args:
            states: as `states` gives them, where they are known.
        """
        lines = [self.name, *self.seen_classes, "", *self.unseen_classes, ""]
        lines += ["\t".join((r.path, r.class_name, r.domain, r.split)) for r in self.records]
        if self.root is None:
            from dsn_ray.data import openmoji

            lines.append(openmoji.drawn_with())
        else:
            by_path = zip((r.path for r in self.records), states or self.states(), strict=True)
            lines += [f"{size} {changed}" for size, changed in dict(by_path).values()]
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


EMBEDDED = ("openmoji-nature", "openmoji-things")


SETS = Path(__file__).with_name("files") / "sets"
"""The folder of the YAML files that describe the published data sets."""


def published_names() -> tuple[str, ...]:
    """The names of the published data sets; of files that are no YAML, none.

    Every `--help` tells them, so nothing else of the files is looked at, and by the quick parser.
    """
    import yaml

    names: list[str] = []
    for file in sorted(SETS.glob("*.yaml")):
        with suppress(yaml.YAMLError, UnicodeDecodeError):
            tree = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            names += tree if isinstance(tree, dict) else ()
    return tuple(names)


def parse_data_argument(text: str) -> tuple[str, str | None]:
    """Split what a user typed, `NAME=DIR` or the NAME of an embedded set, into name and place.

    The place is an absolute path, or a URL as it was given.

    Raises:
        DataError: the name is not known, or nothing follows the '='.
    """
    name, equals, folder = text.partition("=")
    _check_name(name)
    if equals and not folder:
        raise DataError(f"{text!r} names no folder after the '='; write {name}=DIR.")
    if not folder or "://" in folder:
        return name, folder or None
    return name, str(Path(folder).expanduser().absolute())


def open_source(
    name: str,
    root: Path | Root | None = None,
    unseen: RandomUnseen | None = None,
    missing: list[Record] | None = None,
) -> Source:
    """Open a data set and check that every picture it names is there.

    Args:
        name: of a published or embedded data set, or `folder:LABEL`.
        root: the folder of the data set, or a root behind a URL; None for an embedded one.
        unseen: how the unseen classes of a folder are chosen, which has no `unseen.txt` then.
        missing: gains the pictures that lists name and that are not there, as often as they do, and
            classes may lack pictures; None if all must be there.

    Raises:
        DataError: the name, the folder, a list or a picture is not as it should be; the message
            says which and what is expected.
    """
    _check_name(name)
    if name in EMBEDDED:
        if root is not None:
            raise DataError(f"{name} is embedded and takes no folder, so {root} is not used.")
        from dsn_ray.data import openmoji

        return openmoji.open_embedded(name)
    if root is None:
        raise DataError(f"{name} needs the folder that holds it: write {name}=DIR.")
    if isinstance(root, Path):
        root = LocalRoot(root.expanduser().resolve())
    if name in published_names():
        from dsn_ray.data.official import open_official

        return open_official(name, root, missing)
    from dsn_ray.data.folders import open_folder

    return open_folder(name, root, unseen, may_lack=missing is not None)


@dataclass(frozen=True, slots=True)
class RandomUnseen:
    """A choice of unseen classes by chance.

    Attributes:
        share: of the classes, above 0 and below 1.
        seed: the same seed chooses the same classes.
    """

    share: float
    seed: int = 0


def ranked_by_chance(classes: Iterable[str], seed: int) -> list[str]:
    """Rank class names by a hash of the seed and the name.

    The rank depends neither on the order of the classes nor on the version of a random generator.
    """
    return sorted(set(classes), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def validation_classes(seen_classes: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """Choose the seen classes that a sweep validates on, as if they were unseen.

    They are the first that `ranked_by_chance` gives, so a larger count only adds.

    Returns:
        `count` of the seen classes in alphabetical order.

    Raises:
        DataError: there are not more seen classes than `count`, or it is negative.
    """
    ranked = ranked_by_chance(seen_classes, seed)
    if not 0 <= count < len(ranked):
        raise DataError(
            f"{count} validation classes cannot be taken from {len(ranked)} seen classes; "
            f"0 to {len(ranked) - 1} are possible."
        )
    return tuple(sorted(ranked[:count]))


def _check_name(name: str) -> None:
    if name in (*published_names(), *EMBEDDED) or re.fullmatch(r"folder:[\w.-]+", name):
        return
    from dsn_ray.data.official import PUBLISHED  # which says where a description is no YAML

    known = ", ".join((*PUBLISHED, *EMBEDDED))
    raise DataError(f"There is no data set {name!r}; known are {known} and folder:LABEL.")
