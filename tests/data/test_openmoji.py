"""The embedded emoji: what the sets hold, and what the pictures look like."""

from __future__ import annotations

import hashlib
import io
import random
import sys
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsn_ray.data import openmoji
from dsn_ray.data.catalog import EMBEDDED, Record, open_source
from dsn_ray.data.roots import DataError

SETS = {"openmoji-nature": (8, 6, 157, 133), "openmoji-things": (25, 8, 357, 211)}


def pixels(path: str) -> NDArray[np.uint8]:
    """Decode a rendered picture as [128, 128, 3]."""
    image = Image.open(io.BytesIO(openmoji.render(path)))
    assert image.size == (openmoji.PIXELS, openmoji.PIXELS)
    assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    return np.asarray(image.convert("RGB"))


def sample(name: str, domain: str, every: int) -> list[Record]:
    return [record for record in open_source(name).records if record.domain == domain][::every]


@pytest.mark.parametrize("name", EMBEDDED)
def test_classes_and_sizes(name: str) -> None:
    source = open_source(name)
    photos = [record for record in source.records if record.domain == "photo"]
    sketches = [record for record in source.records if record.domain == "sketch"]
    splits = Counter(record.split for record in photos)
    assert (len(source.seen_classes), len(source.unseen_classes)) == SETS[name][:2]
    assert (splits["seen"], splits["unseen"]) == SETS[name][2:]
    assert len(sketches) == openmoji.SKETCHES_PER_EMOJI * len(photos)
    assert len({record.path for record in source.records}) == len(source.records)
    sizes = Counter(record.class_name for record in photos)
    assert min(sizes.values()) >= openmoji.SMALLEST_CLASS
    assert set(sizes) == {*source.seen_classes, *source.unseen_classes}
    for record in source.records:
        assert (record.class_name in source.unseen_classes) == (record.split == "unseen")


def test_the_sets_share_no_class() -> None:
    nature, things = (set(open_source(name).seen_classes) for name in EMBEDDED)
    assert not nature & things


@pytest.mark.parametrize("name", EMBEDDED)
def test_sketches_are_black_on_white_within_the_frame(name: str) -> None:
    for record in sample(name, "sketch", every=13):
        picture = pixels(record.path)
        assert (picture.min(axis=2) == picture.max(axis=2)).all(), record.path
        edge = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
        assert min(side.min() for side in edge) == 255, record.path
        assert 0.002 < (picture < 128).mean() < 0.5, record.path


@pytest.mark.parametrize("name", EMBEDDED)
def test_photos_are_coloured_on_white(name: str) -> None:
    pictures = [pixels(record.path) for record in sample(name, "photo", every=5)]
    coloured = [np.ptp(picture.astype(int), axis=2).max() > 40 for picture in pictures]
    assert np.mean(coloured) > 0.6  # clocks, paper clips and the like have none
    assert np.mean([picture[0, 0].min() == 255 for picture in pictures]) > 0.95


def test_every_variant_is_another_sketch_of_the_same_emoji() -> None:
    paths = [f"sketch/animal-mammal/1F435-{n}.svg" for n in (1, 2, 3, 4, 5)]
    assert len({openmoji.render(path) for path in paths}) == 5
    joined = openmoji.render("sketch/animal-mammal/1F408-200D-2B1B-1.svg")
    assert joined != openmoji.render("sketch/animal-mammal/1F408-1.svg")


def test_pictures_never_change() -> None:
    path = "sketch/animal-mammal/1F435-3.svg"
    assert openmoji.render(path) == openmoji.render(path)
    outline = openmoji._outline(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><g id="color"/>'
        '<g id="line"><path stroke="#000" stroke-width="2" d="m1,1h9"/></g></svg>',
        random.Random("1F435-3"),
    )
    assert hashlib.sha256(outline.encode()).hexdigest()[:16] == "0bf94df66d336857"


def test_a_drawing_without_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="no line layer"):
        openmoji._outline("<svg/>", random.Random(0))


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(DataError, match=r"resvg_py: pip install dsn-ray\[demo\]"):
        open_source("openmoji-nature")


def test_the_fingerprint_names_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("openmoji-nature")
    first = source.fingerprint()
    assert first == open_source("openmoji-nature").fingerprint()
    monkeypatch.setattr(openmoji, "DRAWING", openmoji.DRAWING + 1)
    assert source.fingerprint() != first
