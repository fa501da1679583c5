"""Pictures of what a search finds: each sketch, and beside it the photos nearest to it."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

TILE = 112
_GAP, _CAPTION, _FRAME = 6, 28, 4


class Tile(NamedTuple):
    """One picture of a grid."""

    picture: Image.Image
    caption: str
    frame: str | None = None
    """its colour, as PIL names colours"""


def grid(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Draws a row for each sketch, which comes first and a little apart.

    Args:
        rows: the sketch and the photos found; at least one.
    """
    captions = _CAPTION if any(tile.caption for row in rows for tile in row) else 0
    step, height = TILE + _GAP, TILE + captions + _GAP
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * step + 3 * _GAP, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        for place, tile in enumerate(row):
            left, top = _GAP + place * step + (_GAP if place else 0), _GAP + line * height
            size = TILE - 2 * _FRAME if tile.frame else TILE
            picture = ImageOps.contain(tile.picture.convert("RGB"), (size, size))
            if tile.frame:
                picture = ImageOps.expand(picture, _FRAME, tile.frame)
            sheet.paste(picture, (left, top))
            lines = (_cut(line, draw) for line in tile.caption.splitlines())
            draw.text((left, top + TILE + 1), "\n".join(lines), fill="black")
    return sheet


def _cut(line: str, draw: ImageDraw.ImageDraw) -> str:
    """A line that is no wider than a tile."""
    if draw.textlength(line) <= TILE:
        return line
    kept = next(n for n in range(len(line), -1, -1) if draw.textlength(line[:n] + "...") <= TILE)
    return line[:kept] + "..."
