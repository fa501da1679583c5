"""Raw pictures to checked Parquet shards, which every other command takes instead of the raw ones.

Examples:
    python -m dsn_ray.prepare sketchy=DIR --verify
    python -m dsn_ray.prepare sketchy=DIR --out sketchy-shards --preview 10
    python -m dsn_ray.prepare folder:mine=DIR --unseen 0.2 --seed 1 --out mine-shards
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dsn_ray import cli
from dsn_ray.config import AugmentConfig
from dsn_ray.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from dsn_ray.data.catalog import Record, Source
    from dsn_ray.data.preparing import Progress
    from dsn_ray.data.verify import Report

_SHOWN = 20


def run_verify(
    source: "Source", missing: "list[Record]", progress: "Progress | None" = None
) -> "Report":
    """Reads every picture of a data set and says what is wrong or missing; writes nothing.

    Args:
        source: the data set.
        missing: pictures that its lists name and that are not there.
        progress: is told the number of pictures read and of all.
    """
    from dsn_ray.data.verify import read_all, report
    from dsn_ray.runtime import ray_cluster

    with ray_cluster():
        return report(source, read_all(source, progress), missing)


def _prepare(parsed: argparse.Namespace, source: "Source", console: "Console") -> None:
    from dsn_ray.data.preparing import check_place, prepare_shards
    from dsn_ray.data.preview import contact_sheet
    from dsn_ray.data.storage import Folder
    from dsn_ray.runtime import ray_cluster

    out = Folder.at(parsed.out)
    check_place(out)
    started = time.monotonic()
    try:
        with ray_cluster():
            with cli.progress_bar(console, f"{source.name}: preparing") as progress:
                shards = prepare_shards(source, out, keep=parsed.keep, progress=progress)
            console.print(f"{shards} ({time.monotonic() - started:.0f} s)", soft_wrap=True)
            if parsed.preview:
                sheet = contact_sheet(shards, parsed.preview, AugmentConfig(), seed=0)
                with out.writing("preview.png") as stream:
                    sheet.save(stream, "PNG")
                console.print(str(out / "preview.png"), soft_wrap=True)
    except KeyboardInterrupt:
        raise Interrupted("The same command goes on where this one was.") from None
    console.print(str(out), soft_wrap=True)


def _verify(
    parsed: argparse.Namespace, source: "Source", missing: "list[Record]", console: "Console"
) -> None:
    with cli.progress_bar(console, f"{source.name}: reading every picture") as progress:
        found = run_verify(source, missing, progress)
    if parsed.json:
        text = json.dumps(asdict(found), indent=1, ensure_ascii=False)
        parsed.json.write_text(text + "\n", encoding="utf-8")
    _print(found, console)
    if found.errors:
        raise UserError(" ".join(found.errors))


def _print(report: "Report", console: "Console") -> None:
    from rich.table import Table

    def or_dash(count: int | None) -> str:
        return "-" if count is None else str(count)

    table = Table(
        *("split", "domain", "lines", "official", "missing", "unique", "official", "undecodable")
    )
    for count in report.counts:
        table.add_row(
            *(count.split, count.domain, str(count.lines), or_dash(count.expected)),
            *(str(count.missing), str(count.unique), or_dash(count.expected_unique)),
            str(count.undecodable),
        )
    console.print(table)
    lines = {
        None: f"{report.name}: nobody has said what a complete copy holds.",
        True: f"{report.name}: complete.",
        False: f"{report.name}: not the complete official set.",
    }
    console.print(lines[report.complete])
    if report.note:
        console.print(f"{report.note[0].upper()}{report.note[1:]}.")
    if report.absent:
        console.print(f"{len(report.absent)} classes are absent: {_some(report.absent)}.")
    if report.missing:
        gaps = Table(*("missing from", "class", "sketches", "photos"))
        for split, classes in report.missing.items():
            for name, lost in classes.items():
                gaps.add_row(split, name, str(lost.get("sketch", 0)), str(lost.get("photo", 0)))
        console.print(gaps)
    for path, reason in report.undecodable[:_SHOWN]:
        console.print(f"{path}: {reason}")
    if len(report.undecodable) > _SHOWN:
        console.print(f"and {len(report.undecodable) - _SHOWN} more that do not decode")
    within = [d for d in report.duplicates if len(d.splits) == 1]
    across = [d for d in report.duplicates if len(d.splits) > 1]
    for kind, some in (("within a split", within), ("across splits", across)):
        if some:
            pairs = [" = ".join(d.paths) for d in some]
            console.print(f"{len(some)} pictures lie {kind} more than once: {_some(pairs, 3)}.")
    if report.known_to_teacher is None:
        console.print("Which unseen classes ImageNet has taught, nobody has looked up.")
    else:
        known = report.known_to_teacher
        console.print(f"{len(known)} unseen classes are ImageNet's too: {_some(known) or 'none'}.")


def _some(names: list[str], shown: int = 10) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _check(parsed: argparse.Namespace) -> None:
    """Refuses options that would be ignored, and values out of range."""
    making = {"--keep": parsed.keep, "--preview": parsed.preview, "--partial": parsed.partial}
    for option, given in making.items():
        if parsed.verify and given:
            raise UserError(f"{option} goes with --out, not with --verify, which writes nothing.")
    if parsed.json and not parsed.verify:
        raise UserError("--json goes with --verify, whose findings it takes.")
    if parsed.seed is not None and parsed.unseen is None:
        raise UserError("--seed goes with --unseen, whose choice it decides.")
    if parsed.preview is not None and parsed.preview < 1:
        raise UserError(f"--preview {parsed.preview}: at least 1 is needed.")


def _open(parsed: argparse.Namespace, missing: "list[Record] | None" = None) -> "Source":
    from dsn_ray.data.catalog import RandomUnseen, open_source, parse_data_argument

    name, root = parse_data_argument(parsed.data)
    chosen = None
    if parsed.unseen is not None:
        if not 0 < parsed.unseen < 1:
            raise UserError(f"--unseen {parsed.unseen:g}: a share between 0 and 1 is needed.")
        if not name.startswith("folder:"):
            raise UserError(f"--unseen is for folders of one's own; {name} has its own split.")
        chosen = RandomUnseen(parsed.unseen, parsed.seed or 0)
    if root is None or "://" not in root:
        return open_source(name, Path(root) if root else None, chosen, missing)
    from dsn_ray.data.remote import RemoteRoot
    from dsn_ray.data.storage import Folder

    folder = Folder.at(root)
    place = Path(folder.path) if folder.is_local else RemoteRoot(folder)
    return open_source(name, place, chosen, missing)


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.prepare")
    parser.add_argument("data", metavar="NAME=ROOT", help="a data set, as in --data elsewhere")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="DIR_OR_URL", help="the shard folder to make")
    what.add_argument("--verify", action="store_true", help="only check, and say what is missing")
    parser.add_argument("--keep", action="store_true", help="store the raw files as they are")
    parser.add_argument(
        "--partial", action="store_true", help="leave out what lists name and what is not there"
    )
    parser.add_argument("--unseen", type=float, metavar="X", help="share of classes, of a folder")
    parser.add_argument("--seed", type=int, metavar="N", help="of --unseen (0)")
    parser.add_argument("--preview", type=int, metavar="N", help="save a picture of N classes")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what --verify found here")
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    _check(parsed)
    missing: list[Record] = []
    source = _open(parsed, missing if parsed.verify or parsed.partial else None)
    cli.check_file(parsed.json, "--json")
    with cli.quiet_log("prepare") as console:
        if parsed.verify:
            _verify(parsed, source, missing, console)
        else:
            if missing:
                lost = len({record.path for record in missing})
                console.print(
                    f"{lost} pictures that lists name are not there and are left out.",
                    soft_wrap=True,
                )
            _prepare(parsed, source, console)


if __name__ == "__main__":
    sys.exit(main())
