"""The published data sets: how they lie on disk, their lists, and their splits of the classes.

Where a copy comes with the list files of SAKE's authors (Liu et al., ICCV 2019), they say what it
holds; where it comes without, the class splits in `files/splits` and the folders do. How copies
lie on disk is data: `PUBLISHED` has the layouts of each data set, and the first whose folders are
there is taken. To add a data set is to add its layouts and its split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsn_ray.data.catalog import DOMAINS, Domain, Record, Source, Split
from dsn_ray.data.folders import pictures_of, require_folders, some
from dsn_ray.data.roots import DataError, LocalRoot, Root

SPLITS = LocalRoot(Path(__file__).resolve().with_name("files") / "splits")


@dataclass(frozen=True, slots=True)
class Listing:
    """One list file of a published data set.

    Attributes:
        file: its name within the folder of lists.
        domain: what its pictures are.
        split: where they belong.
        lines: how many the official list has.
        may_be_missing: whether the folders then give the pictures of the classes.
    """

    file: str
    domain: Domain
    split: Split
    lines: int
    may_be_missing: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which copies of a published data set lie on disk.

    Attributes:
        sketches: the folder of class folders with sketches.
        photos: the folders of class folders with photos; only the first must be there.
    """

    sketches: str
    photos: tuple[str, ...]

    def folders(self, domain: Domain) -> tuple[str, ...]:
        """The folders of class folders of a domain."""
        return (self.sketches,) if domain == "sketch" else self.photos


@dataclass(frozen=True, slots=True)
class Published:
    """A published data set with one split of its classes.

    Attributes:
        layouts: ways in which copies lie on disk.
        split: the class names are in `files/splits/<split>_seen.txt` and `_unseen.txt`.
        lists: the folder of the lists of pictures and of `cname_cid.txt` and `cname_cid_zero.txt`,
            the seen and the unseen classes with their ids.
        listings: the list files; none where no lists are known.
        classes: the official numbers of seen and unseen classes.
        semantics: which semantic mask the classes have.
    """

    layouts: tuple[Layout, ...]
    split: str
    lists: str
    listings: tuple[Listing, ...]
    classes: tuple[int, int]
    semantics: str

    def class_names(self) -> list[str]:
        """The classes of the split, seen and then unseen, as class folders are called."""
        return [
            line
            for part in ("seen", "unseen")
            for _, line in SPLITS.lines(f"{self.split}_{part}.txt")
        ]


_SKETCHY_LAYOUTS = (
    Layout(
        "256x256/sketch/tx_000000000000_ready",
        ("256x256/photo/tx_000000000000_ready", "EXTEND_image_sketchy_ready"),
    ),
    Layout("sketch/tx_000000000000", ("photo/tx_000000000000", "EXTEND_image_sketchy")),
    Layout(
        "256x256/sketch/tx_000000000000",
        ("256x256/photo/tx_000000000000", "EXTEND_image_sketchy"),
    ),
)


def _sketchy_listings(*lines: int) -> tuple[Listing, ...]:
    sketch = "sketch_tx_000000000000_ready_filelist"
    return (
        Listing(f"{sketch}_train.txt", "sketch", "seen", lines[0]),
        Listing(f"{sketch}_test.txt", "sketch", "heldout", lines[1]),
        Listing(f"{sketch}_zero.txt", "sketch", "unseen", lines[2]),
        Listing("all_photo_filelist_train.txt", "photo", "seen", lines[3]),
        Listing("all_photo_filelist_zero.txt", "photo", "unseen", lines[4]),
    )


PUBLISHED = {
    "sketchy": Published(
        layouts=_SKETCHY_LAYOUTS,
        split="sketchy_zeroshot1",
        lists="zeroshot1",
        listings=_sketchy_listings(55_252, 5_000, 15_229, 68_401, 17_101),
        classes=(100, 25),
        semantics="sketchy",
    ),
    "sketchy:zeroshot2": Published(
        layouts=_SKETCHY_LAYOUTS,
        split="sketchy_zeroshot2",
        lists="zeroshot2",
        listings=_sketchy_listings(0, 0, 0, 0, 0),  # the official numbers are not known
        classes=(104, 21),
        semantics="sketchy",
    ),
    "tuberlin": Published(
        layouts=(Layout("png_ready", ("ImageResized_ready",)),),
        split="tuberlin",
        lists="zeroshot",
        listings=(
            Listing("png_ready_filelist_train.txt", "sketch", "seen", 15_400),
            Listing("png_ready_filelist_test.txt", "sketch", "heldout", 2_200),
            Listing("png_ready_filelist_zero.txt", "sketch", "unseen", 2_400),
            Listing("ImageResized_ready_filelist_zero.txt", "photo", "unseen", 27_989),
            # Every public copy of the lists lacks this one.
            Listing("ImageResized_ready_filelist_train.txt", "photo", "seen", 176_500, True),
        ),
        classes=(220, 30),
        semantics="tuberlin",
    ),
    "quickdraw": Published(
        layouts=(Layout("QuickDraw_sketches_final", ("QuickDraw_images_final",)),),
        split="quickdraw",
        lists="",
        listings=(),
        classes=(80, 30),
        semantics="none",
    ),
}


def open_official(name: str, root: Root, missing: list[Record] | None = None) -> Source:
    """Open a copy of a published data set.

    Args:
        name: a key of `PUBLISHED`.
        root: its folder.
        missing: gains the pictures that lists name and that are not there; None if all must be.

    Raises:
        DataError: folders are missing, or a list or a picture is not as it should be.
    """
    published = PUBLISHED[name]
    layout = _layout_of(name, root, published)
    if published.listings and root.has_folder(published.lists):
        return _open_listed(name, root, published, layout, missing)
    return _open_unlisted(name, root, published, layout)


