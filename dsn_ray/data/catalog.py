"""The data sets that can be opened by name, and what each of them holds.

A data set is a list of pictures, each a sketch or a photo of one class, and a split of the classes
into seen ones, which train, and unseen ones, which test. Published sets (Sketchy and TU-Berlin, as
Liu et al., ICCV 2019, extended and split them) come with list files that say all of this; how they
lie on disk is data, one `Layout` for each in `LAYOUTS`. Two small sets are embedded, and a folder
of one's own is opened as `folder:LABEL`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsn_ray.errors import UserError

Domain = Literal["sketch", "photo"]
Split = Literal["seen", "heldout", "unseen"]

DOMAINS: tuple[Domain, ...] = ("sketch", "photo")
SHOWN = 10  # a message names at most so many paths or classes


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
    """

    name: str
    root: Path | None
    records: tuple[Record, ...]
    seen_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    official: bool
    semantics: str

    def read(self, record: Record) -> bytes:
        """Return the encoded bytes of a picture.

        Raises:
            DataError: the path leads, by itself or by a symbolic link, out of the root.
            OSError: the file cannot be read.
            ValueError: an embedded picture cannot be drawn.
        """
        if self.root is None:
            from dsn_ray.data import openmoji

            return openmoji.render(record.path)
        root = self.root.resolve()
        path = (root / record.path).resolve()
        if not path.is_relative_to(root):
            raise DataError(f"{record.path} of {self.name} lies outside its root {root}.")
        return path.read_bytes()

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
                status = (self.root / path).stat()
                lines.append(f"{status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """One list file of a published data set.

    Attributes:
        file: its name within the folder of lists.
        domain: what its pictures are.
        split: where they belong.
        lines: how many the official list has.
        folder: where the list may be missing or empty, the folder of class folders that then
            gives the pictures of the classes.
    """

    file: str
    domain: Domain
    split: Split
    lines: int
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How a published data set lies on disk, and how large the official one is.

    Attributes:
        lists: the folder of the lists of pictures and of `cname_cid.txt` and `cname_cid_zero.txt`,
            the seen and the unseen classes with their ids.
        folders: folders of pictures that must be there.
        listings: the list files.
        classes: the official numbers of seen and unseen classes.
        semantics: which semantic mask the classes have.
    """

    lists: str
    folders: tuple[str, ...]
    listings: tuple[Listing, ...]
    classes: tuple[int, int]
    semantics: str


LAYOUTS = {
    "sketchy": Layout(
        lists="zeroshot1",
        folders=("256x256/sketch/tx_000000000000_ready", "256x256/photo/tx_000000000000_ready"),
        listings=(
            Listing("sketch_tx_000000000000_ready_filelist_train.txt", "sketch", "seen", 55_252),
            Listing("sketch_tx_000000000000_ready_filelist_test.txt", "sketch", "heldout", 5_000),
            Listing("sketch_tx_000000000000_ready_filelist_zero.txt", "sketch", "unseen", 15_229),
            Listing("all_photo_filelist_train.txt", "photo", "seen", 68_401),
            Listing("all_photo_filelist_zero.txt", "photo", "unseen", 17_101),
        ),
        classes=(100, 25),
        semantics="sketchy",
    ),
    "tuberlin": Layout(
        lists="zeroshot",
        folders=("png_ready", "ImageResized_ready"),
        listings=(
            Listing("png_ready_filelist_train.txt", "sketch", "seen", 15_400),
            Listing("png_ready_filelist_test.txt", "sketch", "heldout", 2_200),
            Listing("png_ready_filelist_zero.txt", "sketch", "unseen", 2_400),
            Listing("ImageResized_ready_filelist_zero.txt", "photo", "unseen", 27_989),
            # Every public copy of the lists lacks this one.
            Listing(
                "ImageResized_ready_filelist_train.txt",
                "photo",
                "seen",
                176_500,
                folder="ImageResized_ready",
            ),
        ),
        classes=(220, 30),
        semantics="tuberlin",
    ),
}
EMBEDDED = ("openmoji-nature", "openmoji-things")
KNOWN = (*LAYOUTS, *EMBEDDED, "folder:LABEL")


def parse_data_argument(text: str) -> tuple[str, Path | None]:
    """Split what a user typed, `NAME=DIR` or the NAME of an embedded set, into name and folder.

    Raises:
        DataError: the name is not known, or nothing follows the '='.
    """
    name, equals, folder = text.partition("=")
    _check_name(name)
    if equals and not folder:
        raise DataError(f"{text!r} names no folder after the '='; write {name}=DIR.")
    return name, Path(folder).expanduser() if folder else None


def open_source(name: str, root: Path | None = None) -> Source:
    """Open a data set and check that every picture it names is there.

    Args:
        name: one of `KNOWN`.
        root: the folder of the data set; None for an embedded one.

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
    return _open_listed(name, root) if name in LAYOUTS else _open_folder(name, root)


def validation_classes(seen_classes: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """Choose the seen classes that a sweep validates on, as if they were unseen.

    Classes are ranked by a hash of the seed and their name, so the choice depends neither on the
    order of the classes nor on the version of a random generator, and a larger count only adds.

    Returns:
        `count` of the seen classes in alphabetical order.

    Raises:
        DataError: there are not more seen classes than `count`, or it is negative.
    """
    classes = sorted(set(seen_classes))
    if not 0 <= count < len(classes):
        raise DataError(
            f"{count} validation classes cannot be taken from {len(classes)} seen classes; "
            f"0 to {len(classes) - 1} are possible."
        )
    ranked = sorted(classes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return tuple(sorted(ranked[:count]))


def _check_name(name: str) -> None:
    if name not in (*LAYOUTS, *EMBEDDED) and not re.fullmatch(r"folder:[\w.-]+", name):
        raise DataError(f"There is no data set {name!r}; known are {', '.join(KNOWN)}.")


def _open_listed(name: str, root: Path) -> Source:
    layout = LAYOUTS[name]
    _require_folders(name, root, (layout.lists, *layout.folders))
    lists = root / layout.lists
    seen = _read_classes(lists / "cname_cid.txt")
    unseen = _read_classes(lists / "cname_cid_zero.txt")
    if both := sorted(set(seen) & set(unseen)):
        raise DataError(f"{lists} has classes that are both seen and unseen: {_some(both)}.")
    records: list[Record] = []
    for listing in layout.listings:
        file = lists / listing.file
        classes = unseen if listing.split == "unseen" else seen
        pairs = _read_list(root, file, classes)
        if not pairs and listing.folder is None:
            raise DataError(f"The list {file} is missing or empty.")
        pairs = pairs or _pictures_of(root, listing.folder or "", classes)
        records += [Record(path, of, listing.domain, listing.split) for path, of in pairs]
    counts = Counter((record.domain, record.split) for record in records)
    official = (len(seen), len(unseen)) == layout.classes and all(
        counts[listing.domain, listing.split] == listing.lines for listing in layout.listings
    )
    return Source(name, root, tuple(records), seen, unseen, official, layout.semantics)


def _open_folder(name: str, root: Path) -> Source:
    _require_folders(name, root, DOMAINS)
    folders = [folder for domain in DOMAINS for folder in (root / domain).iterdir()]
    classes = sorted({f.name for f in folders if f.is_dir() and not f.name.startswith(".")})
    file = root / "unseen.txt"
    unseen = tuple(dict.fromkeys(line for _, line in _read_lines(file)))
    if not unseen:
        raise DataError(f"{file} is missing or empty: name one unseen class a line.")
    if unknown := [name for name in unseen if name not in classes]:
        raise DataError(f"{file} names classes that {root} has not: {_some(unknown)}.")
    seen = tuple(name for name in classes if name not in unseen)
    if not seen:
        raise DataError(f"{file} names every class of {root}, which leaves no seen class.")
    records = tuple(
        Record(path, of, domain, "unseen" if of in unseen else "seen")
        for domain in DOMAINS
        for path, of in _pictures_of(root, domain, classes)
    )
    return Source(name, root, records, seen, unseen, official=False, semantics="none")


def _require_folders(name: str, root: Path, folders: Iterable[str]) -> None:
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(f"{root} is no {name} folder: it lacks {', '.join(missing)}.")


def _pictures_of(root: Path, folder: str, classes: Iterable[str]) -> list[tuple[str, str]]:
    """Return the path and class of every picture in the class folders within `folder`."""
    pairs = []
    for name in classes:
        pictures = sorted(_file_names(root / folder / name))
        if not pictures:
            raise DataError(f"{root / folder / name} should hold pictures, but has none.")
        pairs += [(f"{folder}/{name}/{picture}", name) for picture in pictures]
    return pairs


def _read_list(root: Path, file: Path, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Read lines `<path> <class id>` as (path, class), and check that the pictures are there."""
    pairs = []
    for number, path, label in _read_id_lines(file):
        if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise DataError(f"{file}, line {number}: {path!r} is not a path below the root.")
        if label >= len(classes) or path.split("/")[-2:-1] != [classes[label]]:
            owner = repr(classes[label]) if label < len(classes) else "no class"
            raise DataError(f"{file}, line {number}: id {label} is {owner}, unlike {path!r}.")
        pairs.append((path, classes[label]))
    present: dict[str, set[str]] = {}
    missing = []
    for path in dict.fromkeys(path for path, _ in pairs):
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = _file_names(root / folder)
        if name not in present[folder]:
            missing.append(path)
    if missing:
        raise DataError(f"{file} names {len(missing)} pictures not in {root}: {_some(missing)}.")
    return pairs


def _read_classes(file: Path) -> tuple[str, ...]:
    """Read lines `<class name> <id>`; the ids must be 0, 1, 2... in any order."""
    lines = _read_id_lines(file)
    if not lines:
        raise DataError(f"The list of classes {file} is missing or empty.")
    names = {label: name for _, name, label in lines}
    if sorted(names) != list(range(len(lines))) or len(set(names.values())) != len(lines):
        raise DataError(f"{file} must give each class one id and use every id from 0 up once.")
    return tuple(names[label] for label in range(len(names)))


def _read_id_lines(file: Path) -> list[tuple[int, str, int]]:
    """Read lines `<text> <id>` as (line number, text, id); a missing file has no lines."""
    lines = []
    for number, line in _read_lines(file):
        if not (match := re.fullmatch(r"(.+) ([0-9]{1,9})", line)):
            raise DataError(
                f"{file}, line {number}: {line[:80]!r} does not end in a space and a class id."
            )
        lines.append((number, match[1], int(match[2])))
    return lines


def _read_lines(file: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a text file that are not blank; a missing file has none."""
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    except UnicodeDecodeError:
        raise DataError(f"{file} is not a UTF-8 text file.") from None
    return [(number, line) for number, line in numbered if line]


def _file_names(folder: Path) -> set[str]:
    """Return the names of a folder's files, hidden ones left out; none where it is missing."""
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if not e.name.startswith(".") and e.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
