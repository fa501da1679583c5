import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dsn_ray.data.storage import Folder
from dsn_ray.details import chosen_queries, draw, nearest, write_details
from dsn_ray.figures import TILE
from dsn_ray.rating import Embedded

CLASSES = ("bear", "cup", "lonely")


def embedded(values, labels, colour=128):
    """Pictures of one colour each."""
    values = np.array(values, np.float32)
    ids = np.arange(len(values)) + 5
    table = SimpleNamespace(ids=ids, pixels=lambda row: np.full((3, 32, 32), colour, np.uint8))
    return Embedded(SimpleNamespace(table=lambda: table), values, np.array(labels), ids)


# The second sketch of a cup lies beside the bears.
QUERIES = embedded([[1, 0], [0, 1], [0.9, 0.1], [1, 1]], [0, 1, 1, 2])
GALLERY = embedded([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], colour=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("details")
    write_details(Folder.at(folder), {"dataset": "x", "seed": 0}, CLASSES, QUERIES, GALLERY)
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_class_has_the_mean_of_its_queries(folder):
    bear, cup = table(folder / "per_class.csv")
    assert bear == {"class": "bear", "sketches": "1", "photos": "2", "AP": "1.0000"}
    # Ranks 1 and 2 for one sketch, 3 and 4 for the other: (1 + (1/3 + 2/4) / 2) / 2.
    assert cup["sketches"] == "2"
    assert float(cup["AP"]) == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 2, abs=1e-4)


def test_curves_and_similarities_are_those_of_the_features(folder):
    curve = table(folder / "precision_recall.csv")
    assert len(curve) == 101
    assert float(curve[0]["precision"]) == pytest.approx((1 + 1 + 2 / 4) / 3, abs=1e-4)
    similar = table(folder / "similarity.csv")
    assert [row["sketches of"] for row in similar] == list(CLASSES)
    assert float(similar[0]["bear"]) > 0.99
    assert similar[2]["bear"] == "nan"


def test_the_last_file_tells_what_they_are_of(folder):
    assert json.loads((folder / "about.json").read_text()) == {"dataset": "x", "seed": 0}
    assert len(list(folder.iterdir())) == 8


def test_wrong_photos_are_framed_red_and_the_worst_queries_come_first(folder):
    red = [
        (np.asarray(Image.open(folder / name).convert("RGB")) == (255, 0, 0)).all(axis=2)
        for name in ("retrievals.png", "worst.png")
    ]
    row = len(red[0]) // 2
    assert red[0][:row].any()  # the bear's third photo is a cup
    worst = np.argwhere(red[1][:row])
    assert worst[:, 1].min() < 2 * TILE + 40  # the first photo found is wrong already


def test_a_picture_has_one_query_of_each_class():
    assert chosen_queries(QUERIES).tolist() == [0, 1, 3]
    one, two = (nearest(QUERIES, GALLERY, range(count)) for count in (1, 2))
    heights = [draw(QUERIES, GALLERY, found, CLASSES).height for found in (one, two)]
    assert heights[0] < heights[1]


def test_every_photo_of_a_picture_has_its_numbers(folder):
    first, second, third, *_ = table(folder / "retrievals.csv")
    assert first == {
        **{"sketch": "5", "class": "bear", "AP": "1.0000", "rank": "1", "photo": "5"},
        **{"its class": "bear", "cosine": "1.0000", "right": "yes"},
    }
    assert (second["photo"], second["right"]) == ("6", "yes")
    assert (third["photo"], third["its class"], third["right"]) == ("8", "cup", "no")
    assert {row["class"] for row in table(folder / "worst.csv")} == {"bear", "cup"}
