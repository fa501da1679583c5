"""The published data sets: how they lie on disk, their lists, and their splits of the classes.

Where a copy comes with the list files of SAKE's authors (Liu et al., ICCV 2019), they say what it
holds; where it comes without, the split of the classes and the folders do. What is known of a data
set is a YAML file in `files/sets`, with the fields of `Published`; to add one is to add a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsn_ray.data.catalog import DOMAINS, SETS, Domain, Record, Source, Split
from dsn_ray.data.folders import pictures_of, require_folders, some
from dsn_ray.data.roots import DataError, Root
from dsn_ray.yaml_files import explain, load_yaml


class _Known(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listing(_Known):
    """One list file of a published data set.

    Attributes:
        file: its name within the folder of lists.
        domain: what its pictures are.
        split: where they belong.
        lines: how many the official list has; 0 where nobody knows.
        unique: how many different pictures these name; 0 for as many.
        may_be_missing: whether the folders then give the pictures of the classes.
    """

    file: str
    domain: Domain
    split: Split
    lines: int = 0
    unique: int = 0
    may_be_missing: bool = False


class Layout(_Known):
    """One way in which copies of a published data set lie on disk.

    Attributes:
        sketches: the folder of class folders with sketches.
        photos: the folders of class folders with photos; only the first must be there.
    """

    sketches: str
    photos: tuple[str, ...] = Field(min_length=1)

    def folders(self, domain: Domain) -> tuple[str, ...]:
        """The folders of class folders of a domain."""
        return (self.sketches,) if domain == "sketch" else self.photos


class Published(_Known):
    """A published data set with one split of its classes.

    Attributes:
        layouts: ways in which copies lie on disk; the first whose folders are there is taken.
        seen: the seen classes, as class folders are called.
        unseen: the unseen ones.
        lists: the folder of the lists of pictures and of `cname_cid.txt` and `cname_cid_zero.txt`,
            the seen and the unseen classes with their ids.
        listings: the list files; none where no lists are known.
        semantics: which semantic mask the classes have.
    """

    layouts: tuple[Layout, ...] = Field(min_length=1)
    seen: tuple[str, ...] = Field(min_length=1)
    unseen: tuple[str, ...] = Field(min_length=1)
    lists: str = ""
    listings: tuple[Listing, ...] = ()
    semantics: str = "none"

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, seen and then unseen."""
        return self.seen + self.unseen


def read_sets(folder: Path) -> dict[str, Published]:
    """The data sets that the YAML files of a folder describe, by name.

    Raises:
        UserError: a file is not as it should be.
    """
    sets = {}
    for file in sorted(folder.glob("*.yaml")):
        tree, place = load_yaml(file)
        if not isinstance(tree, dict):
            raise DataError(f"{file} should give the fields of a data set below its name.")
        for name, fields in tree.items():
            try:
                sets[name] = Published.model_validate(fields)
            except ValidationError as error:
                raise DataError(explain(error, place.below(name), Published)) from None
    return sets


PUBLISHED = read_sets(SETS)


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
            names = list(dict.fromkeys(path for path, _ in lost))
            raise DataError(
                f"{root}/{file} names {len(names)} pictures not in {root}: {some(names)}. With "
                "--partial `prepare` leaves them out."
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
    official = (len(seen), len(unseen)) == (len(published.seen), len(published.unseen)) and all(
        counts[listing.domain, listing.split] == listing.lines for listing in published.listings
    )
    about = (official, published.semantics, "; ".join(notes))
    return Source(name, root, tuple(records), seen, unseen, *about)


def _open_unlisted(name: str, root: Root, published: Published, layout: Layout) -> Source:
    """Open a copy without lists: the classes of the split whose folders are there."""

    def present(names: Sequence[str]) -> tuple[str, ...]:
        firsts = [layout.folders(domain)[0] for domain in DOMAINS]
        return tuple(n for n in names if all(root.file_names(f"{f}/{n}") for f in firsts))

    seen, unseen = present(published.seen), present(published.unseen)
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
    note = f"there are no lists, so the split of the classes is the one known for {name}"
    return Source(name, root, tuple(records), seen, unseen, False, published.semantics, note)


def _read_list(
    root: Root, file: str, classes: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Read lines `<path> <class id>` as (path, class): first those whose picture is there."""
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
    there: list[tuple[str, str]] = []
    lost: list[tuple[str, str]] = []
    for path, of in pairs:
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = root.file_names(folder)
        (there if name in present[folder] else lost).append((path, of))
    return there, lost


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
