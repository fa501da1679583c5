"""The commands as a person runs them, on a small data set and a real Ray cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from dsn_ray import evaluate, fleet, gauges, run_evaluation, run_training, train, tune
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.data.pictures import load_pictures
from dsn_ray.data.shards import locate, open_shards
from dsn_ray.errors import UserError
from dsn_ray.fleet import Fleet, Machines
from dsn_ray.rating import UnseenPictures, evaluate_checkpoint
from dsn_ray.room import Resources, Shape, allot
from dsn_ray.runtime import ray_cluster
from dsn_ray.training import Training
from tests.conftest import SHAPES, UNSEEN, processes_with, rows_by_key

SPACES = Path(__file__).parents[1] / "search_spaces"
SPACE = """
parameters:
  loss.lambda1: {distribution: loguniform, low: 0.01, high: 1.0}
  memory.k: {distribution: int, low: 1, high: 30}
first:
  - {loss.lambda1: 0.1, memory.k: 10}
budget: {trials: 2}
set:
  network.backbone: efficientnet_lite0
  data.validation_classes: 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch, cache):
    """A working folder of its own with a space file, and a cache that the tests share."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def smoke(**settings):
    """The options of a training of seconds."""
    usual = {**tune.SMOKE_TEST, "network.backbone": "efficientnet_lite0"}
    usual["data.validation_classes"] = 2
    return [f"--set={name}={value}" for name, value in (usual | settings).items()]


def as_sketchy(drawings, root):
    """The drawings in Sketchy's layout; every third sketch of the seen classes is held out."""
    listed = {}
    for number, file in enumerate(sorted(drawings.glob("*/*/*.png"))):
        domain, shape = file.parts[-3:-1]
        path = f"256x256/{domain}/tx_000000000000_ready/{shape}/{file.name}"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(file.read_bytes())
        part = "zero" if shape in UNSEEN else "train"
        if (domain, part, number % 3) == ("sketch", "train", 0):
            part = "test"
        listed.setdefault((domain, part), []).append((path, shape))
    listed["photo", "zero"].append(listed["photo", "zero"][0])  # as Sketchy's own lists do
    (root / "zeroshot1").mkdir()
    seen = sorted(set(SHAPES) - set(UNSEEN))
    names = {"sketch": "sketch_tx_000000000000_ready", "photo": "all_photo"}
    files = {f"{names[d]}_filelist_{part}.txt": lines for (d, part), lines in listed.items()}
    files["cname_cid.txt"] = [(name, name) for name in seen]
    files["cname_cid_zero.txt"] = [(name, name) for name in sorted(UNSEEN)]
    for file, lines in files.items():
        text = "".join(
            f"{line} {(seen if of in seen else sorted(UNSEEN)).index(of)}\n" for line, of in lines
        )
        (root / "zeroshot1" / file).write_text(text)
    return root


