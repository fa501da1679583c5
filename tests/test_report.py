"""The report of runs whose folders are made up here."""

import csv
import json
import re

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image

from dsn_ray.config import Config
from dsn_ray.data.storage import Folder
from dsn_ray.details import write_details
from dsn_ray.report import main, write_report
from dsn_ray.search import open_journal
from tests.test_details import CLASSES, GALLERY, QUERIES
from tests.test_tables import rows

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    """Makes a run's folder with what it is asked for."""

    def make(trials=0, final=(), details=(), variants=None, name="first"):
        folder = tmp_path / name
        folder.mkdir()
        space = {"variants": variants} if variants else {}
        tree = {"data": {"sketchy": NASTY}, "config": Config().model_dump(mode="json")}
        (folder / "config.yaml").write_text(yaml.safe_dump({**tree, "space": space}))
        if trials:
            search(folder, trials)
        if final:
            contents = {"setting": None, "rows": list(final), "untrained": [], "official": {}}
            contents["official"] = {row["dataset"]: False for row in final}
            (folder / "final.json").write_text(json.dumps(contents))
        for number, about in enumerate(details):
            where = Folder.at(folder / "final" / str(number) / "details")
            write_details(where, about, CLASSES, QUERIES, GALLERY)
        return folder

    return make


def search(folder, count):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = open_journal(folder / "study.journal")
    study = optuna.create_study(study_name="search", storage=journal, direction="maximize")
    random, lines, epochs = np.random.default_rng(0), [], []
    for number in range(1, count + 1):
        trial = study.ask()
        values = {
            name: trial.suggest_float(name, 0.01, 10, log=True)
            for name in ("loss.lambda1", "loss.lambda2")
        }
        cut = number % 3 == 0
        value = 0.5 + 0.1 * values["loss.lambda1"] / 10 + random.random() / 100
        study.tell(trial, value)
        state = "stopped early" if cut else "finished"
        about = {"number": number, "seed": 0, "parameters": values, "value": value}
        lines.append({**about, "epochs": 1 if cut else 3, "state": state})
        for epoch in range(1, 2 if cut else 4):
            about = {"training": f"trial {number}, seed 0", "epoch": epoch, "mAP": value}
            more = {"loss_total": 1 / epoch, "seconds": 30.0, "waiting_for_data": 0.5}
            epochs.append({**about, **more})
    for name, found in (("trials.jsonl", lines), ("epochs.jsonl", epochs)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in found))


def headings(page):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def ablation():
    return [
        row
        for variant, value in {"baseline": 0.2, "both": 0.3}.items()
        for seed in (0, 1)
        for row in rows("sketchy", value + seed / 1000, seed=seed, variant=variant, parameters={})
    ]


def test_a_run_with_everything_has_every_section_and_needs_nothing_else(run):
    about = [
        {"dataset": "sketchy", "variant": variant, "seed": seed}
        for variant in ("baseline", "both")
        for seed in (0, 1)
    ]
    folder = run(8, ablation(), about, {"baseline": {}, "both": {}})
    page = write_report(folder).read_text()
    assert headings(page) == [
        "Results",
        "What each loss adds",
        "What was found: sketchy, both",
        "mAP over lambda1 and lambda2",
        "The search",
        "Learning curves",
        "What ran",
        "Settings",
    ]
    assert not re.findall(r"(?:src|href|srcset)=\"(?!#|data:)", page)
    assert "0.436 (other data)" in page
    assert "stopped early" in page
    assert "PARTIAL" not in page


def test_every_picture_is_a_file_too_and_every_plot_has_its_numbers(run):
    folder = run(8, ablation(), [{"dataset": "sketchy", "variant": "both", "seed": 0}])
    page = write_report(folder).read_text()
    named = set(re.findall(r"\(([\w-]+) in report/\)", page))
    drawn = {path.stem for path in (folder / "report").glob("*.png")}
    assert named == drawn
    assert {"history", "importance", "lambdas", "learning", "loss-search"} <= drawn
    for name in drawn:
        with Image.open(folder / "report" / f"{name}.png") as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert len(colours) > 3, name
    numbers = {path.stem for path in (folder / "report").glob("*.csv")}
    assert numbers == drawn - {"retrievals-sketchy", "worst-sketchy"}
    with (folder / "report" / "history.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_what_is_not_there_is_left_out(run):
    page = write_report(run(name="new")).read_text()
    assert headings(page) == ["What ran", "Settings"]
    assert "PARTIAL" in page


def test_names_are_escaped(run):
    about = {"dataset": NASTY, "variant": NASTY, "seed": 0}
    final = [{**row, "parameters": {}} for row in rows(NASTY, 0.2, variant=NASTY)]
    page = write_report(run(0, final, [about])).read_text()
    assert NASTY not in page
    assert "&lt;script&gt;" in page


def test_a_grid_is_a_heat_map_of_unseen_classes_too(run):
    final = [
        {**row, "parameters": {"loss.lambda1": x, "loss.lambda2": y}, "variant": f"{x} {y}"}
        for x in (0.01, 0.1)
        for y in (0.1, 1.0)
        for row in rows("sketchy", x + y)
    ]
    folder = run(0, final)
    assert "never chosen by" in write_report(folder).read_text()
    with (folder / "report" / "lambdas-sketchy.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.parametrize("spoil", ["", "config.yaml", "trials.jsonl", "final.json"])
def test_a_folder_that_is_no_run_is_said_in_one_line(run, tmp_path, capsys, spoil):
    folder = tmp_path / "nothing"
    if spoil:
        folder = run(4, ablation())
        (folder / spoil).write_text("{ [\n{\n")
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(folder) in line
    assert not (folder / "report.html").exists()