def _layout_of(name: str, root: Root, published: Published) -> Layout:
    for layout in published.layouts:
        if all(root.has_folder(layout.folders(domain)[0]) for domain in DOMAINS):
            return layout
    usual = published.layouts[0]
    require_folders(name, root, (usual.sketches, usual.photos[0]))
    raise AssertionError("one of the folders is missing")


def _open_listed(
    name: str, root: Root, published: Published, layout: Layout, missing: list[Record] | None
) -> Source:
    lists = f"{root}/{published.lists}"
    seen = _read_classes(root, f"{published.lists}/cname_cid.txt")
    unseen = _read_classes(root, f"{published.lists}/cname_cid_zero.txt")
    if both := sorted(set(seen) & set(unseen)):
        raise DataError(f"{lists} has classes that are both seen and unseen: {some(both)}.")
    records: list[Record] = []
    notes = []
    for listing in published.listings:
        file = f"{published.lists}/{listing.file}"
        classes = unseen if listing.split == "unseen" else seen
        pairs, lost = _read_list(root, file, classes)
        if lost and missing is None:
            names = some([path for path, _ in lost])
            raise DataError(
                f"{root}/{file} names {len(lost)} pictures not in {root}: {names}. With --partial "
                "`prepare` leaves them out."
            )
        if missing is not None:
            missing += [Record(path, of, listing.domain, listing.split) for path, of in lost]
        if not pairs and not lost and not listing.may_be_missing:
            raise DataError(f"The list {root}/{file} is missing or empty.")
        if not pairs and not lost:
            folder = layout.folders(listing.domain)[0]
            pairs = pictures_of(root, folder, classes, may_lack=missing is not None)
            notes.append(
                f"{listing.file} is not there, so every {listing.domain} of the {listing.split} "
                f"classes in {folder} is taken"
            )
        records += [Record(path, of, listing.domain, listing.split) for path, of in pairs]
    counts = Counter((record.domain, record.split) for record in records)
    official = (len(seen), len(unseen)) == published.classes and all(
        counts[listing.domain, listing.split] == listing.lines for listing in published.listings
    )
    about = (official, published.semantics, "; ".join(notes))
    return Source(name, root, tuple(records), seen, unseen, *about)


def _open_unlisted(name: str, root: Root, published: Published, layout: Layout) -> Source:
    """Open a copy without lists: the classes of the split whose folders are there."""

    def present(names: Sequence[str]) -> tuple[str, ...]:
        firsts = [layout.folders(domain)[0] for domain in DOMAINS]
        return tuple(n for n in names if all(root.file_names(f"{f}/{n}") for f in firsts))

    seen, unseen = (
        present([line for _, line in SPLITS.lines(f"{published.split}_{part}.txt")])
        for part in ("seen", "unseen")
    )
    for part, classes in (("seen", seen), ("unseen", unseen)):
        if not classes:
            raise DataError(f"{root} has pictures of none of the {part} classes of {name}.")
    parts: tuple[tuple[Split, tuple[str, ...]], ...] = (("seen", seen), ("unseen", unseen))
    records = [
        Record(path, of, domain, split)
        for domain in DOMAINS
        for split, classes in parts
        for folder in layout.folders(domain)
        for path, of in pictures_of(root, folder, classes, may_lack=True)
    ]
    note = f"there are no lists, so the split of the classes is {published.split}'s"
    return Source(name, root, tuple(records), seen, unseen, False, published.semantics, note)


def _read_list(
    root: Root, file: str, classes: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Read lines `<path> <class id>` as (path, class): first those whose picture is there.

    The others are given once each, however often the list repeats them.
    """
    pairs = []
    for number, path, label in _read_id_lines(root, file):
        if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise DataError(f"{root}/{file}, line {number}: {path!r} is not a path below the root.")
        if label >= len(classes) or path.split("/")[-2:-1] != [classes[label]]:
            owner = repr(classes[label]) if label < len(classes) else "no class"
            raise DataError(
                f"{root}/{file}, line {number}: id {label} is {owner}, unlike {path!r}."
            )
        pairs.append((path, classes[label]))
    present: dict[str, set[str]] = {}
    there, lost = [], {}
    for path, of in pairs:
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = root.file_names(folder)
        if name in present[folder]:
            there.append((path, of))
        else:
            lost[path] = of
    return there, list(lost.items())


def _read_classes(root: Root, file: str) -> tuple[str, ...]:
    """Read lines `<class name> <id>`; the ids must be 0, 1, 2... in any order."""
    lines = _read_id_lines(root, file)
    if not lines:
        raise DataError(f"The list of classes {root}/{file} is missing or empty.")
    names = {label: name for _, name, label in lines}
    if sorted(names) != list(range(len(lines))) or len(set(names.values())) != len(lines):
        raise DataError(
            f"{root}/{file} must give each class one id and use every id from 0 up once."
        )
    return tuple(names[label] for label in range(len(names)))


def _read_id_lines(root: Root, file: str) -> list[tuple[int, str, int]]:
    """Read lines `<text> <id>` as (line number, text, id); a missing file has no lines."""
    lines = []
    for number, line in root.lines(file):
        if not (match := re.fullmatch(r"(.+) ([0-9]{1,9})", line)):
            raise DataError(
                f"{root}/{file}, line {number}: {line[:80]!r} does not end in a space and a "
                "class id."
            )
        lines.append((number, match[1], int(match[2])))
    return lines
