"""Folders of one's own, `sketch/<class>/*` and `photo/<class>/*`, and how folders are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsn_ray.data.catalog import (
    DOMAINS,
    DataError,
    RandomUnseen,
    Record,
    Source,
    ranked_by_chance,
)

SHOWN = 10  # a message names at most so many paths or classes


def open_folder(name: str, root: Path, chosen: RandomUnseen | None = None) -> Source:
    """Open a folder of one's own.

    Args:
        name: `folder:LABEL`.
        root: holds `sketch/<class>/*`, `photo/<class>/*` and `unseen.txt`, one unseen class a line.
        chosen: chooses the unseen classes where `unseen.txt` is not there.

    Raises:
        DataError: the folder or its `unseen.txt` is not as it should be.
    """
    require_folders(name, root, DOMAINS)
    folders = [folder for domain in DOMAINS for folder in (root / domain).iterdir()]
    classes = sorted({f.name for f in folders if f.is_dir() and not f.name.startswith(".")})
    file = root / "unseen.txt"
    unseen = tuple(dict.fromkeys(line for _, line in read_lines(file)))
    if not unseen and chosen is not None:
        count = max(1, round(chosen.share * len(classes)))
        unseen = tuple(sorted(ranked_by_chance(classes, chosen.seed)[:count]))
    if not unseen:
        raise DataError(f"{file} is missing or empty: name one unseen class a line.")
    if unknown := [name for name in unseen if name not in classes]:
        raise DataError(f"{file} names classes that {root} has not: {some(unknown)}.")
    seen = tuple(name for name in classes if name not in unseen)
    if not seen:
        raise DataError(f"{file} names every class of {root}, which leaves no seen class.")
    records = tuple(
        Record(path, of, domain, "unseen" if of in unseen else "seen")
        for domain in DOMAINS
        for path, of in pictures_of(root, domain, classes)
    )
    return Source(name, root, records, seen, unseen, official=False, semantics="none")


def require_folders(name: str, root: Path, folders: Iterable[str]) -> None:
    """Check that the folders of a data set are there.

    Raises:
        DataError: some are missing; it names them.
    """
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(f"{root} is no {name} folder: it lacks {', '.join(missing)}.")


def pictures_of(root: Path, folder: str, classes: Iterable[str]) -> list[tuple[str, str]]:
    """Return the path and class of every picture in the class folders within `folder`."""
    pairs = []
    for name in classes:
        pictures = sorted(file_names(root / folder / name))
        if not pictures:
            raise DataError(f"{root / folder / name} should hold pictures, but has none.")
        pairs += [(f"{folder}/{name}/{picture}", name) for picture in pictures]
    return pairs


def read_lines(file: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a text file that are not blank; a missing file has none."""
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    except UnicodeDecodeError:
        raise DataError(f"{file} is not a UTF-8 text file.") from None
    return [(number, line) for number, line in numbered if line]


def file_names(folder: Path) -> set[str]:
    """Return the names of a folder's files, hidden ones left out; none where it is missing."""
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if not e.name.startswith(".") and e.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def some(names: Sequence[str]) -> str:
    """Name the first few, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