@pytest.mark.slow
def test_the_released_recipe_keeps_the_epoch_that_rates_held_out_sketches_best(
    here, attached, drawings, capfd
):
    root = as_sketchy(drawings, here / "Sketchy")
    given = smoke(**{"train.epochs": 2})
    data = ["--data", f"sketchy={root}"]
    assert train.main([*data, *given, "--recipe", "release", "--name", "released"]) == 0
    checkpoint = Path(capfd.readouterr().out.splitlines()[-1])
    about = json.loads((checkpoint / "about.json").read_text())
    assert about["config"]["memory"]["update"] == "release"
    kept = [json.loads(f.read_text()) for f in checkpoint.parent.glob("*/about.json")]
    best = max(kept, key=lambda one: one["metrics"]["seen_binary_mAP"])
    assert about["metrics"] == best["metrics"]
    with ray_cluster():
        shards = open_shards(locate("sketchy", str(root)))
        px = about["config"]["data"]["px"]
        heldout = load_pictures(shards, "heldout", "sketch", px)
        assert heldout.count == 10
        sides = UnseenPictures(
            heldout, load_pictures(shards, "seen", "photo", px), np.array([]), ()
        )
        resources = allot(Shape(), Console())
        rows = evaluate_checkpoint(open_checkpoint(checkpoint), sides, resources)
    rated = rows_by_key(rows)["binary", "published", "mAP@all"]
    assert about["metrics"]["seen_binary_mAP"] == pytest.approx(rated, abs=1e-6)
    again = ["--checkpoint", str(checkpoint), "--itq-fit", "training", "--json", "rows.json"]
    assert evaluate.main(again) == 0
    rows = json.loads((here / "rows.json").read_text())["rows"]
    assert len(rows) == 8
    assert {row["gallery"] for row in rows} == {3 * len(UNSEEN) * 2 + 1}
    assert evaluate.main([*again, "--dedupe"]) == 0
    rows = json.loads((here / "rows.json").read_text())["rows"]
    assert {(row["gallery"], row["deduplicated"]) for row in rows} == {(3 * len(UNSEEN) * 2, True)}


