"""The semantic mask of anybody's classes, from WordNet 3.0.

Examples:
    python -m dsn_ray.mask --classes classes.txt --out mask.npz
    python -m dsn_ray.train --data folder:mine=DIR --set data.semantics=mask.npz
"""

import argparse
import sys
from pathlib import Path

from dsn_ray import cli
from dsn_ray.errors import UserError


def _read_classes(path: Path) -> dict[str, tuple[str, ...]]:
    """Class names, one a line, with the WordNet ids that may follow after a tab."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"--classes {path} cannot be read: {reason}.") from None
    rows = (line.partition("\t") for line in lines if line.strip())
    classes = {name.strip(): tuple(w for w in ids.split(",") if w.strip()) for name, _, ids in rows}
    if not classes:
        raise UserError(f"--classes {path}: there is no class in it.")
    return classes


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.mask")
    parser.add_argument(
        "--classes",
        type=Path,
        required=True,
        metavar="FILE",
        help="one class a line; WordNet ids, such as n02121620,n02123045, may follow after a tab",
    )
    parser.add_argument(
        "--wordnet",
        type=Path,
        default=Path("/usr/share/wordnet"),
        metavar="DIR",
        help="folder of data.noun and index.noun (/usr/share/wordnet)",
    )
    parser.add_argument(
        "--rule",
        choices=("max", "overwrite"),
        default="max",
        help="of several synsets the largest value counts, or the last, as in the published masks",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="F.npz", help="overwritten")
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    import numpy as np

    from dsn_ray.data.semantics import build_mask, imagenet_wnids, look_up

    parsed = _arguments().parse_args(arguments)
    if parsed.out.suffix != ".npz":
        raise UserError(f"--out {parsed.out}: the name must end in .npz.")
    classes = _read_classes(parsed.classes)
    cli.check_file(parsed.out, "--out")
    classes |= look_up([name for name, ids in classes.items() if not ids], parsed.wordnet)
    mask = build_mask(classes, parsed.wordnet, imagenet_wnids(), parsed.rule)
    np.savez_compressed(parsed.out, mask=mask, classes=np.array(list(classes)))
    print(
        f"{parsed.out}: {len(mask)} classes, {int(mask.any(axis=1).sum())} near an ImageNet class"
    )


if __name__ == "__main__":
    sys.exit(main())
