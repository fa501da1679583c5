"""Small data sets on disk, for the tests of what reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dsn_ray.data.catalog import Source


def counts(source: Source) -> tuple[int, ...]:
    found = Counter((record.domain, record.split) for record in source.records)
    return (
        found["sketch", "seen"],
        found["sketch", "heldout"],
        found["sketch", "unseen"],
        found["photo", "seen"],
        found["photo", "unseen"],
    )


def write(file: Path, text: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def make_folder(root: Path) -> Path:
    """Two seen classes and one unseen, in the layout of one's own folders."""
    for domain in ("sketch", "photo"):
        for name in ("cat", "dog", "red fox"):
            write(root / domain / name / "1.png", f"{domain} {name}")
    write(root / "unseen.txt", "red fox\n\n")
    return root