@pytest.mark.slow
@pytest.mark.parametrize("space", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_of_the_project_comes_to_its_end(here, attached, drawings, space):
    given = ["--set=network.backbone=efficientnet_lite0"]
    tree = yaml.safe_load(space.read_text())
    if "parameters" in tree:
        given.append("--set=data.validation_classes=2")
    data = [f"--data=folder:toy={drawings}", "--smoke-test", "--workers", "1", *given]
    assert tune.main(["--space", str(space), *data, "--name", "small"]) == 0
    run = here / "runs" / "small"
    rows = json.loads((run / "final.json").read_text())["rows"]
    trainings = len(tree.get("variants", ())) or (2 if tree.get("final", {}).get("settings") else 1)
    assert len({row["checkpoint"] for row in rows}) == trainings
    assert "PARTIAL" not in (run / "report.html").read_text()
    assert len(list(run.glob("final/*/details/about.json"))) == trainings


@pytest.mark.slow
def test_a_training_that_diverges_ends_and_says_so(here, attached, drawings, capfd):
    given = smoke(**{"network.weights": "none", "optimizer.lr": 1e30, "train.epochs": 5})
    data = ["--data", f"folder:toy={drawings}"]
    assert train.main([*data, *given, "--name", "lost", "--workers", "1"]) == 2
    said = capfd.readouterr()
    assert "The training diverged in epoch 1 of 5: its loss is no number" in said.err
    assert "epoch 2/5" not in said.out


@pytest.mark.slow
def test_a_final_training_that_diverges_is_taken_down_and_the_others_are_there(
    here, attached, drawings, capfd
):
    (here / "space.yaml").write_text(
        "variants: {a: {optimizer.lr: 1e30}, b: {}}\nset: {network.backbone: efficientnet_lite0}\n"
    )
    given = ["--space", "space.yaml", "--data", f"folder:toy={drawings}", "--smoke-test"]
    for options in ([*given, "--set", "train.epochs=2"], ["--resume"]):
        assert tune.main([*options, "--name", "half", "--workers", "1"]) == 2
        said = capfd.readouterr()
        assert (
            "1 of 2 final trainings diverged; the others are there. folder:toy, a, seed 0"
            in said.err
        )
        assert "folder:toy, a, seed 0 diverged" in " ".join(said.out.split())
        final = json.loads((here / "runs" / "half" / "final.json").read_text())
        assert {row["variant"] for row in final["rows"]} == {"b"}
        assert [one["variant"] for one in final["diverged"]] == ["a"]
        assert "PARTIAL" not in (here / "runs" / "half" / "report.html").read_text()
    assert "epoch 1/2" not in said.out


@pytest.mark.slow
def test_the_final_job_may_be_one_of_its_own_with_other_workers(here, attached, drawings, capfd):
    given = ["--space", "space.yaml", "--data", f"folder:toy={drawings}", "--smoke-test"]
    assert tune.main([*given, "--name", "two", "--workers", "1", "--search-only"]) == 0
    run = here / "runs" / "two"
    assert not (run / "final.json").exists()
    said = capfd.readouterr().out
    command = "python -m dsn_ray.tune --resume --name two --final-only"
    assert f"The final job: {command}" in said.splitlines()
    trials = (run / "trials.jsonl").read_text()
    assert tune.main([*command.split()[3:], "--workers", "2"]) == 0
    assert "each on 2 workers" in " ".join(capfd.readouterr().out.split())
    final = (run / "final.json").read_text()
    assert len(json.loads(final)["rows"]) == 8
    again = ["--resume", "--name", "two", "--search-only", "--workers", "1"]
    assert tune.main(again) == 0  # nothing is left to search, and the final job stays as it is
    assert (run / "final.json").read_text() == final
    assert (run / "trials.jsonl").read_text() == trials


def test_one_training_and_its_checkpoint(here, attached, drawings, capfd, monkeypatch):
    monkeypatch.setattr(Resources, "decoders", 1)  # as beside a GPU
    data = ["--data", f"folder:toy={drawings}"]
    given = smoke(**{"network.weights": "none"})
    asked = train._asked(train._arguments().parse_args([*data, *given]))
    checkpoint = run_training(asked.config, ("folder:toy", drawings), name="one", workers=1)
    assert Path(capfd.readouterr().out.splitlines()[-1]) == checkpoint
    kept = yaml.safe_load((here / "runs" / "one" / "config.yaml").read_text())
    assert Training.parse(kept) == asked  # from Python as from the command line
    assert {"state.pt", "about.json"} <= {path.name for path in checkpoint.iterdir()}
    other = asked.config.with_settings({"loss.tau": 0.5})
    with pytest.raises(UserError, match=r"disagree on config\.loss\.tau \(0\.07, now 0\.5\)"):
        run_training(other, ("folder:toy", drawings), name="one", workers=1, resume=True)
    rows = run_evaluation(checkpoint, workers=1)
    assert len(rows) == 8
    assert all(0 < row["value"] <= 1 for row in rows)
    assert train.main([*data, "--resume", "--name", "one", "--set=loss.tau=0.5"]) == 2
    assert "disagree on" in capfd.readouterr().err


@pytest.mark.slow
def test_a_training_that_is_complete_is_not_repeated(here, attached, drawings, capfd, monkeypatch):
    shown = []
    monkeypatch.setattr(
        gauges.RunGauges, "epoch", lambda _, name, told: shown.append((*name, told["epoch"]))
    )
    data = ["--data", f"folder:toy={drawings}", *smoke(**{"network.weights": "none"})]
    assert train.main([*data, "--name", "one", "--workers", "1"]) == 0
    checkpoint = Path(capfd.readouterr().out.splitlines()[-1])
    assert shown == [("training", "folder:toy", 1)]
    before = (checkpoint / "state.pt").read_bytes()
    assert train.main(["--resume", "--name", "one", "--workers", "1"]) == 0
    again = capfd.readouterr().out
    assert "Random weights: these numbers say nothing" in again
    assert Path(again.splitlines()[-1]) == checkpoint
    assert (checkpoint / "state.pt").read_bytes() == before

    state = torch.load(checkpoint / "state.pt", weights_only=True)
    state["network"]["embedding.bias"].fill_(torch.nan)
    torch.save(state, checkpoint / "state.pt")
    assert evaluate.main(["--checkpoint", str(checkpoint), "--workers", "1"]) == 2
    said = capfd.readouterr().err
    assert "cannot be rated: query_features must be finite" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--workers", "4", "--cpus-per-worker", "1"],
            "--workers 4 --cpus-per-worker 1 --gpus-per-worker 0: this Ray cluster has room for 2",
        ),
        (["--cpus-per-worker", "2"], "has room for 1 such workers at its largest"),
        (["--gpus-per-worker", "1"], "has room for 0 such workers at its largest"),
    ],
)
def test_more_than_the_cluster_has_is_refused(here, attached, drawings, capfd, options, message):
    given = ["--space", "space.yaml", "--data", f"folder:toy={drawings}", "--name", "big"]
    assert tune.main([*given, *options]) == 2
    assert message in capfd.readouterr().err
    assert not (here / "runs" / "big").exists()


