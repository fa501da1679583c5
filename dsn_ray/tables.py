"""The results of a final job as tables for people: means, spreads, and what is within noise."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.table import Table

from dsn_ray.cli import counted
from dsn_ray.rating import Row

PAPER: dict[tuple[str, int, str], tuple[float, float]] = {
    ("sketchy", 64, "real"): (0.484, 0.610),
    ("sketchy", 64, "binary"): (0.436, 0.553),
    ("sketchy", 512, "real"): (0.583, 0.704),
    ("sketchy", 512, "binary"): (0.581, 0.700),
    ("tuberlin", 64, "real"): (0.442, 0.538),
    ("tuberlin", 64, "binary"): (0.385, 0.497),
    ("tuberlin", 512, "real"): (0.481, 0.586),
    ("tuberlin", 512, "binary"): (0.484, 0.591),
}
"""mAP@all and Prec@100 of Table 1, protocol `published`."""

TABLE_2: dict[str, dict[str, float]] = {
    "baseline": {"sketchy": 0.361, "tuberlin": 0.355},
    "+ L_cmcm": {"sketchy": 0.420, "tuberlin": 0.373},
    "+ L_ml": {"sketchy": 0.412, "tuberlin": 0.372},
    "both": {"sketchy": 0.436, "tuberlin": 0.385},
}
"""mAP@all of Table 2: binary codes of 64-d embeddings, protocol `published`."""

_FULL_METHOD = ("", "64-d", "512-d", "paper")  # what Table 1 is about, by variant

METRICS = ("mAP@all", "Prec@100")
TITLE = "Unseen classes, mAP@all / Prec@100"
NOISE = 0.05
"""Differences that chance alone makes this often, or more often, count as noise."""
_ROUNDING = 1e-12
"""Spreads below are those of equal values."""


@dataclass(frozen=True)
class Line:
    """One line of the final table; numbers are mAP@all and Prec@100, as people read them.

    Attributes:
        dataset: the data set.
        codes: `real` or `binary`.
        protocol: `published` or `standard`, and whether each photo counts once.
        variant: what is compared; empty where nothing is.
        trained: mean and spread.
        difference: to the first variant, and whether it is within the noise.
        untrained: of the trunk before training.
        paper: what the paper has: both numbers of Table 1, or the mAP@all of Table 2.
    """

    dataset: str
    codes: str
    protocol: str
    variant: str
    trained: str
    difference: str
    untrained: str
    paper: str


def final_lines(
    rows: Sequence[Row],
    untrained: Sequence[Row],
    official: Mapping[str, bool],
    random_weights: bool,
) -> list[Line]:
    """What was trained beside the untrained trunk and the paper.

    Args:
        rows: of all seeds and variants, as `final.json` has them.
        untrained: of the trunk before training.
        official: the data sets to show, and whether each is the complete official one.
        random_weights: whether the backbone began with random ones, which each number then says.
    """
    variants = _variants(rows)
    mark = " (random weights)" if random_weights else ""
    lines = []
    for data in official:
        here = [row for row in rows if row["dataset"] == data]
        before = [row for row in untrained if row["dataset"] == data]
        repeats = any(row.get("deduplicated") for row in here)
        for codes, protocol, once in product(
            ("real", "binary"), ("published", "standard"), (False, True)[: 1 + repeats]
        ):
            base = _pick(before, codes, protocol, once)
            shown = protocol + ", each photo once" * once
            first: list[list[Row]] = []
            for variant in variants:
                of_variant = [row for row in here if row.get("variant", "") == variant]
                mine = _pick(of_variant, codes, protocol, once)
                is_first = not first
                first = first or mine
                lines.append(
                    Line(
                        data,
                        codes,
                        shown,
                        variant,
                        _pair(map(_cell, mine)) + mark * any(mine),
                        "" if is_first else _pair(map(_difference, mine, first)),
                        _pair(map(_cell, base)) + mark * any(base) if is_first else "",
                        _paper(data, variant, official[data], mine[0], codes, shown),
                    )
                )
    return lines


def final_table(
    rows: Sequence[Row],
    untrained: Sequence[Row],
    official: Mapping[str, bool],
    random_weights: bool,
    missing: int = 0,
    diverged: Sequence[Mapping[str, Any]] = (),
) -> Table:
    """`final_lines` for a terminal.

    Args:
        rows: as of `final_lines`.
        untrained: as of `final_lines`.
        official: as of `final_lines`.
        random_weights: as of `final_lines`.
        missing: trainings whose rows are not there; a table without them is partial.
        diverged: trainings that have no rows, as `final.json` has them.
    """
    compared = _variants(rows) != [""]
    several = len(_variants(rows)) > 1
    columns = {
        "data set": "dataset",
        "codes": "codes",
        "protocol": "protocol",
        **({"variant": "variant"} if compared else {}),
        "trained": "trained",
        **({"difference": "difference"} if several else {}),
        "untrained": "untrained",
        "paper": "paper",
    }
    table = Table(*columns, title=TITLE + partial_note(missing), title_justify="left")
    last = ""
    for line in final_lines(rows, untrained, official, random_weights):
        if last and line.dataset != last:
            table.add_section()
        last = line.dataset
        table.add_row(*(getattr(line, name) for name in columns.values()))
    table.caption = "; ".join(final_notes(rows, official, diverged)) + "."
    table.caption_justify = "left"
    return table


def partial_note(missing: int) -> str:
    """What a title says where trainings are missing; else nothing."""
    if not missing:
        return ""
    return f" (PARTIAL: {counted(missing, 'training')} missing)"


def title_of(training: Mapping[str, Any]) -> str:
    """A final training for people, by what `final.json` has of it."""
    variant = f", {training['variant']}" if training.get("variant") else ""
    return f"{training['dataset']}{variant}, seed {training['seed']}"


def final_notes(
    rows: Sequence[Row], official: Mapping[str, bool], diverged: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """What people must know to read `final_lines`."""
    variants = _variants(rows)
    notes = ["untrained: the backbone's pooled features, all of their dimensions"]
    if counted := _seeds(rows):
        notes.append(f"mean ± standard deviation over {counted}")
    if len(variants) > 1:
        notes.append(
            f"difference: to {variants[0]}; ~ is within the noise of the seeds "
            f"(t-test, paired where both have the same seeds, p ≥ {NOISE:g}), ? has too few seeds "
            "to tell"
        )
    if not all(official.values()):
        notes.append("the paper's numbers compare only with the complete official data sets")
    if diverged:
        titles = " and ".join(map(title_of, diverged))
        notes.append(f"{titles} diverged, and count in no mean")
    small = {row["dataset"]: row["gallery"] for row in rows if row["gallery"] <= 100}
    notes += [f"{name}: {n} photos are too few for Prec@100" for name, n in small.items()]
    return notes


def _seeds(rows: Sequence[Row]) -> str:
    """Over how many seeds the means are, for each data set where they differ; nothing for one."""
    seeds: dict[str, dict[str, set[int]]] = {}
    for row in rows:
        variants = seeds.setdefault(row["dataset"], {})
        variants.setdefault(row.get("variant", ""), set()).add(row["seed"])
    counts = {
        data: sorted({len(of) for of in variants.values()}) for data, variants in seeds.items()
    }
    if all(most == 1 for *_, most in counts.values()):
        return ""
    shown = {data: "-".join(map(str, dict.fromkeys((n[0], n[-1])))) for data, n in counts.items()}
    if len(set(shown.values())) == 1:
        return f"{next(iter(shown.values()))} seeds"
    return "seeds: " + ", ".join(f"{count} of {data}" for data, count in shown.items())


def _variants(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.get("variant", "") for row in rows))


def within_noise(some: Mapping[int, float], others: Mapping[int, float]) -> bool | None:
    """Whether two means differ by no more than the spread of their seeds lets expect.

    A seed decides the order of pictures, their moves and the new weights, so that much of what it
    does is common to variants that differ in their losses alone. Where both sides have the same
    seeds, the differences of each are tested, and else the two means.

    Args:
        some: values by seed.
        others: values by seed, of another variant.

    Returns:
        True where a two-sided t-test, paired or Welch's, gives p >= `NOISE`; None where either has
        one value only, so that nobody can tell.
    """
    from scipy import stats

    if min(len(some), len(others)) < 2:
        return None
    same = some.keys() == others.keys()
    one, other = ([side[seed] for seed in sorted(side)] for side in (some, others))
    spreads = [[a - b for a, b in zip(one, other, strict=True)]] if same else [one, other]
    if max(map(statistics.pstdev, spreads)) < _ROUNDING:
        return abs(statistics.mean(one) - statistics.mean(other)) < _ROUNDING
    test = stats.ttest_rel(one, other) if same else stats.ttest_ind(one, other, equal_var=False)
    return bool(test.pvalue >= NOISE)


def _pick(rows: Sequence[Row], codes: str, protocol: str, once: bool) -> list[list[Row]]:
    """The rows of each metric."""
    wanted = [
        row
        for row in rows
        if (row["codes"], row["protocol"]) == (codes, protocol)
        and row.get("deduplicated", False) == once
    ]
    return [[row for row in wanted if row["metric"] == metric] for metric in METRICS]


def _pair(cells: Iterable[str]) -> str:
    shown = list(cells)
    return " / ".join(cell or "-" for cell in shown) if any(shown) else "-"


def _cell(rows: list[Row]) -> str:
    values = [row["value"] for row in rows]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def _difference(rows: list[Row], first: list[Row]) -> str:
    some, others = ({row["seed"]: row["value"] for row in side} for side in (rows, first))
    if not some or not others:
        return ""
    by = statistics.fmean(some.values()) - statistics.fmean(others.values())
    mark = {True: " ~", False: "", None: " ?"}[within_noise(some, others)]
    return f"{by:+.3f}{mark}"


def _paper(
    data: str, variant: str, official: bool, rows: list[Row], codes: str, protocol: str
) -> str:
    if not rows or protocol != "published":
        return "-"
    numbers: Sequence[float] = ()
    if variant in _FULL_METHOD:
        numbers = PAPER.get((data, rows[0]["dim"], codes), ())
    elif (rows[0]["dim"], codes) == (64, "binary") and data in TABLE_2.get(variant, ()):
        numbers = (TABLE_2[variant][data],)
    if not numbers:
        return "-"
    return " / ".join(f"{number:.3f}" for number in numbers) + " (other data)" * (not official)
