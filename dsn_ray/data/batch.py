"""What a training step takes."""

from typing import NamedTuple

import torch

AUGMENTED_VIEWS = 2
"""Of each picture, beside the first (eq. 1)."""


class Draws(NamedTuple):
    """What chance has decided of n pictures' views, each field as in `dsn_ray.data.views.Draw`."""

    flip: torch.Tensor
    warp: torch.Tensor
    theta: torch.Tensor
    view_flip: torch.Tensor
    jitter: torch.Tensor
    grey: torch.Tensor
    amounts: torch.Tensor
    order: torch.Tensor


class Batch(NamedTuple):
    """One worker's part of a training batch."""

    sketch_views: torch.Tensor
    """uint8 `[S, V views, 3, px, px]`; V is 3, or 1 where nothing looks at augmented ones or the
    device makes them"""
    sketch_labels: torch.Tensor
    """`[S]` over the training classes"""
    photo_views: torch.Tensor
    """uint8 `[P, V views, 3, px, px]`"""
    photo_labels: torch.Tensor
    """`[P]` over the training classes"""
    teacher_logits: torch.Tensor | None
    """float32 `[P, 1000]`, or `[S + P, 1000]` where sketches learn from the teacher too; None where
    the teacher is asked in training"""
    sketch_draws: Draws | None = None
    """where the device makes the views"""
    photo_draws: Draws | None = None
    """the same of the photos"""
