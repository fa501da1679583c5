"""`prepare` as a person runs it."""

import json
import shutil

import numpy as np
import pytest
import ray
from PIL import Image

from dsn_ray import prepare
from dsn_ray.data.shards import read_manifest
from dsn_ray.data.storage import Folder
from tests.conftest import SHARED_DATA


def test_prepare_then_a_preview(attached, drawings, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"folder:toy={drawings}", "--out", "shards", "--preview", "2"]
    assert prepare.main(arguments) == 0
    said = capfd.readouterr().out
    assert said.splitlines()[-1] == str(tmp_path / "shards")
    assert "1 picture did not decode" in said
    sheet = np.asarray(Image.open(tmp_path / "shards" / "preview.png").convert("L"))
    blank = (sheet == 255).mean()
    assert 0.3 < blank < 0.99
    # Two classes, each with a row of sketches and one of photos: something is drawn in all four.
    for rows in np.array_split(sheet, 4):
        assert (rows < 200).mean() > 0.005
    before = (tmp_path / "shards" / "preview.png").read_bytes()
    assert prepare.main(arguments) == 0
    assert (tmp_path / "shards" / "preview.png").read_bytes() == before


def test_a_folder_of_other_files_is_refused_before_ray_is_started(
    drawings, tmp_path, capfd, monkeypatch
):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(ray, "init", None)
    assert prepare.main([f"folder:toy={drawings}", "--out", str(tmp_path)]) == 2
    said = capfd.readouterr()
    assert said.err == f"error: {tmp_path} holds other files; choose a new folder.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_verify_tells_and_fails_where_numbers_would_be_wrong(attached, drawings, tmp_path, capfd):
    given = [f"folder:toy={drawings}", "--verify", "--json", str(tmp_path / "found.json")]
    assert prepare.main(given) == 0
    assert "photo/circle/broken.png: " in capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["errors"] == []
    copy = tmp_path / "copy"
    shutil.copytree(drawings, copy)
    shutil.copy(copy / "photo/square/0.png", copy / "photo/zigzag/same.png")
    assert prepare.main([f"folder:toy={copy}", "--verify"]) == 2
    said = capfd.readouterr()
    assert said.err.startswith("error: 1 pictures lie in both seen and unseen classes")


def rows_of(printed):
    """The rows of printed tables."""
    rows = (line.strip("│") for line in printed.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in row.split("│")] for row in rows]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real pictures are not on this machine")
def test_a_part_of_an_official_set_is_told_apart_from_all_of_it(attached, tmp_path, capfd):
    root = tmp_path / "Sketchy"
    shutil.copytree(SHARED_DATA / "Sketchy", root, symlinks=True)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    swan = next(root.glob("256x256/sketch/*/swan"))
    for path in swan.glob("*.png"):
        path.unlink()
    assert prepare.main([f"sketchy={root}", "--verify"]) == 2
    said = capfd.readouterr()
    assert "sketchy: not the complete official set." in said.out
    assert ["unseen", "swan", "25", "0"] in rows_of(said.out)
    assert ["unseen", "sketch", "625", "15229", "25", "600", "15229", "0"] in rows_of(said.out)
    assert "17 unseen classes are ImageNet's too" in said.out
    assert "1 classes have no sketch: swan." in said.err

    out = tmp_path / "shards"
    assert prepare.main([f"sketchy={root}", "--out", str(out)]) == 2
    assert "With --partial `prepare` leaves them out." in capfd.readouterr().err
    assert not out.exists()
    assert prepare.main([f"sketchy={root}", "--out", str(out), "--partial"]) == 0
    said = capfd.readouterr()
    assert "25 pictures that lists name are not there and are left out." in said.out
    made = read_manifest(Folder.at(out))
    assert made.counts["unseen/sketch"] == 600
    assert not made.official


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real pictures are not on this machine")
def test_a_part_of_tuberlin_is_verified_and_shown(attached, tmp_path, capfd):
    data = f"tuberlin={SHARED_DATA / 'TUBerlin-standin'}"
    assert prepare.main([data, "--verify"]) == 0
    said = capfd.readouterr().out
    assert "tuberlin: not the complete official set." in said
    assert "148 classes are absent: " in said
    assert "13 unseen classes are ImageNet's too" in said
    assert ["unseen", "photo", "515", "27989", "0", "515", "27989", "0"] in rows_of(said)
    out = tmp_path / "shards"
    assert prepare.main([data, "--out", str(out), "--preview", "2"]) == 0
    made = read_manifest(Folder.at(out))
    assert (made.counts["heldout/sketch"], made.counts["unseen/photo"]) == (280, 515)
    sheet = np.asarray(Image.open(out / "preview.png").convert("L"))
    for rows in np.array_split(sheet, 4):
        assert (rows < 200).mean() > 0.005


NOBODY = "s3://a:b@bucket/raw?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder:toy=HERE"], "one of the arguments --out --verify is required"),
        (["sketchy=/nowhere", "--out", "x"], "sketchy: there is no folder /nowhere"),
        ([f"sketchy={NOBODY}", "--out", "x"], f"{NOBODY} cannot be listed: "),
        (["folder:toy=HERE", "--out", "x", "--preview", "0"], "--preview 0: at least 1"),
        (["folder:toy=HERE", "--out", "x", "--unseen", "2"], "a share between 0 and 1"),
        (["openmoji-nature", "--out", "x", "--unseen", "0.2"], "has its own split"),
        (["folder:toy=HERE", "--out", "no://where"], "no://where cannot be reached"),
        (["sketchy=/nowhere", "--verify", "--json", "x/found.json"], "there is no folder /nowhere"),
        (["folder:toy=HERE", "--verify", "--json", "."], "this is a folder; name a file"),
        (["folder:toy=HERE", "--out", "x", "--json", "y"], "--json goes with --verify"),
        (["folder:toy=HERE", "--verify", "--keep"], "--keep goes with --out, not with --verify"),
        (["folder:toy=HERE", "--verify", "--partial"], "--partial goes with --out"),
        (["folder:toy=HERE", "--out", "x", "--seed", "1"], "--seed goes with --unseen"),
    ],
)
def test_bad_input(drawings, tmp_path, capfd, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = prepare.main([text.replace("HERE", str(drawings)) for text in arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "x").exists()
