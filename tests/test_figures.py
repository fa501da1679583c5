"""Grids of pictures."""

import numpy as np
from PIL import Image

from dsn_ray.figures import TILE, Tile, grid


def test_every_tile_is_drawn_in_its_place_and_wrong_ones_are_framed():
    blue, green = (Image.new("RGB", (50, 50), colour) for colour in ("blue", "green"))
    tall = Image.new("RGB", (20, 200), "green")
    sheet = np.asarray(grid([[Tile(blue, "a sketch"), Tile(green, "0.9"), Tile(tall, "", "red")]]))
    where = {
        name: np.argwhere((sheet == colour).all(axis=2))
        for name, colour in {"blue": (0, 0, 255), "green": (0, 128, 0), "red": (255, 0, 0)}.items()
    }
    assert len(where["blue"]) == TILE * TILE
    assert where["blue"][:, 1].max() < where["green"][:, 1].min()
    assert where["red"][:, 1].min() > TILE * 2
    height = where["red"][:, 0].max() - where["red"][:, 0].min() + 1
    assert height == TILE
    assert len(where["green"]) > TILE * TILE


def test_rows_may_be_of_different_lengths():
    tile = Tile(Image.new("L", (8, 8)), "x")
    one, two = grid([[tile]]), grid([[tile], [tile, tile]])
    assert two.width > one.width
    assert two.height > one.height


def test_a_long_caption_stays_below_its_tile():
    tile = Tile(Image.new("RGB", (8, 8), "white"), "w" * 99)
    sheet = np.asarray(grid([[tile, Tile(Image.new("RGB", (8, 8), "white"), "")]]).convert("L"))
    ink = np.argwhere(sheet < 128)
    assert ink[:, 1].max() <= TILE + 12
