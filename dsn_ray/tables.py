"""The results of a final job as tables for people: means, spreads, and what is within noise."""

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import product

from rich.table import Table

from dsn_ray.data.shards import Shards
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

METRICS = ("mAP@all", "Prec@100")
NOISE = 0.05
"""Differences that chance alone makes this often, or more often, count as noise."""


def final_table(
    rows: list[Row],
    untrained: list[Row],
    shards: Sequence[Shards],
    random_weights: bool,
    missing: int = 0,
) -> Table:
    """What was trained beside the untrained trunk and the paper.

    Args:
        rows: of all seeds and variants, as `final.json` has them.
        untrained: of the trunk before training.
        shards: the data sets to show.
        random_weights: whether the backbone began with random ones, which each number then says.
        missing: trainings whose rows are not there; a table without them is partial.
    """
    variants = list(dict.fromkeys(row.get("variant", "") for row in rows))
    title = "Unseen classes, mAP@all / Prec@100"
    if missing:
        title += f" (PARTIAL: {missing} training{'s' * (missing > 1)} missing)"
    table = Table(title=title, title_justify="left")
    named = ("variant",) * (variants != [""])
    against = ("difference",) * (len(variants) > 1)
    for column in ("data set", "codes", "protocol", *named, "trained", *against, "untrained"):
        table.add_column(column)
    table.add_column("paper")
    mark = " (random weights)" if random_weights else ""
    for data in shards:
        here = [row for row in rows if row["dataset"] == data.name]
        before = [row for row in untrained if row["dataset"] == data.name]
        repeats = any(row.get("deduplicated") for row in here)
        for codes, protocol, once in product(
            ("real", "binary"), ("published", "standard"), (False, True)[: 1 + repeats]
        ):
            base = _pick(before, codes, protocol, once)
            first: list[list[Row]] = []
            for variant in variants:
                mine = _pick(
                    [r for r in here if r.get("variant", "") == variant], codes, protocol, once
                )
                first = first or mine
                cells = [_cell(found) for found in mine]
                table.add_row(
                    *(data.name, codes, protocol + ", each photo once" * once),
                    *((variant,) if named else ()),
                    _pair(cells) + mark * any(mine),
                    *(
                        (_pair(map(_difference, mine, first)) if mine is not first else "",)
                        if against
                        else ()
                    ),
                    _pair(map(_cell, base)) + mark * any(base) if variant == variants[0] else "",
                    "-" if once else _paper(data, mine[0], codes, protocol),
                )
        table.add_section()
    table.caption = _caption(rows, shards, variants)
    table.caption_justify = "left"
    return table


def _caption(rows: list[Row], shards: Iterable[Shards], variants: Sequence[str]) -> str:
    notes = ["untrained: the backbone's pooled features, all of their dimensions"]
    seeds = {len({r["seed"] for r in rows if r.get("variant", "") == v}) for v in variants}
    if seeds and min(seeds) > 1:
        notes.append(f"mean ± standard deviation over {min(seeds)} seeds")
    if len(variants) > 1:
        notes.append(
            f"difference: to {variants[0]}; ~ is within the noise of the seeds "
            f"(Welch's t-test, p ≥ {NOISE:g}), ? has too few seeds to tell"
        )
    if not all(data.official for data in shards):
        notes.append("the paper's numbers compare only with the complete official data sets")
    small = {row["dataset"]: row["gallery"] for row in rows if row["gallery"] <= 100}
    notes += [f"{name}: {n} photos are too few for Prec@100" for name, n in small.items()]
    return "; ".join(notes) + "."


def within_noise(some: Sequence[float], others: Sequence[float]) -> bool | None:
    """Whether two means differ by no more than the spread of their seeds lets expect.

    Args:
        some: values of several seeds.
        others: values of several seeds, of another variant.

    Returns:
        True where Welch's two-sided t-test gives p >= `NOISE`; None where either has one value
        only, so that nobody can tell.
    """
    from scipy import stats

    if min(len(some), len(others)) < 2:
        return None
    if max(statistics.pstdev(some), statistics.pstdev(others)) == 0:
        return statistics.mean(some) == statistics.mean(others)
    return bool(stats.ttest_ind(some, others, equal_var=False).pvalue >= NOISE)


def _pick(rows: list[Row], codes: str, protocol: str, once: bool) -> list[list[Row]]:
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
    some, others = ([row["value"] for row in side] for side in (rows, first))
    if not some or not others:
        return ""
    by = math.fsum(some) / len(some) - math.fsum(others) / len(others)
    mark = {True: " ~", False: "", None: " ?"}[within_noise(some, others)]
    return f"{by:+.3f}{mark}"


def _paper(data: Shards, rows: list[Row], codes: str, protocol: str) -> str:
    numbers = PAPER.get((data.name, rows[0]["dim"], codes)) if rows else None
    if numbers is None or protocol != "published":
        return "-"
    mark = "" if data.official else " (other data)"
    return f"{numbers[0]:.3f} / {numbers[1]:.3f}{mark}"
