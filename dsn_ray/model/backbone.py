"""The backbones by name."""

from torch import nn

from dsn_ray.model.conditional import Backbone
from dsn_ray.model.cse_resnet import CseResNet50
from dsn_ray.model.efficientnet_lite import EfficientNetLite0

BACKBONES: dict[str, type[Backbone]] = {
    "cse_resnet50": CseResNet50,
    "efficientnet_lite0": EfficientNetLite0,
}


def build_backbone(name: str, bn_momentum: float | None = None) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: A key of ``BACKBONES``.
        bn_momentum: Momentum of the running batch statistics; None keeps PyTorch's 0.1.

    Raises:
        ValueError: If there is no backbone of that name.
    """
    check_backbone_name(name)
    backbone = BACKBONES[name]()
    if bn_momentum is not None:
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum
    return backbone


def check_backbone_name(name: str) -> None:
    """Raise a ValueError with the allowed names where ``name`` is not a key of ``BACKBONES``."""
    if name not in BACKBONES:
        raise ValueError(f"There is no backbone {name!r}; allowed are {', '.join(BACKBONES)}.")
