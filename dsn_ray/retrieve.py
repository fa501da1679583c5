"""Search a folder of photos with one sketch or several.

Examples:
    python -m dsn_ray.retrieve --checkpoint C --gallery photos sketch.png --save grid.png
    python -m dsn_ray.retrieve --checkpoint C --gallery photos *.png --codes binary --json OUT
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsn_ray import cli
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from rich.console import Console

    from dsn_ray.gallery import Gallery

_BATCH = 64  # sketches embedded at a time
_MOST_DRAWN = 200  # sketches of a picture


def read_sketch(path: Path, px: int) -> "NDArray[np.uint8]":
    """A sketch as training sees it: uint8 `[3, px, px]`.

    Raises:
        UserError: If it cannot be read or is no picture.
    """
    from dsn_ray.gallery import as_trained

    try:
        return as_trained(path.read_bytes(), "sketch", px)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is no sketch that can be used: {error}.") from None


def _grid(gallery: "Gallery", results: list[dict[str, Any]]) -> "Image.Image":
    """The sketches and the photos found, each with its class and score."""
    from dsn_ray.data.decoding import open_rgb
    from dsn_ray.figures import TILE, Tile, grid

    def tile(path: Path, caption: str) -> Tile:
        return Tile(open_rgb(path.read_bytes(), least_px=TILE), caption)

    return grid(
        [
            [
                tile(Path(result["sketch"]), Path(result["sketch"]).name),
                *(
                    tile(
                        gallery.root / photo["path"],
                        f"{photo['class']}\n{photo['score']:.3g}",
                    )
                    for photo in result["photos"]
                ),
            ]
            for result in results
        ]
    )


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.retrieve")
    parser.add_argument("sketches", nargs="+", type=Path, metavar="SKETCH", help="picture files")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="its folder")
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="of photos")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="photos per sketch (10)")
    parser.add_argument(
        "--codes", choices=("real", "binary"), default="real", help="cosine, or Hamming distance"
    )
    parser.add_argument("--save", type=Path, metavar="GRID.png", help="a picture of what is found")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what is found here")
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    if parsed.top < 1:
        raise UserError(f"--top {parsed.top}: at least 1 is needed.")
    if parsed.save and len(parsed.sketches) > _MOST_DRAWN:
        raise UserError(
            f"--save {parsed.save}: it draws {_MOST_DRAWN} sketches at most; there are "
            f"{len(parsed.sketches)}."
        )
    cli.check_file(parsed.json, "--json")
    cli.check_file(parsed.save, "--save")
    opened = open_checkpoint(parsed.checkpoint)

    import numpy as np

    from dsn_ray.data.storage import cache_folder
    from dsn_ray.gallery import embed, open_gallery
    from dsn_ray.runtime import people_console

    console, network = people_console(), opened.network()
    features = []
    for start in range(0, len(parsed.sketches), _BATCH):
        some = parsed.sketches[start : start + _BATCH]
        pictures = [read_sketch(path, opened.config.data.px) for path in some]
        features.append(embed(network, pictures, photos=False))
    with cli.progress_bar(console, "looking at new photos") as progress:
        gallery = open_gallery(opened, network, parsed.gallery, cache_folder(), progress)
    console.print(_about(gallery), soft_wrap=True)
    rows, scores = gallery.index.search(np.concatenate(features), parsed.top, parsed.codes)

    results: list[dict[str, Any]] = [
        {
            "sketch": str(sketch),
            "photos": [
                {"path": gallery.paths[row], "class": gallery.class_of(row), "score": score}
                for row, score in zip(found.tolist(), values.tolist(), strict=True)
            ],
        }
        for sketch, found, values in zip(parsed.sketches, rows, scores, strict=True)
    ]
    for result in results:
        _print(result, parsed.codes, console)
    if parsed.json:
        text = json.dumps({"codes": parsed.codes, "results": results}, indent=1, ensure_ascii=False)
        parsed.json.write_text(text + "\n", encoding="utf-8")
    if parsed.save:
        _grid(gallery, results).save(parsed.save, "PNG")
        console.print(str(parsed.save), soft_wrap=True)


def _about(gallery: "Gallery") -> str:
    text = f"{gallery.root}: {len(gallery.paths)} photos, {gallery.embedded} of them new"
    if gallery.rejected:
        path, reason = gallery.rejected[0]
        text += f"; {len(gallery.rejected)} files are left out, as {path} ({reason})"
    return text


def _print(result: dict[str, Any], codes: str, console: "Console") -> None:
    from rich.table import Table

    score = "cosine" if codes == "real" else "bits that differ"
    table = Table("", score, "class", "photo", title=result["sketch"], title_justify="left")
    for rank, photo in enumerate(result["photos"], start=1):
        shown = f"{photo['score']:.4f}" if codes == "real" else f"{photo['score']:.0f}"
        table.add_row(str(rank), shown, photo["class"], photo["path"])
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
