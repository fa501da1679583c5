"""A run as one HTML file that needs no network: tables, plots and the photos that were found.

Examples:
    python -m dsn_ray.report runs/NAME
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from dsn_ray import cli
from dsn_ray.errors import UserError

NAME = "report.html"
_TEMPLATE = Path(__file__).parent / "page" / "report.html"


class MissingExtraError(UserError):
    """What the extra `report` brings is not installed."""


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run's folder, and its pictures and their numbers beside it.

    Args:
        folder: of the run, finished or not.

    Returns:
        The file.

    Raises:
        UserError: If it is no run's folder.
        MissingExtraError: If the extra `report` is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"The report needs {package}: pip install 'dsn-ray[report]' brings it."
            )
    import jinja2

    from dsn_ray.album import Album
    from dsn_ray.record import read_run
    from dsn_ray.sections import SECTIONS

    run = read_run(folder)
    album = Album(folder / "report")
    sections = [section for make in SECTIONS for section in make(run, album)]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        name=folder.resolve().name,
        partial=not run.finished,
        sections=[one for one in sections if one.tables or one.pictures],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    )
    unfinished = folder / f".{NAME}"
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(folder / NAME)


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.report")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, finished or not")
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    print(write_report(_arguments().parse_args(arguments).run))


if __name__ == "__main__":
    sys.exit(main())
