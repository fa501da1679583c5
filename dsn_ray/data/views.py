"""Pictures from encoded bytes, and the three training views of each.

Every sketch and photo meets the network three times (Wang et al., IJCAI 2021, eq. 1): as it is, and
in two random augmentations, which the contrastive loss alone looks at. Where the paper is silent
the numbers are those of the code released with it, which first moves the picture once, before all
three views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsn_ray.data.decoding import open_rgb

if TYPE_CHECKING:
    from dsn_ray.config import AugmentConfig

Pixels: TypeAlias = NDArray[np.uint8]
Colours: TypeAlias = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
OWN_SIXTH = np.array([[0], [2], [4]], np.float32)  # the hues of red, green and blue


def decode(encoded: bytes, px: int) -> Pixels:
    """Decodes the first frame of a picture and resizes it to a square.

    Pictures that are not square are squashed, as the released code does; the official ones all are
    square. Transparent pictures are laid on white, and a camera's orientation tag is obeyed.

    Args:
        encoded: a file in one of the formats of `dsn_ray.data.decoding`.
        px: side of the result in pixels.

    Returns:
        RGB, uint8 [3, px, px].

    Raises:
        UndecodablePicture: as `dsn_ray.data.decoding.open_rgb`.
    """
    import torch

    rgb = np.array(open_rgb(encoded, least_px=px))
    # torch resizes uint8 several times faster than PIL does
    batch = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(batch, (px, px), mode="bilinear", antialias=True)
    return resized[0].contiguous().numpy()


class Draw(NamedTuple):
    """What chance decides of one picture's A augmentations, or of n pictures' (one axis more)."""

    flip: NDArray[np.bool_]
    """`[]` the shared move mirrors"""
    warp: NDArray[np.bool_]
    """`[]` the shared move scales, rotates or shifts"""
    theta: NDArray[np.float32]
    """`[2, 3]` from places in the moved picture to places in the picture, in half widths"""
    view_flip: NDArray[np.bool_]
    """`[A]` an augmentation mirrors"""
    jitter: NDArray[np.bool_]
    """`[A]` it changes colours"""
    grey: NDArray[np.bool_]
    """`[A]` it takes them away"""
    amounts: NDArray[np.float64]
    """`[A, 4]` of brightness, contrast, saturation and hue"""
    order: NDArray[np.int64]
    """`[A, 4]` in which these change"""


def draw_views(rng: np.random.Generator, config: AugmentConfig, augmented: int = 2) -> Draw:
    """Draws the views of one picture; equal generators give equal draws."""
    flip = warp = False
    theta = np.eye(2, 3, dtype=np.float32)
    if rng.random() < config.shared:
        chances = [config.flip, config.scale, config.rotate, config.shift]
        flip, scale, rotate, shift = rng.random(4) < chances
        if warp := bool(scale or rotate or shift):
            theta = _drawn_move(rng, config, scale, rotate, shift)
    chosen = np.zeros((augmented, 3), bool)
    amounts = np.zeros((augmented, 4))
    order = np.tile(np.arange(4), (augmented, 1))
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    for view in range(augmented):
        chosen[view] = rng.random(3) < [config.view_flip, config.jitter, config.grey]
        if chosen[view, 1]:
            amounts[view] = rng.uniform(-spread, spread)
            order[view] = rng.permutation(4)
    view_flip, jitter, grey = chosen.T
    return Draw(np.array(flip), np.array(warp), theta, view_flip, jitter, grey, amounts, order)


def _drawn_move(
    rng: np.random.Generator, config: AugmentConfig, scale: bool, rotate: bool, shift: bool
) -> NDArray[np.float32]:
    factors = rng.uniform(*config.scale_range, size=2) if scale else np.ones(2)
    angle = math.radians(rng.uniform(-config.degrees, config.degrees)) if rotate else 0.0
    # In half widths, the unit of grid_sample: the middle is at (0, 0), the upper left at (-1, -1).
    offset = rng.uniform(-1, 1, size=2) * config.shift_px / 112 if shift else np.zeros(2)
    fixed = np.full(2, -1.0 if config.centre == "corner" else 0.0)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn * factors)
    return np.column_stack([back, fixed - back @ (fixed + offset)]).astype(np.float32)


def beyond_the_picture(is_sketch: bool, config: AugmentConfig) -> tuple[float, str]:
    """What a shared move brings in: a colour, and grid_sample's name for what is taken."""
    natural = config.fill == "natural"
    return 255.0 * (natural and is_sketch), "border" if natural and not is_sketch else "zeros"


