"""A run as one HTML file that needs no network: tables, plots and the photos that were found.

Examples:
    python -m dsn_ray.report runs/NAME
"""

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dsn_ray import cli
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    from dsn_ray.album import Album, Section
    from dsn_ray.record import RunRecord

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
        UserError: If it is no run's folder, or cannot be written to.
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

    run = read_run(folder)
    if not isinstance(run.config, dict) or not {"data", "config"} <= run.config.keys():
        raise UserError(f"{folder}: its config.yaml is not that of a run.")
    album = Album()
    broken: list[str] = []
    sections = list(_sections(run, album, broken))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        name=folder.resolve().name,
        partial="space" in run.config and not run.finished,  # a single training has no final job
        broken=broken,
        sections=sections,
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    )
    unfinished = folder / f".{NAME}"
    try:
        album.write(folder / "report")
        unfinished.write_text(page, encoding="utf-8")
        return unfinished.replace(folder / NAME)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}."
        ) from None


def _sections(run: "RunRecord", album: "Album", broken: list[str]) -> Iterator["Section"]:
    """The sections that have something to show; what cannot be drawn is said in `broken`."""
    from dsn_ray.sections import SECTIONS

    for title, make in SECTIONS.items():
        try:
            yield from (one for one in make(run, album) if one.tables or one.pictures)
        except Exception as error:  # one damaged file takes no other section away
            reason = str(error).partition("\n")[0]
            broken.append(f"{title}: not shown ({type(error).__name__}: {reason})")


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
