"""The sections of a report; each is left out where a run has nothing for it."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from dsn_ray import details
from dsn_ray.album import Album, Picture, Section, Table
from dsn_ray.charts import Curve, Tried, bars, curves, heat_map, history, scatter
from dsn_ray.record import RunRecord
from dsn_ray.space import describe
from dsn_ray.study import STUDY, open_journal
from dsn_ray.tables import TABLE_2, TITLE, final_lines, final_notes

_LAMBDAS = ("loss.lambda1", "loss.lambda2")


def _results(run: RunRecord, album: Album) -> Iterator[Section]:
    """The final table, beside the paper's Table 1."""
    rows, official = run.final.get("rows", []), run.final.get("official", {})
    if not rows:
        return
    random = run.config["config"]["network"]["weights"] == "none"
    lines = final_lines(rows, run.final.get("untrained", []), official, random)
    columns = {"data set": "dataset", "codes": "codes", "protocol": "protocol"}
    if any(line.variant for line in lines):
        columns["variant"] = "variant"
    columns["trained"] = "trained"
    if any(line.difference for line in lines):
        columns["difference"] = "difference"
    columns |= {"untrained": "untrained", "paper": "paper"}
    cells = [[getattr(line, name) for name in columns.values()] for line in lines]
    notes = final_notes(rows, official, run.final.get("diverged", ()))
    table = Table(list(columns), cells, notes)
    yield Section("Results", TITLE + ", of the final trainings.", [table])


def _ablation(run: RunRecord, album: Album) -> Iterator[Section]:
    """The variants, beside the paper's Table 2."""
    rows = [row for row in run.final.get("rows", []) if row.get("variant") in TABLE_2]
    official = run.final.get("official", {})
    if len({row["variant"] for row in rows}) < 2:
        return
    lines = [
        line
        for line in final_lines(rows, [], official, False)
        if (line.codes, line.protocol) == ("binary", "published")
    ]
    cells = []
    for line in lines:
        cells.append(
            [
                *(line.dataset, line.variant),
                *(text.partition(" / ")[0] for text in (line.trained, line.difference)),
                line.paper,
            ]
        )
    header = ["data set", "variant", "mAP@all", "difference", "paper"]
    table = Table(header, cells, final_notes(rows, official)[1:])
    text = "mAP@all of binary codes, protocol published, as in the paper's Table 2 (64-d)."
    yield Section("What each loss adds", text, [table])


def _search(run: RunRecord, album: Album) -> Iterator[Section]:
    """The trials, their history and what mattered."""
    if not run.trials:
        return
    section = Section("The search", "Validation mAP@all, on classes held out of the seen ones.")
    several = len({trial["seed"] for trial in run.trials}) > 1
    section.tables.append(
        Table(
            ["trial", *(["seed"] if several else []), "settings", "mAP@all", "epochs", "state"],
            [
                [
                    str(trial["number"]),
                    *([str(trial["seed"])] if several else []),
                    describe(trial["parameters"]),
                    "-" if trial["value"] is None else f"{trial['value']:.4f}",
                    *(str(trial["epochs"]), trial["state"]),
                ]
                for trial in run.trials
            ],
        )
    )
    tried = _tried(run)
    if len(tried) > 1:
        header = ["trial", "seed", "value", "state"]
        rows = [[t["number"], t["seed"], t["value"], t["state"]] for t in run.trials]
        title = "Each trial, and the best so far" + ", means over seeds" * several
        section.pictures.append(album.plot("history", title, history(tried), header, rows))
    if important := _importance(run):
        title = "How much each setting mattered (PED-ANOVA)"
        size = {"height": 0.8 + 0.4 * len(important)}
        header = ["setting", "importance"]
        draw = bars(important, "importance")
        section.pictures.append(
            album.plot("importance", title, draw, header, important.items(), **size)
        )
    yield section


def _tried(run: RunRecord) -> list[Tried]:
    """The trials that have a value, by number; one that lacks a seed has not finished."""
    lines: dict[int, list[dict[str, Any]]] = {}
    for trial in run.trials:
        lines.setdefault(trial["number"], []).append(trial)
    seeds = max(map(len, lines.values()), default=0)
    tried = []
    for number, mine in sorted(lines.items()):
        values = [trial["value"] for trial in mine if trial["value"] is not None]
        states = [trial["state"] for trial in mine]
        state = next((state for state in states if state != "finished"), "finished")
        if len(mine) < seeds and state == "finished":
            state = "unfinished"
        if values:
            tried.append(Tried(number, float(np.mean(values)), state, values))
    return tried


