"""The report of runs whose folders are made up here."""

import base64
import csv
import json
import re
from unittest.mock import patch

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image

from dsn_ray import sections
from dsn_ray.album import Album
from dsn_ray.config import Config
from dsn_ray.data.storage import Folder
from dsn_ray.details import write_details
from dsn_ray.record import read_run
from dsn_ray.report import main, write_report
from dsn_ray.space import describe
from dsn_ray.study import open_journal
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


def test_an_epoch_that_a_resumed_training_reports_again_counts_once(run):
    folder = run(2, ablation(), [])
    lines = (folder / "epochs.jsonl").read_text().splitlines(keepends=True)
    (folder / "epochs.jsonl").write_text("".join([*lines, lines[0]]))
    page = write_report(folder).read_text()
    assert f"a training, {len(lines)} in all" in page
    assert f"{len(lines) * 30 // 60} min 0 s, 50% of it waiting" in page


def test_every_picture_is_a_file_too_and_every_plot_has_its_numbers(run):
    folder = run(8, ablation(), [{"dataset": "sketchy", "variant": "both", "seed": 0}])
    page = write_report(folder).read_text()
    named = set(re.findall(r"\(([\w-]+) in report/,", page))
    drawn = {path.stem for path in (folder / "report").glob("*.png")}
    assert named == drawn
    assert {"history", "importance", "lambdas", "learning", "loss-search"} <= drawn
    for name in drawn:
        with Image.open(folder / "report" / f"{name}.png") as picture:
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert len(colours) > 3, name
    numbers = {path.stem for path in (folder / "report").glob("*.csv")}
    assert numbers == drawn == set(re.findall(r'download="([\w-]+).csv" href="data:text/csv', page))
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


def test_a_damaged_file_takes_only_its_own_section_away(run, capsys):
    folder = run(3, ablation(), [{"dataset": "sketchy", "variant": "both", "seed": 0}])
    (folder / "final/0/details/per_class.csv").unlink()
    (folder / "final/0/details/worst.csv").unlink()  # as runs of older versions
    (folder / "epochs.jsonl").write_text('{"training": "trial 1, seed 0"}\n')
    (folder / "study.journal").write_text("garbage\n{{")
    (folder / "report").mkdir()
    (folder / "report" / "of-an-earlier-one.png").write_text("")
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert headings(page) == ["Results", "What each loss adds", "The search", "Settings"]
    assert "What was found: not shown (FileNotFoundError: " in page
    assert "Learning curves: not shown (KeyError: &#39;epoch&#39;)" in page
    drawn = {path.stem for path in (folder / "report").iterdir()}
    assert drawn == {"history", "retrievals-sketchy", "worst-sketchy"}
    assert not (folder / "report" / "worst-sketchy.csv").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_what_was_found_is_of_the_setting_chosen_by_validation(run):
    settings = [{"loss.lambda1": x, "loss.lambda2": y} for x in (0.01, 0.1, 1) for y in (1, 2, 3)]
    names = [describe(setting) for setting in settings]
    names[0] = r"$\frac{$"
    final = [row for name in names for row in rows("sketchy", 0.2, variant=name)]
    about = [{"dataset": "sketchy", "variant": name, "seed": 0} for name in names]
    about.append({"dataset": "sketchy", "variant": "of an earlier run", "seed": 0})
    folder = run(0, final, about)
    contents = json.loads((folder / "final.json").read_text())
    (folder / "final.json").write_text(json.dumps({**contents, "setting": settings[4]}))
    album = Album()
    (section,) = sections._retrieval(read_run(folder), album)
    assert section.title == "What was found: sketchy, lambda1=0.1 lambda2=2"
    curves = base64.b64decode(section.pictures[-1].light.partition(",")[2]).decode()
    assert re.findall(r">(lambda1=.*|others|\$.*)</text>", curves) == [
        "others",
        "lambda1=0.1 lambda2=2",
    ]
    assert album.files["recall-sketchy.csv"].count(b"\n") == 1 + 101 * len(names)
    assert b"earlier" not in album.files["recall-sketchy.csv"]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([("baseline", 0), ("baseline", 1), ("both", 1)], "each photo once, seed 1."),
        ([("baseline", 0), ("both", 2)], "each photo once, seeds: baseline 0, both 2."),
    ],
)
def test_curves_of_variants_are_of_one_seed_or_say_so(run, seeds, said):
    final = [row for variant, seed in seeds for row in rows("x", 0.2, seed=seed, variant=variant)]
    about = [{"dataset": "x", "variant": variant, "seed": seed} for variant, seed in seeds]
    folder = run(0, final, about, {"baseline": {}, "both": {}})
    with patch.object(sections, "_behind", lambda *given: []):
        (section,) = sections._retrieval(read_run(folder), Album())
    assert section.text.endswith(said)


def test_a_trial_counts_by_the_mean_of_its_seeds(run):
    folder = run()
    values = {1: (0.9, 0.1), 2: (0.6, 0.6), 3: (0.7,)}
    lines = [
        {"number": number, "seed": seed, "parameters": {}, "value": value, "state": "finished"}
        for number, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third = sections._tried(read_run(folder))
    assert (first.value, second.value) == pytest.approx((0.5, 0.6))
    assert (first.state, third.state) == ("finished", "unfinished")


@pytest.mark.parametrize("least", [0.0, 0.01])
def test_lambdas_are_drawn_and_named_also_where_one_is_zero(least):
    album = Album()
    points = [(least, 0.1, 0.3), (least, 0.2, 0.4), (1.0, least, 0.5), (10.0, 0.3, 0.5)]
    (picture,) = sections._surface(album, "lambdas", "x", points)
    assert album.files["lambdas.csv"].count(b"\n") == 1 + len(points)
    drawn = base64.b64decode(picture.light.partition(",")[2]).decode()
    assert drawn.count("<use ") >= len(points)
    names = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"1", "10", "lambda1", "lambda2"} <= set(names)
    assert not any("$" in name for name in names)


def test_a_single_training_is_not_partial(run):
    folder = run()
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    del tree["space"]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert "PARTIAL" not in write_report(folder).read_text()


@pytest.mark.parametrize("config", ["", "[1]", "x: 1", "data: {}"])
def test_settings_of_another_kind_are_said_in_one_line(run, capsys, config):
    folder = run()
    (folder / "config.yaml").write_text(config)
    assert main([str(folder)]) == 2
    assert "its config.yaml is not that of a run" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_said_in_one_line(run, capsys):
    folder = run()
    (folder / "report").write_text("a file")
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / 'report'} cannot be written: File exists." in line
    assert not (folder / "report.html").exists()


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
