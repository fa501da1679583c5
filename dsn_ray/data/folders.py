"""Folders of one's own, `sketch/<class>/*` and `photo/<class>/*`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unicodedata import normalize

from dsn_ray.data.catalog import DOMAINS, RandomUnseen, Record, Source, ranked_by_chance
from dsn_ray.data.roots import DataError, Root

SHOWN = 10  # a message names at most so many paths or classes


def open_folder(
    name: str, root: Root, chosen: RandomUnseen | None = None, *, may_lack: bool = False
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
    classes = sorted({name for domain in DOMAINS for name in root.folder_names(domain)})
    by_form: dict[str, str] = {}
    for of in classes:
        if by_form.setdefault(normalize("NFC", of), of) != of:
            raise DataError(
                f"{root} has two spellings of the class {of!r}, which look the same but differ in "
                "their Unicode form; rename the folders of one domain like those of the other."
            )
    file = f"{root}/unseen.txt"
    named = dict.fromkeys(line for _, line in root.lines("unseen.txt"))
    if named and chosen is not None:
        raise DataError(f"{file} names the unseen classes, so --unseen has nothing to choose.")
    if unknown := [line for line in named if normalize("NFC", line) not in by_form]:
        raise DataError(f"{file} names classes that {root} has not: {some(unknown)}.")
    unseen = tuple(by_form[normalize("NFC", line)] for line in named)
    if chosen is not None:
        count = max(1, round(chosen.share * len(classes)))
        unseen = tuple(sorted(ranked_by_chance(classes, chosen.seed)[:count]))
    if not unseen:
        raise DataError(
            f"{file} is missing or empty: name one unseen class a line, or let `prepare --unseen "
            "0.2` choose."
        )
    seen = tuple(name for name in classes if name not in unseen)
    if not seen:
        chooser = file if named else "--unseen"
        raise DataError(f"{chooser} takes every class of {root}, which leaves no seen class.")
    records = tuple(
        Record(path, of, domain, "unseen" if of in unseen else "seen")
        for domain in DOMAINS
        for path, of in pictures_of(root, domain, classes, may_lack=may_lack)
    )
    return Source(name, root, records, seen, unseen, official=False, semantics="none")


def require_folders(name: str, root: Root, folders: Iterable[str]) -> None:
    """Check that the folders of a data set are there.

    Raises:
        DataError: some are missing; it names them.
    """
    if not root.has_folder():
        raise DataError(f"{name}: there is no folder {root}.")
    missing = [folder for folder in folders if not root.has_folder(folder)]
    if missing:
        raise DataError(f"{root} is no {name} folder: it lacks {', '.join(missing)}.")


def pictures_of(
    root: Root, folder: str, classes: Iterable[str], *, may_lack: bool = False
) -> list[tuple[str, str]]:
    """Return the path and class of every picture in the class folders within `folder`.

    Raises:
        DataError: a class has none, and `may_lack` does not allow that.
    """
    pairs = []
    for name in classes:
        pictures = sorted(root.file_names(f"{folder}/{name}"))
        if not pictures and not may_lack:
            raise DataError(f"{root}/{folder}/{name} should hold pictures, but has none.")
        pairs += [(f"{folder}/{name}/{picture}", name) for picture in pictures]
    return pairs


def some(names: Sequence[str]) -> str:
    """Name the first few, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
