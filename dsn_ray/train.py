"""One training run: data-parallel over Ray Train workers, fed by Ray Data.

Examples:
    python -m dsn_ray.train --data openmoji-nature --set train.epochs=3 --name first
    python -m dsn_ray.train --name first --resume
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dsn_ray import cli
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    from dsn_ray.training import Training


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.train")
    cli.add_data_argument(parser)
    cli.add_config_arguments(parser)
    cli.add_run_arguments(parser)
    cli.add_shape_arguments(parser)
    return parser


def _asked(parsed: argparse.Namespace) -> "Training":
    from dsn_ray.config import layered
    from dsn_ray.training import DATA, Training

    data = cli.parse_data(parsed.data) or [DATA]
    if len(data) > 1:
        raise UserError("--data: train takes one data set at a time.")
    ((name, root),) = data
    config = layered(name, root is None, parsed.recipe, *cli.settings_of(parsed))
    return Training(config, (name, root))


def _asked_now(parsed: argparse.Namespace, kept: "Training") -> "Training":
    """What the options ask for of a run that was kept; what they leave out stays as it was."""
    if any((parsed.data, parsed.recipe, parsed.config)):
        return _asked(parsed)
    return replace(kept, config=kept.config.with_settings(cli.settings_of(parsed)[1]))


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    from dsn_ray.runs import resumed
    from dsn_ray.training import Training, go_on, start

    shape = cli.shape_of(parsed)
    if parsed.resume:
        run, training = resumed(
            *(parsed.name, parsed.storage, parsed.allow_changed),
            *(Training.parse, partial(_asked_now, parsed)),
        )
        go_on(training, run, shape)
        return
    start(_asked(parsed), parsed.name, parsed.storage, shape)


if __name__ == "__main__":
    sys.exit(main())
