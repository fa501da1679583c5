"""`retrieve` as a person runs it."""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from dsn_ray import retrieve
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.data.views import decode
from dsn_ray.gallery import embed
from tests.conftest import draw


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for shape in ("circle", "square"):
        for number in range(4):
            draw(tmp_path, "photo", shape, number)
    draw(tmp_path, "sketch", "circle", 0)
    draw(tmp_path, "sketch", "square", 1)
    return tmp_path


@pytest.mark.parametrize("codes", ["real", "binary"])
def test_search_with_two_sketches(here, checkpoint, capsys, codes):
    sketches = ["sketch/circle/0.png", "sketch/square/1.png"]
    given = ["--checkpoint", str(checkpoint), "--gallery", "photo", "--codes", codes, "--top", "3"]
    assert retrieve.main([*given, *sketches, "--save", "grid.png", "--json", "found.json"]) == 0
    said = capsys.readouterr().out
    assert "photo: 8 photos, 8 of them new" in said
    found = json.loads((here / "found.json").read_text())
    assert found["codes"] == codes
    assert [result["sketch"] for result in found["results"]] == sketches
    for result in found["results"]:
        scores = [photo["score"] for photo in result["photos"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=codes == "real")
        for photo in result["photos"]:
            assert (here / "photo" / photo["path"]).is_file()
            assert photo["class"] == photo["path"].split("/")[0]
            assert photo["path"] in said
    sheet = np.asarray(Image.open("grid.png").convert("L"))
    for row in np.array_split(sheet, 2):
        for tile in np.array_split(row, 4, axis=1):
            assert (tile < 200).mean() > 0.005


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png cannot be read: No such file"),
        (["text.png"], "text.png is no sketch that can be used"),
        (["sketch/circle/0.png", "--top", "0"], "--top 0: at least 1"),
        (["sketch/circle/0.png", "--gallery", "nowhere"], "nowhere: there is no such folder"),
        (["sketch/circle/0.png", "--checkpoint", "photo"], "this is not a checkpoint folder"),
        (["sketch/circle/0.png", "--save", "photo"], "--save photo: this is a folder"),
        (["sketch/circle/0.png"] * 201 + ["--save", "x.png"], "draws 200 sketches at most"),
    ],
)
def test_bad_input(here, checkpoint, capsys, arguments, message):
    (here / "text.png").write_text("no picture")
    usual = ["--checkpoint", str(checkpoint), "--gallery", "photo"]
    assert retrieve.main([*usual, *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1


def test_scores_are_the_cosines_of_what_training_sees(here, checkpoint, prepared):
    network = open_checkpoint(checkpoint).network()
    features = {
        file: embed(network, [decode(stored, 32)], photos=domain == "photo")[0]
        for (file, domain), stored in prepared.items()
    }
    sketches = [file for file, domain in prepared if domain == "sketch"]
    photos = next(file.parents[1] for file, domain in prepared if domain == "photo")
    given = ["--checkpoint", str(checkpoint), "--gallery", str(photos), "--json", "found.json"]
    with patch.object(retrieve, "_BATCH", 3):
        assert retrieve.main([*given, *map(str, sketches)]) == 0
    for result in json.loads((here / "found.json").read_text())["results"]:
        assert len(result["photos"]) == 2
        for photo in result["photos"]:
            cosine = features[Path(result["sketch"])] @ features[photos / photo["path"]]
            assert photo["score"] == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize("what", ["other dimension", "truncated", "no network", "code"])
def test_a_checkpoint_that_does_not_fit_is_one_line(here, checkpoint, capsys, what):
    shutil.copytree(checkpoint, here / "broken")
    state = here / "broken" / "state.pt"
    if what == "other dimension":
        about = json.loads((here / "broken" / "about.json").read_text())
        about["config"]["network"]["dim"] = 32
        (here / "broken" / "about.json").write_text(json.dumps(about))
    elif what == "truncated":
        state.write_bytes(state.read_bytes()[:1000])
    elif what == "no network":
        torch.save({"weights": {}}, state)
    else:
        torch.save({"network": Path("x")}, state)
    given = ["--checkpoint", "broken", "--gallery", "photo", "sketch/circle/0.png"]
    assert retrieve.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken: its state.pt does not hold the network that about.json describes" in line
