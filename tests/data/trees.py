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


def write(file: Path, contents: str | bytes = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return file


def make_folder(root: Path) -> Path:
    """Two seen classes and one unseen, in the layout of one's own folders."""
    for domain in ("sketch", "photo"):
        for name in ("cat", "dog", "red fox"):
            write(root / domain / name / "1.png", f"{domain} {name}")
    write(root / "unseen.txt", "red fox\n\n")
    return root


def make_listed(root: Path) -> Path:
    """A small TU-Berlin with two seen classes, one with a space, and one unseen class."""
    lists = root / "zeroshot"
    write(lists / "cname_cid.txt", "alarm clock 0\npig 1\n")
    write(lists / "cname_cid_zero.txt", "banana 0\n")
    sketches: dict[str, list[str]] = {"train": [], "test": [], "zero": []}
    photos: dict[str, list[str]] = {"train": [], "zero": []}
    for name, label in (("alarm clock", 0), ("pig", 1), ("banana", 0)):
        last = "zero" if name == "banana" else "train"
        for n, split in enumerate((last, last, "zero" if name == "banana" else "test")):
            write(root / "png_ready" / name / f"{n} a.png")
            sketches[split].append(f"png_ready/{name}/{n} a.png {label}\n")
        write(root / "ImageResized_ready" / name / "n01_0.JPEG")
        photos[last].append(f"ImageResized_ready/{name}/n01_0.JPEG {label}\n")
    for split, lines in sketches.items():
        write(lists / f"png_ready_filelist_{split}.txt", "".join(lines))
    for split, lines in photos.items():
        write(lists / f"ImageResized_ready_filelist_{split}.txt", "".join(lines))
    return root
