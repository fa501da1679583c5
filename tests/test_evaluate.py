"""What `evaluate` says before it starts Ray."""

import numpy as np
import pytest

from dsn_ray import evaluate, runtime
from dsn_ray.errors import UserError
from tests.conftest import draw


@pytest.fixture
def without_ray(monkeypatch):
    def refuse():
        raise UserError("There is no Ray in this test.")

    monkeypatch.setattr(runtime, "ray_cluster", refuse)


@pytest.mark.parametrize("unseen", ["circle", "square"])
def test_classes_that_were_trained_on_are_named(
    checkpoint, tmp_path, monkeypatch, without_ray, capfd, unseen
):
    for shape in ("circle", "square"):
        for domain in ("sketch", "photo"):
            draw(tmp_path, domain, shape, 0)
    (tmp_path / "unseen.txt").write_text(unseen)
    given = ["--checkpoint", str(checkpoint), "--data", f"folder:mine={tmp_path}"]
    assert evaluate.main(given) == 2
    said = capfd.readouterr()
    assert "There is no Ray in this test." in said.err
    line = "1 of the 1 unseen classes are classes that this checkpoint was trained on"
    assert (line in said.out) == (unseen == "circle")


@pytest.mark.parametrize("option", ["--dedupe", "--figure=x.png"])
def test_features_have_no_pictures(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--features", "f.npz", option]) == 2
    assert f"{option.split('=')[0]} needs --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["picture", "objects"])
def test_what_holds_no_features_is_one_line(tmp_path, capsys, kind):
    file = tmp_path / "f.npz"
    if kind == "picture":
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    else:
        names = [
            f"{side}_{what}" for side in ("query", "gallery") for what in ("features", "labels")
        ]
        np.savez(file, **{name: np.array([{}], object) for name in names})
    assert evaluate.main(["--features", str(file)]) == 2
    reason = {"picture": "not an .npz file", "objects": "an array of objects"}[kind]
    assert capsys.readouterr().err == f"error: --features {file}: {reason}.\n"
