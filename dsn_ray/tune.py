r"""A sweep, and then the final job on every data set.

Examples:
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml
    python -m dsn_ray.tune --space search_spaces/lambdas.yaml \
        --data sketchy=DIR --data tuberlin=DIR --name first
    python -m dsn_ray.tune --name first --resume
    python -m dsn_ray.tune --space search_spaces/ablation.yaml --data sketchy=DIR --dry-run
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray import cli
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    from dsn_ray.sweep import Sweep

SMOKE_TEST: dict[str, Any] = {
    "data.px": 32,
    "data.teacher_px": 32,
    "data.per_class": 4,
    "data.sketches_per_batch": 8,
    "data.photos_per_batch": 8,
    "train.epochs": 1,
}
SMOKE_TRIALS = 2


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.tune")
    parser.add_argument("--space", type=Path, metavar="FILE", help="what to vary")
    cli.add_data_argument(parser)
    cli.add_config_arguments(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="instead of the space's budget")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="of the final job (3, on the embedded data 1)"
    )
    cli.add_run_arguments(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--search-only", action="store_true", help="no final job; --resume --final-only is that"
    )
    part.add_argument(
        "--final-only", action="store_true", help="with --resume: the final job, no more trials"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run, start nothing")
    parser.add_argument("--smoke-test", action="store_true", help="seconds per trial")
    cli.add_shape_arguments(parser)
    return parser


def _asked(parsed: argparse.Namespace) -> "Sweep":
    from dsn_ray.space import load_space
    from dsn_ray.sweep import EMBEDDED, make_sweep, refuse_varied

    if parsed.space is None:
        raise UserError("--space is needed, as in --space search_spaces/lambdas.yaml.")
    space = load_space(parsed.space)
    config, over = cli.settings_of(parsed)
    refuse_varied(space, over)
    trials, seeds = parsed.trials, parsed.seeds
    if parsed.smoke_test:
        over = {**SMOKE_TEST, **over}
        trials = trials or (SMOKE_TRIALS if space.parameters else None)
        seeds = seeds or 1
    return make_sweep(
        space,
        cli.parse_data(parsed.data) or EMBEDDED,
        recipe=parsed.recipe,
        config=config,
        over=over,
        trials=trials,
        seeds=seeds,
    )


def _asked_now(parsed: argparse.Namespace, kept: "Sweep") -> "Sweep":
    """What the options ask for of a run that was kept; what they leave out stays as it was."""
    if any((parsed.space, parsed.data, parsed.recipe, parsed.config, parsed.smoke_test)):
        return _asked(parsed)
    return kept.changed(cli.settings_of(parsed)[1], parsed.trials, parsed.seeds)


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    from dsn_ray.runs import find_run, resumed
    from dsn_ray.sweep import Sweep, part_of
    from dsn_ray.sweeping import go_on, start

    part = part_of(parsed.search_only, parsed.final_only)
    shape = cli.shape_of(parsed)
    for option in ("trials", "seeds"):
        value = getattr(parsed, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: at least 1 is needed.")
    for option in ("final_only", "allow_changed"):
        if getattr(parsed, option) and not parsed.resume:
            raise UserError(f"--{option.replace('_', '-')} goes with --resume --name N.")
    if parsed.resume:
        run, sweep = resumed(
            *(parsed.name, parsed.storage, parsed.allow_changed),
            *(Sweep.parse, partial(_asked_now, parsed)),
        )
    else:
        sweep = _asked(parsed)
    if parsed.dry_run:
        from dsn_ray.plan import print_plan

        if parsed.name:
            find_run(parsed.name, parsed.storage)
        print_plan(sweep, shape, part)
    elif parsed.resume:
        go_on(sweep, run, shape, part)
    else:
        start(sweep, parsed.name, parsed.space.stem, parsed.storage, shape, part)


if __name__ == "__main__":
    sys.exit(main())
