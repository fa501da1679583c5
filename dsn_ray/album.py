"""What a report is made of: sections with tables and pictures."""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dsn_ray.charts import WIDTH, Draw, render

_READABLE = 0.85  # of its own size


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        title: what it shows.
        light: as a data URL, for light pages.
        dark: likewise, for dark pages.
        file: its name in the run's `report` folder, without suffix.
        width: pixels below which it cannot be read.
        numbers: what it shows as CSV, a data URL; none for pictures that older runs kept.
    """

    title: str
    light: str
    dark: str
    file: str
    width: int
    numbers: str | None


@dataclass
class Table:
    """One table of the report.

    Attributes:
        header: names of its columns.
        rows: their cells.
        notes: what people must know to read it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: list[str] = field(default_factory=list)


@dataclass
class Section:
    """A part of the report; one without tables and pictures is left out.

    Attributes:
        title: its heading.
        text: what it shows.
        tables: come first.
        pictures: come below.
    """

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


class Album:
    """The pictures of a report, each also a PNG with its numbers as CSV.

    Attributes:
        files: contents by name.
    """

    def __init__(self) -> None:
        """An empty one."""
        self.files: dict[str, bytes] = {}

    def plot(
        self,
        file: str,
        title: str,
        draw: Draw,
        header: Sequence[str],
        rows: Iterable[Sequence[Any]],
        **size: float,
    ) -> Picture:
        """Draws a plot.

        Args:
            file: its name, without suffix.
            title: what it shows.
            draw: from `dsn_ray.charts`.
            header: names of its numbers.
            rows: the numbers.
            size: `width` and `height` in inches.
        """
        drawn = render(draw, **size)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        numbers = text.getvalue().encode()
        self.files |= {f"{file}.png": drawn.png, f"{file}.csv": numbers}
        light, dark = (_url("image/svg+xml", svg.encode()) for svg in (drawn.light, drawn.dark))
        width = round(_READABLE * 96 * size.get("width", WIDTH))
        return Picture(title, light, dark, file, width, _url("text/csv", numbers))

    def photos(self, file: str, title: str, png: bytes, numbers: bytes | None) -> Picture:
        """Takes a picture of photos, and the CSV of what it shows, as they are."""
        self.files[f"{file}.png"] = png
        if numbers is not None:
            self.files[f"{file}.csv"] = numbers
        with Image.open(io.BytesIO(png)) as picture:
            width = round(_READABLE * picture.width)
        shown = _url("image/png", png)
        return Picture(
            *(title, shown, shown, file, width),
            None if numbers is None else _url("text/csv", numbers),
        )

    def write(self, folder: Path) -> None:
        """Writes the files into a folder; those of an earlier report go."""
        folder.mkdir(exist_ok=True)
        for old in (*folder.glob("*.png"), *folder.glob("*.csv")):
            if old.name not in self.files:
                old.unlink()
        for name, contents in self.files.items():
            (folder / name).write_bytes(contents)


def _url(kind: str, contents: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(contents).decode()}"