@pytest.mark.parametrize("verb", [tune, train], ids=["tune", "train"])
def test_storage_of_one_node_is_refused_before_others_are_awaited(
    here, attached, drawings, capfd, monkeypatch, verb
):
    more = Fleet((Machines("more", 48, 4, 2),), 2)
    monkeypatch.setattr(fleet, "growth_of_cluster", lambda: more)
    space = ["--space", "space.yaml"] if verb is tune else ["--set=network.weights=none"]
    given = [*space, "--data", f"folder:toy={drawings}", "--name", "lost"]
    assert verb.main(given) == 2
    told = capfd.readouterr()
    assert "is a folder of one node, but this Ray cluster may grow to 3 nodes" in told.err
    assert "Waiting" not in told.out


def bad_inputs(drawings):
    data = ["--data", f"folder:toy={drawings}"]
    space = ["--space", "space.yaml"]
    return {
        "no space": (data, "--space is needed"),
        "missing space": (["--space", "none.yaml"], "none.yaml cannot be read"),
        "unknown set": ([*space, "--data", "skechty=x"], "There is no data set 'skechty'"),
        "no folder": (
            [*space, "--data", "sketchy=/nowhere"],
            "sketchy: there is no folder /nowhere",
        ),
        "twice": ([*space, *data, *data], "--data folder:toy is given twice"),
        "unknown key": ([*space, *data, "--set", "loss.alpha=1"], "loss.alpha is not a setting"),
        "bad value": ([*space, *data, "--set", "loss.tau=0"], "loss.tau"),
        "no trials": ([*space, *data, "--trials", "0"], "--trials 0: at least 1"),
        "no workers": ([*space, *data, "--workers", "0"], "--workers 0: at least 1"),
        "odd batch": ([*space, *data, "--workers", "3"], "cannot be shared equally among 3"),
        "all held out": (
            [*space, *data, "--set", "data.validation_classes=4"],
            "leaves 1 of 5 seen classes",
        ),
        "a path as name": ([*space, *data, "--name", "../up"], "must be a plain name"),
        "unwritable": ([*space, *data, "--storage", "/dev/null/x"], "cannot be written to"),
        "nothing to resume": (["--resume", "--name", "none"], "is not the folder of a run"),
        "resume what": (["--resume"], "--resume needs --name"),
        "set what varies": (
            [*space, *data, "--set", "memory.k=3"],
            "--set memory.k: the space varies it",
        ),
        "a place that is no place": (
            [*space, *data, "--storage", "no://where"],
            "cannot be reached: Unrecognized filesystem type",
        ),
    }


@pytest.mark.parametrize("case", bad_inputs(Path()))
def test_bad_input_is_one_line_and_status_two(here, drawings, capfd, monkeypatch, case):
    monkeypatch.setattr(sys, "argv", ["tune"])
    arguments, message = bad_inputs(drawings)[case]
    assert tune.main(arguments) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said
    assert not list((here / "runs").glob("*"))


