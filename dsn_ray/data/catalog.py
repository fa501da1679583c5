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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from dsn_ray.errors import UserError

Domain = Literal["sketch", "photo"]
Split = Literal["seen", "heldout", "unseen"]

DOMAINS: tuple[Domain, ...] = ("sketch", "photo")
LARGEST_FILE = 256 * 2**20


class DataError(UserError):
    """A data set cannot be opened or read as it is."""


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
        root: the folder of its pictures; None where they are embedded.
        records: all its pictures, in the order of its lists.
        seen_classes: a seen class's label is its index here.
        unseen_classes: an unseen class's label is its index here.
        official: whether it is the complete official set, so that its numbers compare with
            published ones.
        semantics: which semantic mask its classes have; see `dsn_ray.data.semantics`.
        note: what people should know of how it was put together.
    """

    name: str
    root: Path | None
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
        """
        if self.root is None:
            from dsn_ray.data import openmoji

            return openmoji.render(record.path)
        folder, _, name = record.path.rpartition("/")
        root = _real(str(self.root))
        path = f"{_real(f'{root}/{folder}')}/{name}"
        if name in (".", "..") or Path(path).is_symlink():
            path = os.path.realpath(path)
        if not path.startswith(root.rstrip("/") + "/"):
            raise DataError(f"{record.path} of {self.name} lies outside its root {root}.")
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                raise ValueError(f"the file is larger than {LARGEST_FILE // 2**20} MiB")
            return file.read()

    def fingerprint(self) -> str:
        """Return a SHA-256 in hexadecimal that changes whenever the pictures may have changed.

        It covers the name, the classes, the records, and each file's size and time of change, or
        for embedded pictures whatever they are drawn with.
        """
        lines = [self.name, *self.seen_classes, "", *self.unseen_classes, ""]
        lines += ["\t".join((r.path, r.class_name, r.domain, r.split)) for r in self.records]
        if self.root is None:
            from dsn_ray.data import openmoji

            lines.append(openmoji.drawn_with())
        else:
            for path in dict.fromkeys(record.path for record in self.records):
                try:
                    status = os.stat(f"{self.root}/{path}")  # noqa: PTH116 - three times as fast
                    lines.append(f"{status.st_size} {status.st_mtime_ns}")
                except OSError as error:
                    lines.append(str(error.strerror))
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """A folder without symbolic links."""
    return os.path.realpath(folder)


EMBEDDED = ("openmoji-nature", "openmoji-things")
OFFICIAL = ("sketchy", "sketchy:zeroshot2", "tuberlin", "quickdraw")
KNOWN = (*OFFICIAL, *EMBEDDED, "folder:LABEL")


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
    root: Path | None = None,
    unseen: RandomUnseen | None = None,
    missing: list[Record] | None = None,
) -> Source:
    """Open a data set and check that every picture it names is there.

    Args:
        name: one of `KNOWN`.
        root: the folder of the data set; None for an embedded one.
        unseen: how the unseen classes of a folder without `unseen.txt` are chosen.
        missing: gains the pictures that lists name and that are not there, and classes may lack
            pictures; None if all must be there.

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
    root = root.expanduser().resolve()
    if name in OFFICIAL:
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
    if name not in (*OFFICIAL, *EMBEDDED) and not re.fullmatch(r"folder:[\w.-]+", name):
        raise DataError(f"There is no data set {name!r}; known are {', '.join(KNOWN)}.")