def random_views(
    picture: Pixels,
    is_sketch: bool,
    rng: np.random.Generator,
    config: AugmentConfig,
    augmented: int = 2,
) -> Pixels:
    """Makes the views of one picture.

    Args:
        picture: RGB, uint8 [3, px, px].
        is_sketch: decides only how the shared move fills the space beyond the picture.
        rng: the one source of chance, so that equal generators give equal views.
        config: probabilities and strengths.
        augmented: number of augmentations.

    Returns:
        uint8 [1 + augmented, 3, px, px]: the picture after the shared move, then its augmentations.
    """
    draw = draw_views(rng, config, augmented)
    if draw.flip:
        picture = picture[:, :, ::-1]
    if draw.warp:
        picture = _warped(picture, draw.theta, *beyond_the_picture(is_sketch, config))
    return np.stack([picture, *(_augmented(picture, draw, view) for view in range(augmented))])


def _warped(picture: Pixels, theta: NDArray[np.float32], beyond: float, padding: str) -> Pixels:
    import torch

    colours = torch.from_numpy(picture.astype(np.float32) - np.float32(beyond))
    # affine_grid gives the same grid, but takes twice as long as the sampling itself.
    middles = (np.arange(0.5, picture.shape[1], dtype=np.float32) * 2 / picture.shape[1]) - 1
    planes = np.stack([np.add.outer(y * middles + at, x * middles) for x, y, at in theta])
    grid = torch.from_numpy(planes).permute(1, 2, 0)
    warped = torch.nn.functional.grid_sample(
        colours[None], grid[None], padding_mode=padding, align_corners=False
    )
    return _rounded((warped[0] + beyond).numpy())


def _augmented(picture: Pixels, draw: Draw, view: int) -> Pixels:
    """Mirrors, changes the colours and takes them away, as drawn."""
    if draw.view_flip[view]:
        picture = picture[:, :, ::-1]
    if not (draw.jitter[view] or draw.grey[view]):
        return picture
    colours = picture.reshape(3, -1).astype(np.float32)
    if draw.jitter[view]:
        for step in draw.order[view]:
            colours = JITTERS[step](colours, float(draw.amounts[view, step]))
    if draw.grey[view]:
        colours = np.broadcast_to(LUMA @ colours, colours.shape)
    return _rounded(colours).reshape(picture.shape)


def _rounded(colours: Colours) -> Pixels:
    return (colours + np.float32(0.5)).astype(np.uint8)


def _blended(colours: Colours, neutral: Colours | np.float32, amount: float) -> Colours:
    """Moves colours [3, n] away from the neutral ones by `amount` of their distance."""
    result = colours * np.float32(1 + amount)
    result -= neutral * np.float32(amount)
    return np.clip(result, 0, 255, out=result)


def _hue_turned(colours: Colours, amount: float) -> Colours:
    """Turns the hue of colours [3, n] by `amount` of a turn, keeping HSV saturation and value."""
    red, green, blue = colours
    low, high = colours.min(axis=0), colours.max(axis=0)
    chroma = high - low
    if not chroma.any():  # a grey picture, as nearly every sketch is
        return colours
    sixths = np.where(
        high == red,
        green - blue,
        np.where(high == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    sixths /= np.maximum(chroma, np.float32(1e-6))
    sixths += np.float32(6 * amount)
    sixths -= 6 * np.rint((sixths - 2) / 6)
    # A channel is full within one sixth of a turn of its own hue and absent beyond two sixths.
    nearness = np.abs(np.abs(sixths - OWN_SIXTH) - 3) - 1
    return low + chroma * np.clip(nearness, 0, 1, out=nearness)


JITTERS: tuple[Callable[[Colours, float], Colours], ...] = (
    lambda colours, amount: _blended(colours, np.float32(0), amount),
    lambda colours, amount: _blended(colours, LUMA @ colours.mean(axis=1), amount),
    lambda colours, amount: _blended(colours, LUMA @ colours, amount),
    _hue_turned,
)
"""Brightness, contrast, saturation and hue, changed as torchvision's ColorJitter defines it."""
