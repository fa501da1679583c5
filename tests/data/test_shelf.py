"""What the trainings of a run share in the object store."""

import io

import ray
from rich.console import Console

from dsn_ray.config import RECIPES, Config
from dsn_ray.data import pictures as pictures_module
from dsn_ray.data import teaching
from dsn_ray.shelf import Shelf


def test_pictures_weights_and_logits_are_loaded_once(shards, monkeypatch):
    loaded = []
    load, judge = pictures_module.load_pictures, teaching.teacher_logits
    monkeypatch.setattr(
        pictures_module, "load_pictures", lambda *of: loaded.append(of[1:]) or load(*of)
    )
    monkeypatch.setattr(teaching, "teacher_logits", lambda *of: loaded.append(of[2]) or judge(*of))
    small = {"network.backbone": "efficientnet_lite0", "data.px": 32, "data.teacher_px": 32}
    paper = Config().with_settings(small)
    release = Config().with_settings({**RECIPES["release"], **small})
    out = io.StringIO()
    shelf = Shelf({"folder:toy": shards}, {"folder:toy": None}, Console(file=out, width=200))

    def contents(config):
        return ray.get(shelf.data("folder:toy", config).contents)

    one, other = contents(paper), contents(release)
    assert loaded == [("seen", "sketch", 32), ("seen", "photo", 32), "photo"]
    assert one.photos.blocks == other.photos.blocks
    assert one.photos.table().is_judged
    assert not other.photos.table().is_judged
    assert one.weights == other.weights
    assert out.getvalue().count("folder:toy") == 1
    larger = contents(paper.with_settings({"data.px": 48}))
    assert len(loaded) == 5
    assert larger.photos.px == 48
    assert larger.photos.logits == one.photos.logits
    assert shelf.shards == {"folder:toy": shards}
