"""One training run: data-parallel over Ray Train workers, fed by Ray Data.

Examples:
    python -m dsn_ray.train --data openmoji-nature --set train.epochs=3 --name first
    python -m dsn_ray.train --name first --resume
"""

import argparse
import sys
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
    from dsn_ray.training import DATA, Training

    data = cli.parse_data(parsed.data) or [DATA]
    if len(data) > 1:
        raise UserError("--data: train takes one data set at a time.")
    ((name, root),) = data
    return Training(cli.config_of(parsed, name, embedded=root is None), (name, root))


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    from dsn_ray.runs import resumed
    from dsn_ray.training import Training, go_on, start

    shape = cli.shape_of(parsed)
    if parsed.resume:
        run, training = resumed(parsed, Training.parse, lambda: _asked(parsed))
        go_on(training, run, shape)
        return
    start(_asked(parsed), parsed.name, parsed.storage, shape)


if __name__ == "__main__":
    sys.exit(main())
