"""What a report is made of: sections with tables and pictures."""

import base64
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsn_ray.charts import Draw, render


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        title: what it shows.
        light: as a data URL, for light pages.
        dark: likewise, for dark pages.
        file: its name in the run's `report` folder, without suffix.
        wide: whether it wants the page's whole width.
    """

    title: str
    light: str
    dark: str
    file: str
    wide: bool = False


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
    """The pictures of a report, each also a PNG with its numbers as CSV."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder of the pictures."""
        self._folder = folder
        folder.mkdir(exist_ok=True)

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
        (self._folder / f"{file}.png").write_bytes(drawn.png)
        with (self._folder / f"{file}.csv").open("w", newline="", encoding="utf-8") as numbers:
            csv.writer(numbers).writerows([header, *rows])
        light, dark = (_url("svg+xml", text.encode()) for text in (drawn.light, drawn.dark))
        return Picture(title, light, dark, file)

    def photos(self, file: str, title: str, png: bytes) -> Picture:
        """Takes a picture of photos as it is."""
        (self._folder / f"{file}.png").write_bytes(png)
        return Picture(title, _url("png", png), _url("png", png), file, wide=True)


def _url(kind: str, contents: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(contents).decode()}"
