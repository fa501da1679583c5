"""mAP@all and Prec@100 of a checkpoint on unseen classes, or of features made elsewhere.

Examples:
    python -m dsn_ray.evaluate --checkpoint runs/NAME/final/openmoji-nature-*-seed0
    python -m dsn_ray.evaluate --features features.npz --json rows.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from dsn_ray import cli
from dsn_ray.checkpoint import Checkpoint, open_checkpoint
from dsn_ray.errors import UserError
from dsn_ray.rating import (
    PROTOCOLS_OWN,
    Embedded,
    Itq,
    Row,
    evaluate_checkpoint,
    load_unseen,
)

if TYPE_CHECKING:
    from rich.console import Console

    from dsn_ray.room import Shape


def run_evaluation(
    checkpoint: Path | str,
    data: "tuple[str, str | None] | None" = None,
    *,
    itq: Itq = PROTOCOLS_OWN,
    dedupe: bool = False,
    figure: Path | None = None,
    **shape: Any,
) -> list[Row]:
    """Rates a checkpoint on the unseen classes of a data set.

    Args:
        checkpoint: its folder.
        data: name and folder of the data set; None for the one it was trained on.
        itq: how binary codes are made.
        dedupe: count each photo of the gallery once, however often the lists name it.
        figure: where a picture of some queries and of the photos nearest to them is written.
        shape: fields of `dsn_ray.room.Shape`.

    Returns:
        One row per codes, protocol and metric.

    Raises:
        UserError: If the checkpoint or the data set cannot be used.

    Example:
        >>> from dsn_ray import run_evaluation
        >>> run_evaluation("runs/first/final/sketchy-seed0")  # doctest: +SKIP
    """
    from dsn_ray.room import Shape

    with cli.quiet_log("evaluate") as console:
        opened = open_checkpoint(Path(checkpoint))
        return _evaluate(opened, data, itq, dedupe, figure, Shape(**shape), console)


def _evaluate(
    opened: Checkpoint,
    data: "tuple[str, str | None] | None",
    itq: Itq,
    dedupe: bool,
    figure: Path | None,
    shape: "Shape",
    console: "Console",
) -> list[Row]:
    from dsn_ray.data.pictures import load_pictures
    from dsn_ray.data.shards import locate, open_shards
    from dsn_ray.room import allot
    from dsn_ray.runtime import ray_cluster

    found = locate(*(data or (opened.data, opened.root)))
    if opened.config.network.weights == "none":
        console.print(cli.RANDOM_WEIGHTS)
    if trained_on := sorted(set(opened.classes) & set(found.unseen_classes)):
        console.print(
            f"{len(trained_on)} of the {len(found.unseen_classes)} unseen classes are classes that "
            f"this checkpoint was trained on, so this is not zero-shot: {', '.join(trained_on)}.",
            soft_wrap=True,
        )
    with ray_cluster():
        resources = allot(shape, console)
        shards, px = open_shards(found), opened.config.data.px
        console.print(str(shards), soft_wrap=True)
        training = load_pictures(shards, "seen", "photo", px) if itq.fit == "training" else None
        unseen = load_unseen(shards, px)
        look = partial(_draw, figure, unseen.classes) if figure else None
        rows = evaluate_checkpoint(opened, unseen, resources, itq, training, look)
    if figure:
        console.print(str(figure), soft_wrap=True)
    once = [row for row in rows if row.get("deduplicated")]
    return once if dedupe and once else [row for row in rows if row not in once]


def _draw(figure: Path, classes: Sequence[str], queries: Embedded, gallery: Embedded) -> None:
    from dsn_ray.details import chosen_queries, draw, nearest

    found = nearest(queries, gallery, chosen_queries(queries))
    draw(queries, gallery, found, classes).save(figure, "PNG", optimize=True)


def rate_features_file(path: Path, itq: Itq = PROTOCOLS_OWN) -> list[Row]:
    """Rates features from an `.npz` file.

    Args:
        path: holds `query_features [Q, D]`, `query_labels [Q]`, `gallery_features [G, D]` and
            `gallery_labels [G]`; for binary codes fitted on them also `training_features [N, D]`.
        itq: how binary codes are made.

    Raises:
        UserError: If the file cannot be read, or an array is missing or does not fit.
    """
    from dsn_ray.retrieval import evaluate_features

    names = ["query_features", "query_labels", "gallery_features", "gallery_labels"]
    if itq.fit == "training":
        names.append("training_features")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] for name in names]
        basis = arrays.pop() if itq.fit == "training" else itq.fit
        return evaluate_features(*arrays, itq_variant=itq.variant, itq_fit=basis)
    except KeyError as error:
        missing = str(error.args[0]).split(" ")[0]
        raise UserError(
            f"--features {path}: {missing} is missing; the file must hold {', '.join(names)}."
        ) from None
    except (TypeError, EOFError, BadZipFile):
        raise UserError(f"--features {path}: not an .npz file.") from None
    except OSError as error:
        raise UserError(f"--features {path}: {error.strerror or 'not an .npz file'}.") from None
    except ValueError as error:
        reason = str(error).rstrip(".")
        if "allow_pickle" in reason:  # numpy's advice for whatever it does not know
            reason = "an array of objects" if is_zipfile(path) else "not an .npz file"
        raise UserError(f"--features {path}: {reason}.") from None


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.evaluate")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="C", help="folder of a checkpoint")
    what.add_argument("--features", type=Path, metavar="F.npz", help="features to rate")
    cli.add_data_argument(parser)
    parser.add_argument(
        "--itq", choices=("textbook", "release"), help="(release in published, else textbook)"
    )
    parser.add_argument(
        "--itq-fit",
        choices=("queries", "gallery", "training"),
        help="what binary codes are fitted on (queries in published, else gallery)",
    )
    parser.add_argument(
        "--dedupe", action="store_true", help="count a photo that lists name twice once"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="F.png", help="draw queries and the photos nearest to them"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here")
    cli.add_shape_arguments(parser)
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    cli.check_file(parsed.json, "--json")
    cli.check_file(parsed.figure, "--figure")
    itq = Itq(parsed.itq, parsed.itq_fit)
    if parsed.features:
        if parsed.dedupe:
            raise UserError("--dedupe needs --checkpoint: features do not say what repeats.")
        if parsed.figure:
            raise UserError("--figure needs --checkpoint: features are no pictures.")
        rows = rate_features_file(parsed.features, itq)
    else:
        data = cli.parse_data(parsed.data)
        if len(data) > 1:
            raise UserError("--data: evaluate takes one data set at a time.")
        opened, shape = open_checkpoint(parsed.checkpoint), cli.shape_of(parsed)
        with cli.quiet_log("evaluate") as console:
            asked = (data[0] if data else None, itq, parsed.dedupe, parsed.figure)
            rows = _evaluate(opened, *asked, shape, console)
    if parsed.json:
        parsed.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    _print(rows)


def _print(rows: list[Row]) -> None:
    from rich.table import Table

    from dsn_ray.runtime import people_console

    table = Table("codes", "protocol", "metric", "value", "queries", "gallery", "ties")
    meaningless = False
    for row in rows:
        small = row["metric"].startswith("Prec@") and row["gallery"] <= int(row["metric"][5:])
        meaningless |= small
        table.add_row(
            *(row["codes"], row["protocol"], row["metric"]),
            f"{row['value']:.4f}{'*' * small}",
            *(str(row["queries"]), str(row["gallery"]), row["ties"]),
        )
    console = people_console()
    console.print(table)
    if meaningless:
        console.print("* The gallery has no more than K items, so this number means nothing.")


if __name__ == "__main__":
    sys.exit(main())