def _importance(run: RunRecord) -> dict[str, float]:
    """Optuna's importances of the settings; none where it cannot tell."""
    if not (run.folder / STUDY).exists():
        return {}
    try:
        study = optuna.load_study(study_name="search", storage=open_journal(run.folder / STUDY))
        ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(ended) < 4 or len({trial.value for trial in ended}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except Exception:  # trials that are alike in what could matter; a journal that is damaged
        return {}
    return {name.rpartition(".")[2]: value for name, value in found.items()}


def _lambdas(run: RunRecord, album: Album) -> Iterator[Section]:
    """Validation mAP over lambda1 and lambda2, and the unseen one where each point has it."""
    validation = [
        (*(trial["parameters"].get(name) for name in _LAMBDAS), trial["value"])
        for trial in run.trials
        if trial["state"] == "finished"
    ]
    section = Section("mAP over lambda1 and lambda2", "After the paper's Figure 3.")
    section.pictures += _surface(album, "lambdas", "Validation classes, real-valued", validation)
    rows = [
        row
        for row in run.final.get("rows", [])
        if (row["codes"], row["protocol"], row["metric"]) == ("binary", "published", "mAP@all")
        and not row.get("deduplicated")
    ]
    for data in dict.fromkeys(row["dataset"] for row in rows):
        unseen = [
            (*(row["parameters"].get(name) for name in _LAMBDAS), row["value"])
            for row in rows
            if row["dataset"] == data
        ]
        title = f"{data}, unseen classes, binary (never chosen by)"
        section.pictures += _surface(album, f"lambdas-{_safe(data)}", title, unseen)
    yield section


def _surface(
    album: Album, file: str, title: str, points: Sequence[tuple[Any, ...]]
) -> Iterator[Picture]:
    """A heat map where the points are a grid, else a scatter plot; nothing for two points."""
    points = [point for point in points if None not in point]
    xs, ys = (sorted({point[axis] for point in points}) for axis in (0, 1))
    if len({point[:2] for point in points}) < 3:
        return
    header = ["lambda1", "lambda2", "mAP@all"]
    if 2 * len({point[:2] for point in points}) > len(xs) * len(ys):
        cells = np.array(
            [
                [np.mean([v for *at, v in points if at == [x, y]] or math.nan) for x in xs]
                for y in ys
            ]
        )
        names = [[f"{value:g}" for value in axis] for axis in (ys, xs)]
        draw = heat_map(cells, names[0], names[1], header)
    else:
        draw = scatter(points, header)
    yield album.plot(file, title, draw, header, points)


def _learning(run: RunRecord, album: Album) -> Iterator[Section]:
    """Learning curves of the trials and of the final trainings."""
    trainings: dict[str, list[dict[str, Any]]] = {}
    for line in run.last_epochs:
        trainings.setdefault(line["training"], []).append(line)
    cut = {
        f"trial {trial['number']}, seed {trial['seed']}"
        for trial in run.trials
        if trial["state"] == "stopped early"
    }
    ended = [trial for trial in _tried(run) if trial.state == "finished"]
    best = max(ended, key=lambda trial: trial.value, default=None)
    bold = {
        f"trial {trial['number']}, seed {trial['seed']}"
        for trial in run.trials
        if best is not None and trial["number"] == best.number
    }
    section = Section("Learning curves")
    header = ["training", "epoch"]
    for file, title, key, of_search in (
        ("learning", "Validation mAP@all of the trials", "mAP", True),
        ("loss-search", "Loss of the trials", "loss_total", True),
        ("loss-final", "Loss of the final trainings", "loss_total", False),
    ):
        lines = [
            Curve(name, [x["epoch"] for x in epochs], [x[key] for x in epochs], name in cut)
            for name, epochs in trainings.items()
            if name.startswith("trial ") == of_search and all(key in x for x in epochs)
        ]
        if lines:
            rows = [
                (line.name, x, y) for line in lines for x, y in zip(line.x, line.y, strict=True)
            ]
            draw = curves(lines, "epoch", "mAP@all" if key == "mAP" else "loss", bold)
            section.pictures.append(album.plot(file, title, draw, [*header, key], rows))
    yield section


def _retrieval(run: RunRecord, album: Album) -> Iterator[Section]:
    """What lies behind the numbers: of one variant of each data set, and curves of all."""
    if not run.details:
        return
    rows = run.final.get("rows", [])
    rated = {(row["dataset"], row.get("variant", ""), row["seed"]) for row in rows}
    folders: dict[str, dict[str, dict[int, Path]]] = {}
    for path in run.details:
        about = json.loads((path / details.ABOUT).read_text(encoding="utf-8"))
        data, variant, seed = about["dataset"], about["variant"], about["seed"]
        if (data, variant, seed) in rated:  # others are of trainings that no longer count
            folders.setdefault(data, {}).setdefault(variant, {})[seed] = path
    setting = run.final.get("setting")
    chosen = describe(setting) if setting else ""
    for data, variants in sorted(folders.items()):
        names = _in_order(run, variants)
        shown = chosen if chosen in names else names[-1]
        shared = set.intersection(*(set(paths) for paths in variants.values()))
        seeds = {name: min(shared or variants[name]) for name in names}
        of_seeds = f"seed {seeds[shown]}"
        if not shared:
            of_seeds = "seeds: " + ", ".join(f"{name} {seed}" for name, seed in seeds.items())
        section = Section(
            f"What was found: {data}" + f", {shown}" * bool(shown),
            f"Unseen classes, real-valued codes, plain AP, each photo once, {of_seeds}.",
        )
        paths = {name: variants[name][seed] for name, seed in seeds.items()}
        section.pictures += _behind(paths[shown], album, _safe(data))
        lines = []
        for name, path in paths.items():
            _, *numbers = _csv(path / details.RECALL)
            recall, precision = np.array(numbers, float).T.tolist()
            lines.append(Curve(name or "trained", recall, precision))
        points = [(c.name, x, y) for c in lines for x, y in zip(c.x, c.y, strict=True)]
        draw = curves(lines, "recall", "precision", {shown} if shown else ())
        header = ["variant", "recall", "precision"]
        section.pictures.append(
            album.plot(f"recall-{_safe(data)}", "Precision at each recall", draw, header, points)
        )
        yield section


def _behind(folder: Path, album: Album, safe: str) -> Iterator[Picture]:
    """The pictures of one training's details."""
    for name, title in (
        (details.CHOSEN, "The ten nearest photos, wrong ones framed red (Figure 5)"),
        (details.WORST, "The worst queries, one of a class"),
    ):
        numbers = folder / f"{name}.csv"
        yield album.photos(
            *(f"{name}-{safe}", title, (folder / f"{name}.png").read_bytes()),
            numbers.read_bytes() if numbers.exists() else None,
        )
    header, *rows = _csv(folder / details.PER_CLASS)
    by_class = dict(sorted(((r[0], float(r[3])) for r in rows), key=lambda item: -item[1]))
    draw = bars(by_class, "AP, mean over the sketches of the class")
    height = 1 + 0.19 * len(by_class)
    yield album.plot(f"per-class-{safe}", "AP per class", draw, header, rows, height=height)
    (_, *columns), *rows = _csv(folder / details.SIMILARITY)
    cells = np.array([row[1:] for row in rows], float)
    draw = heat_map(cells, columns, columns, ["photos of", "sketches of", "cosine of class means"])
    title = "How alike classes look across domains (Figure 4)"
    side = 3 + 0.2 * len(columns)
    yield album.plot(
        *(f"similarity-{safe}", title, draw, ["sketches of", *columns], rows),
        width=side + 1,
        height=side,
    )


def _in_order(run: RunRecord, variants: Iterable[str]) -> list[str]:
    """Variants in the space's order."""
    order = list(run.config.get("space", {}).get("variants") or {})
    return sorted(variants, key=lambda name: (order.index(name) if name in order else -1, name))


def _what_ran(run: RunRecord, album: Album) -> Iterator[Section]:
    """Data, machine, versions and time."""
    config, epochs = run.config["config"], run.last_epochs
    rows = [
        ("data", ", ".join(run.config["data"])),
        ("backbone", f"{config['network']['backbone']} at {config['data']['px']} px"),
        ("embedding", f"{config['network']['dim']} numbers"),
        ("epochs", f"{config['train']['epochs']} a training, {len(epochs)} in all"),
    ]
    if epochs:
        seconds = sum(line["seconds"] for line in epochs)
        waiting = sum(line["seconds"] * line["waiting_for_data"] for line in epochs)
        rows.append(
            (
                "time in training",
                f"{_time(seconds)}, {waiting / seconds:.0%} of it waiting for data",
            )
        )
    for line in run.sessions:
        rows.append((line["started"], f"{_time(line['seconds'])} on {line['cluster']}"))
    if run.sessions:
        last = run.sessions[-1]
        versions = ", ".join(f"{name} {number}" for name, number in last["packages"].items())
        rows.append(("machine", f"{last['processor']}; {last['system']}"))
        rows.append(("versions", f"Python {last['python']}, {versions}"))
    yield Section("What ran", "", [Table([], [list(row) for row in rows])])


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _safe(name: str) -> str:
    """A name that a file may have."""
    return re.sub(r"[^\w-]+", "-", name)[:80]


def _csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


SECTIONS: dict[str, Callable[[RunRecord, Album], Iterator[Section]]] = {
    "Results": _results,
    "What each loss adds": _ablation,
    "What was found": _retrieval,
    "mAP over lambda1 and lambda2": _lambdas,
    "The search": _search,
    "Learning curves": _learning,
    "What ran": _what_ran,
}
"""By title."""
