"""Folders of one's own, `sketch/<class>/*` and `photo/<class>/*`, and how folders are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
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


def open_folder(
    name: str, root: Path, chosen: RandomUnseen | None = None, *, may_lack: bool = False
) -> Source:
    """Open a folder of one's own.

    Args:
        name: `folder:LABEL`.
        root: holds `sketch/<class>/*`, `photo/<class>/*` and `unseen.txt`, one unseen class a line.
        chosen: chooses the unseen classes where `unseen.txt` is not there.
        may_lack: whether a class may have no sketches or no photos.

    Raises:
        DataError: the folder or its `unseen.txt` is not as it should be.
    """
    require_folders(name, root, DOMAINS)
    classes = sorted({name for domain in DOMAINS for name in folder_names(root, domain)})
    file = root / "unseen.txt"
    unseen = tuple(dict.fromkeys(line for _, line in read_lines(file, root)))
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
        for path, of in pictures_of(root, domain, classes, may_lack=may_lack)
    )
    return Source(name, root, records, seen, unseen, official=False, semantics="none")


def require_folders(name: str, root: Path, folders: Iterable[str]) -> None:
    """Check that the folders of a data set are there.

    Raises:
        DataError: some are missing; it names them.
    """
    if not root.is_dir():
        raise DataError(f"{name}: there is no folder {root}.")
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise DataError(f"{root} is no {name} folder: it lacks {', '.join(missing)}.")


def pictures_of(
    root: Path, folder: str, classes: Iterable[str], *, may_lack: bool = False
) -> list[tuple[str, str]]:
    """Return the path and class of every picture in the class folders within `folder`.

    Raises:
        DataError: a class has none, and `may_lack` does not allow that.
    """
    pairs = []
    for name in classes:
        pictures = sorted(file_names(root, f"{folder}/{name}"))
        if not pictures and not may_lack:
            raise DataError(f"{root / folder / name} should hold pictures, but has none.")
        pairs += [(f"{folder}/{name}/{picture}", name) for picture in pictures]
    return pairs


def read_lines(file: Path, root: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a text file that are not blank; a missing file has none.

    Raises:
        DataError: it is no text file, cannot be read, or a link leads out of the root.
    """
    require_inside(root, file)
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    except UnicodeDecodeError:
        raise DataError(f"{file} is not a UTF-8 text file.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    return [(number, line) for number, line in numbered if line]


def require_inside(root: Path, path: Path) -> None:
    """Check that no symbolic link leads out of a data set's root.

    Raises:
        DataError: one does.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{path} is a symbolic link out of {root}, where nothing is read; put the files "
            "themselves there."
        )


def file_names(root: Path, folder: str) -> set[str]:
    """Return the names of a folder's files, hidden ones left out; none where it is missing.

    Raises:
        DataError: it cannot be read, lies outside the root or has a name that is no text.
    """
    return _names(root, folder, os.DirEntry.is_file)


def folder_names(root: Path, folder: str) -> set[str]:
    """Return the names of the folders in a folder, as `file_names` does of the files."""
    return _names(root, folder, os.DirEntry.is_dir)


def _names(root: Path, folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> set[str]:
    path = root / folder
    require_inside(root, path)
    try:
        with os.scandir(path) as entries:
            names = {e.name for e in entries if not e.name.startswith(".") and _is(e, wanted)}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{path} has a name that is not UTF-8: {name!r}; rename it.") from None
    return names


def _is(entry: os.DirEntry[str], wanted: Callable[[os.DirEntry[str]], bool]) -> bool:
    try:
        return wanted(entry)
    except OSError:  # a link that leads in a circle; whoever reads it says so
        return wanted is os.DirEntry.is_file


def some(names: Sequence[str]) -> str:
    """Name the first few, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