def test_features_of_ones_own_are_rated(here, capsys):
    rng = np.random.default_rng(0)
    arrays = {
        "query_features": rng.normal(size=(6, 8)),
        "query_labels": np.arange(6) % 2,
        "gallery_features": rng.normal(size=(10, 8)),
        "gallery_labels": np.arange(10) % 2,
    }
    np.savez("features.npz", **arrays)
    assert evaluate.main(["--features", "features.npz", "--json", "rows.json"]) == 0
    rows = json.loads((here / "rows.json").read_text())["rows"]
    assert len(rows) == 8
    assert "so this number means nothing" in capsys.readouterr().out
    assert evaluate.main(["--features", "features.npz", "--itq-fit", "training"]) == 2
    assert "training_features is missing" in capsys.readouterr().err
    np.savez("features.npz", **arrays, training_features=rng.normal(size=(20, 8)))
    otherwise = ["--itq", "textbook", "--itq-fit", "training", "--json", "other.json"]
    assert evaluate.main(["--features", "features.npz", *otherwise]) == 0
    other = rows_by_key(json.loads((here / "other.json").read_text())["rows"])
    changed = {key for key, value in rows_by_key(rows).items() if other[key] != value}
    assert changed
    assert all(codes == "binary" for codes, _, _ in changed)
    capsys.readouterr()
    for (name, fault), message in {
        ("query_features", "nan"): "query_features must be finite",
        ("query_features", "narrow"): "must have the same number of columns, got 7 and 8",
        ("gallery_features", "empty"): "gallery_features must hold at least one row",
    }.items():
        features = arrays[name]
        spoilt = {"nan": features * np.nan, "narrow": features[:, 1:], "empty": features[:0]}
        np.savez("features.npz", **{**arrays, name: spoilt[fault]})
        assert evaluate.main(["--features", "features.npz"]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: --features features.npz: ")
        assert message in said
    del arrays["gallery_labels"]
    np.savez("features.npz", **arrays)
    assert evaluate.main(["--features", "features.npz"]) == 2
    assert "gallery_labels is missing" in capsys.readouterr().err
    assert evaluate.main(["--features", "none.npz"]) == 2
    assert evaluate.main(["--checkpoint", "none"]) == 2
    assert "this is not a checkpoint folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "stop"),
    [
        ("in the second trial", lambda pid: os.killpg(pid, signal.SIGINT)),
        ("in the final training", lambda pid: os.killpg(pid, signal.SIGINT)),
        ("in the final training", lambda pid: os.kill(pid, signal.SIGTERM)),
    ],
    ids=["Ctrl-C in the second trial", "Ctrl-C in the final training", "SIGTERM there"],
)
def test_a_stopped_sweep_ends_cleanly_and_goes_on(here, drawings, moment, stop, tmp_path_factory):
    """A sweep with a Ray of its own, stopped as a terminal or a batch system does, and resumed."""
    command = [sys.executable, "-m", "dsn_ray.tune"]
    given = ["--space", "space.yaml", "--data", f"folder:toy={drawings}", "--smoke-test"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["DSN_RAY_TEST"] = str(here)
    environment["RAY_TMPDIR"] = str(tmp_path_factory.mktemp("ray"))  # finds nobody else's cluster
    record = here / "runs" / "stopped" / "trials.jsonl"
    with (here / "said").open("w") as said:
        running = subprocess.Popen(
            [*command, *given, "--name", "stopped"],
            env=environment,
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert running.poll() is None, running.stderr.read()
            if moment == "in the second trial" and record.exists():
                break
            if "training on all" in (here / "said").read_text():
                time.sleep(3)
                break
            time.sleep(0.2)
        stop(running.pid)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert not (here / "runs" / "stopped" / "final.json").exists()
    assert running.returncode == 1
    assert "python -m dsn_ray.tune --resume --name stopped" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 15  # one that is just starting hears of the end later
    while left := processes_with(f"DSN_RAY_TEST={here}"):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    first = record.read_text().splitlines()[0]

    resumed = subprocess.run(
        [*command, "--resume", "--name", "stopped"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    trials = record.read_text().splitlines()
    assert trials[0] == first
    assert len(trials) == 2
    assert (here / "runs" / "stopped" / "final.json").exists()
