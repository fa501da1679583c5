"""The teacher: the backbone as ImageNet left it."""

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from dsn_ray.model.backbone import build_backbone
from dsn_ray.model.conditional import Backbone
from dsn_ray.model.weights import IMAGENET_CLASSES, ImagenetWeights, imagenet_weights

if TYPE_CHECKING:
    from dsn_ray.config import NetworkConfig


class Teacher(nn.Module):
    """A frozen backbone with its ImageNet classifier, in evaluation mode.

    Its logits are the labels of semantic distillation: Wang et al., IJCAI 2021, eq. 7, after
    SAKE (Liu et al., ICCV 2019).

    Args:
        backbone: The backbone.
        classifier: Maps trunk features to the 1000 ImageNet classes.
        digest: Names the weights in keys of caches.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Linear, digest: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.digest = digest
        self.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, config: "NetworkConfig", weights: ImagenetWeights | None = None) -> Self:
        """Build the teacher of the network that ``config`` describes.

        With random weights it is the same random network every time.

        Args:
            config: Names the backbone and the place of its weights.
            weights: ImageNet weights to use instead of those that ``config`` names.

        Raises:
            MissingWeights: If the ImageNet weights cannot be had.
            ValueError: If the backbone is unknown.
        """
        weights = weights or imagenet_weights(config.backbone, config.weights)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            backbone = build_backbone(config.backbone)
            classifier = nn.Linear(backbone.dim, IMAGENET_CLASSES)
        if weights is None:
            return cls(backbone, classifier, f"random-{config.backbone}")
        weights.load_into(backbone)
        classifier.load_state_dict(
            {"weight": weights.classifier_weight, "bias": weights.classifier_bias}
        )
        return cls(backbone, classifier, weights.digest)

    @torch.no_grad()
    def logits(self, pictures: Tensor) -> Tensor:
        """Map pictures ``[N, 3, H, W]``, uint8 or float on 0-255, to logits ``[N, 1000]``.

        The domain is irrelevant: before training it changes nothing.
        """
        is_photo = torch.ones(len(pictures), device=pictures.device)
        return self.classifier(self.backbone(pictures, is_photo)).float()
