"""The views of a whole batch on the device that trains, from pictures and what chance has drawn.

The same views as `dsn_ray.data.views` makes one by one, but for rounding: a worker's CPUs then only
decode.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dsn_ray.config import AugmentConfig
from dsn_ray.data.batch import Draws
from dsn_ray.data.views import LUMA, beyond_the_picture


def views_on_device(
    pictures: Tensor, is_sketch: bool, draws: Draws, config: AugmentConfig
) -> Tensor:
    """Makes the views of a batch's pictures of one domain.

    Args:
        pictures: uint8 `[n, 3, px, px]`, on the device.
        is_sketch: which domain.
        draws: on the host, so that the device is never waited for.
        config: of the shared move's surroundings.

    Returns:
        uint8 `[n, 1 + A, 3, px, px]`: after the shared move, then its A augmentations.
    """
    device = pictures.device

    def there(values: Tensor) -> Tensor:
        return values.to(device, non_blocking=True)

    flipped = torch.where(there(draws.flip)[:, None, None, None], pictures.flip(-1), pictures)
    beyond, padding = beyond_the_picture(is_sketch, config)
    warps = there(draws.warp.nonzero()[:, 0])
    theta = there(draws.theta)[warps]
    grid = functional.affine_grid(theta, [len(theta), *pictures.shape[1:]], align_corners=False)
    colours = flipped[warps].float() - beyond
    warped = functional.grid_sample(colours, grid, padding_mode=padding, align_corners=False)
    moved = flipped.index_copy(0, warps, _rounded(warped + beyond))

    augmented = draws.jitter.shape[1]
    views = moved[:, None].expand(-1, augmented, -1, -1, -1).flatten(0, 1)
    views = torch.where(
        there(draws.view_flip.flatten())[:, None, None, None], views.flip(-1), views
    )
    colours = views.float().flatten(2)
    jitter, order = draws.jitter.flatten(), draws.order.flatten(0, 1)
    amounts = there(draws.amounts.flatten(0, 1).float())
    for turn in range(4):
        for kind, change in enumerate(_JITTERS):
            rows = there((jitter & (order[:, turn] == kind)).nonzero()[:, 0])
            changed = change(colours[rows], amounts[rows, kind, None, None])
            colours.index_copy_(0, rows, changed)
    rows = there(draws.grey.flatten().nonzero()[:, 0])
    colours.index_copy_(0, rows, _luma(colours[rows]).expand(-1, 3, -1))
    made = _rounded(colours).view(len(pictures), augmented, *pictures.shape[1:])
    return torch.cat([moved[:, None], made], dim=1)


def _rounded(colours: Tensor) -> Tensor:
    return (colours + 0.5).to(torch.uint8)


def _luma(colours: Tensor) -> Tensor:
    """`[n, 3, p]` to `[n, 1, p]`."""
    red, green, blue = LUMA.tolist()
    return red * colours[:, :1] + green * colours[:, 1:2] + blue * colours[:, 2:]


def _blended(colours: Tensor, neutral: Tensor | float, amounts: Tensor) -> Tensor:
    return (colours * (1 + amounts) - neutral * amounts).clamp(0, 255)


def _hue_turned(colours: Tensor, amounts: Tensor) -> Tensor:
    """As `dsn_ray.data.views` turns it."""
    red, green, blue = colours.split(1, dim=1)
    low, high = colours.amin(1, keepdim=True), colours.amax(1, keepdim=True)
    chroma = high - low
    sixths = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    sixths = sixths / chroma.clamp(min=1e-6) + 6 * amounts
    sixths = sixths - 6 * ((sixths - 2) / 6).round()
    own = torch.tensor([0.0, 2.0, 4.0], device=colours.device)[:, None]
    nearness = ((sixths - own).abs() - 3).abs() - 1
    return low + chroma * nearness.clamp(0, 1)


_JITTERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda colours, amounts: _blended(colours, 0.0, amounts),
    lambda colours, amounts: _blended(colours, _luma(colours.mean(dim=2, keepdim=True)), amounts),
    lambda colours, amounts: _blended(colours, _luma(colours), amounts),
    _hue_turned,
)
"""In the order of `dsn_ray.data.views.JITTERS`."""
