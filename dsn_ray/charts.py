"""The plots of a report: numbers in, matplotlib figures out."""

import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

Draw = Callable[[Figure], None]

WIDTH = 7.0
"""Of a plot, in inches, where nothing else is said."""

_LIGHT, _DARK = "#222222", "#dddddd"
_COLOURS = ("#3b7dd8", "#e08214", "#2a9d6f", "#b5489a", "#7f6fd0", "#8a8a3c", "#c0504d", "#4aa3b5")
_QUIET = "#858585"
_LETTERS = 50  # that fit side by side below a heat map
_LABELLED = 16  # cells a side up to which a heat map writes its numbers


class Plot(NamedTuple):
    """One plot, drawn for light and for dark pages."""

    light: str
    """SVG"""
    dark: str
    """SVG"""
    png: bytes
    """for light pages"""


def render(draw: Draw, width: float = WIDTH, height: float = 4.0) -> Plot:
    """Draws a plot.

    Args:
        draw: puts it into a figure.
        width: in inches.
        height: in inches.
    """
    png = io.BytesIO()
    with rc_context(_style(_LIGHT)):
        figure = _drawn(draw, width, height)
        light = _svg(figure)
        figure.savefig(png, format="png", dpi=110, facecolor="white")
    with rc_context(_style(_DARK)):
        return Plot(light, _svg(_drawn(draw, width, height)), png.getvalue())


def _style(ink: str) -> Any:
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, ink),
        "axes.prop_cycle": cycler(color=_COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "legend.frameon": False,
        "text.parse_math": False,  # names are no formulas
        "font.size": 10,
        "svg.fonttype": "none",  # letters stay letters
        "svg.hashsalt": "dsn_ray",
    }


def _drawn(draw: Draw, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure)
    return figure


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


class Curve(NamedTuple):
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    cut: bool = False
    """whether it was stopped before its end"""


def curves(lines: Sequence[Curve], x: str, y: str, best: Collection[str] = ()) -> Draw:
    """Lines over epochs or recall; those cut short end in a cross.

    Args:
        lines: at least one; beyond eight only the best and those cut short are told apart.
        x: what runs along.
        y: what runs up.
        best: names of the lines to draw boldly.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        crowded = len(lines) > len(_COLOURS)
        others = iter(_COLOURS[bool(best) :])
        named = set()
        for line in lines:
            bold = line.name in best
            quiet = line.cut or crowded
            colour = _COLOURS[0] if bold else _QUIET if quiet else next(others, _QUIET)
            label = line.name if bold or not quiet else "stopped early" if line.cut else "others"
            axes.plot(
                *(line.x, line.y),
                color=colour,
                linewidth=2.4 if bold else 1.2,
                marker="o" if len(line.x) == 1 else None,
                markersize=4,
                linestyle="--" if line.cut else "-",
                zorder=3 if bold else 2,
                label=None if label in named else _in_legend(label),
            )
            named.add(label)
            if line.cut:
                axes.plot(line.x[-1], line.y[-1], "x", color=_QUIET)
        axes.set(xlabel=x, ylabel=y)
        if x == "recall":
            axes.set(xlim=(0, 1), ylim=(0, 1))
        if x == "epoch":
            axes.set_xlim(0.5, max(max(line.x) for line in lines) + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8, ncols=1 + (len(named) > 6))

    return draw


def _in_legend(name: str) -> str:
    """A name that a legend shows: it leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


class Tried(NamedTuple):
    """A trial of a search."""

    number: int
    value: float
    """mean over its seeds"""
    state: str
    seeds: Sequence[float]
    """the value of each"""


def history(trials: Sequence[Tried]) -> Draw:
    """Each trial's value, and the best until then.

    Args:
        trials: by number.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for state, marker in {"finished": "o", "stopped early": "x"}.items():
            mine = [(trial.number, trial.value) for trial in trials if trial.state == state]
            if mine:
                axes.scatter(*zip(*mine, strict=True), marker=marker, label=state, zorder=3)
        seeds = [(t.number, value) for t in trials if len(t.seeds) > 1 for value in t.seeds]
        if seeds:
            numbers, each = zip(*seeds, strict=True)
            axes.scatter(numbers, each, s=9, color=_QUIET, label="single seeds")
        ended = [(trial.number, trial.value) for trial in trials if trial.state == "finished"]
        if ended:
            best = np.maximum.accumulate([value for _, value in ended])
            axes.step([number for number, _ in ended], best, where="post", label="best so far")
        axes.set(xlabel="trial", ylabel="validation mAP@all")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8)

    return draw


def bars(values: Mapping[str, float], label: str) -> Draw:
    """Horizontal bars, the first one on top."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        drawn = axes.barh(list(values)[::-1], list(values.values())[::-1], color=_COLOURS[0])
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        axes.set(xlabel=label)
        axes.tick_params(axis="y", labelsize=8)
        axes.margins(y=0.01)

    return draw


def heat_map(
    cells: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], labels: Sequence[str]
) -> Draw:
    """A matrix in colours, with its numbers where there is room.

    Args:
        cells: `[R, C]`; NaN stays empty.
        rows: name of each row.
        columns: name of each column.
        labels: of the columns' axis, the rows' axis and the colours.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(cells, cmap="viridis", aspect="auto")
        crowded = sum(map(len, columns)) > _LETTERS
        axes.set_xticks(range(len(columns)), columns, rotation=90 if crowded else 0)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(labelsize=8)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.spines[:].set_visible(False)
        figure.colorbar(image, label=labels[2])
        if max(cells.shape) <= _LABELLED:
            _write_numbers(axes, cells)

    return draw


def _write_numbers(axes: Axes, cells: NDArray[np.float64]) -> None:
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    for (row, column), value in np.ndenumerate(cells):
        if not math.isnan(value):
            colour = "white" if value < middle else "black"
            shown = f"{value:.3f}" if len(cells) <= 8 else f"{value:.2f}".replace("0.", ".")
            axes.text(column, row, shown, ha="center", va="center", color=colour, fontsize=7)


def scatter(points: Sequence[tuple[float, float, float]], labels: Sequence[str]) -> Draw:
    """Points in colours on logarithmic axes, which are linear near 0 where there is one.

    Args:
        points: x, y and value of each; x and y at least 0.
        labels: of x, y and the colours.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x, y, value = zip(*points, strict=True)
        shown = axes.scatter(x, y, c=value, cmap="viridis", s=60, edgecolors=_QUIET)
        for values, scale in ((x, axes.set_xscale), (y, axes.set_yscale)):
            if min(values) > 0:
                scale("log")
            else:
                scale("symlog", linthresh=min((v for v in values if v > 0), default=1.0))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=labels[0], ylabel=labels[1])
        figure.colorbar(shown, label=labels[2])

    return draw
