"""The Domain-Smoothing Network: trunk, embedding, projection and the two classifiers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dsn_ray.model.backbone import build_backbone
from dsn_ray.model.conditional import Backbone
from dsn_ray.model.cse_resnet import CseResNet50
from dsn_ray.model.weights import IMAGENET_CLASSES, ImagenetWeights, from_se_names, imagenet_weights

if TYPE_CHECKING:
    from dsn_ray.config import NetworkConfig


class NetworkOutput(NamedTuple):
    """What the losses of Wang et al., IJCAI 2021, section 3 work on.

    Attributes:
        trunk: The backbone's features ``[N, trunk dim]``.
        embedding: The embedding f ``[N, d]``, which retrieval compares.
        projection: The contrastive projection of f ``[N, projection dim]``, not normalised.
        class_logits: Logits over the seen classes ``[first_views, C]``.
        teacher_logits: Logits over the ImageNet classes ``[first_views, 1000]``.
    """

    trunk: Tensor
    embedding: Tensor
    projection: Tensor
    class_logits: Tensor
    teacher_logits: Tensor


class DsnNetwork(nn.Module):
    """One network that embeds sketches and photos alike, told which is which.

    Args:
        backbone: Maps pictures and domains to trunk features.
        dim: Length d of the embedding.
        projection_dim: Length of the contrastive projection; None takes the embedding itself.
        num_seen_classes: Number of classes that training sees.
    """

    def __init__(
        self, backbone: Backbone, dim: int, projection_dim: int | None, num_seen_classes: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedding = nn.Linear(backbone.dim, dim)
        self.projection: nn.Module = nn.Identity()
        if projection_dim is not None:
            self.projection = nn.Sequential(
                nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection_dim)
            )
        self.classifier = nn.Linear(dim, num_seen_classes)
        self.teacher_head = nn.Linear(dim, IMAGENET_CLASSES)

    def forward(self, pictures: Tensor, is_photo: Tensor, first_views: int) -> NetworkOutput:
        """Run everything that training needs.

        Args:
            pictures: ``[N, 3, H, W]``, uint8 or float on 0-255; un-augmented views come first.
            is_photo: ``[N]``, true or 1 for a photo, false or 0 for a sketch.
            first_views: How many pictures are un-augmented: only those are classified.
        """
        trunk = self.trunk(pictures, is_photo)
        embedding = self.embedding(trunk)
        first = embedding[:first_views]
        return NetworkOutput(
            trunk=trunk,
            embedding=embedding,
            projection=self.projection(embedding),
            class_logits=self.classifier(first),
            teacher_logits=self.teacher_head(first),
        )

    def embed(self, pictures: Tensor, is_photo: Tensor) -> Tensor:
        """Map ``pictures [N, 3, H, W]`` and ``is_photo [N]`` to embeddings ``[N, d]``."""
        return self.embedding(self.trunk(pictures, is_photo))

    def trunk(self, pictures: Tensor, is_photo: Tensor) -> Tensor:
        """Map ``pictures [N, 3, H, W]`` and ``is_photo [N]`` to features ``[N, trunk dim]``."""
        return self.backbone(pictures, is_photo)

    def start_from(self, weights: ImagenetWeights) -> None:
        """Start the backbone, the embedding and the teacher head from ImageNet weights.

        Together embedding and teacher head start as the best approximation of the ImageNet
        classifier that passes through d numbers (SAKE: Liu et al., ICCV 2019).

        Raises:
            ValueError: If the weights fit another backbone or d is larger than their rank.
        """
        weights.load_into(self.backbone)
        embedding, teacher = svd_start(weights.classifier_svd, self.embedding.out_features)
        with torch.no_grad():
            self.embedding.weight.copy_(embedding)
            self.embedding.bias.zero_()
            self.teacher_head.weight.copy_(teacher)
            self.teacher_head.bias.copy_(weights.classifier_bias)


def svd_start(svd: tuple[Tensor, Tensor, Tensor], d: int) -> tuple[Tensor, Tensor]:
    """Split a classifier ``W = U S V^T``, ``[classes, trunk dim]``, into ``U_d`` and ``S_d V_d^T``.

    Args:
        svd: U, S and V^T, the reduced ones.
        d: Length of the embedding.

    Returns:
        The embedding's weight ``S_d V_d^T [d, trunk dim]`` and the teacher head's weight
        ``U_d [classes, d]``; their product is the best approximation of W of rank d.

    Raises:
        ValueError: If d is not from 1 to the rank of W.
    """
    u, s, vh = svd
    rank = rank_of(svd)
    if not 1 <= d <= rank:
        raise ValueError(
            f"d must be from 1 to {rank}, the rank of the classifier that the embedding starts "
            f"from, not {d}."
        )
    return s[:d, None] * vh[:d], u[:, :d].contiguous()


def rank_of(svd: tuple[Tensor, Tensor, Tensor]) -> int:
    """The rank of the matrix of which these are U, S and V^T."""
    u, s, vh = svd
    resolution = torch.finfo(s.dtype).eps * max(len(u), vh.shape[1]) * s[0]
    return int((s > resolution).sum())


def build_network(
    config: "NetworkConfig", num_seen_classes: int = 100, weights: ImagenetWeights | None = None
) -> DsnNetwork:
    """Build the network that a configuration describes.

    Args:
        config: Backbone, sizes, batch-norm momentum and the place of the ImageNet weights.
        num_seen_classes: Number of classes that training sees.
        weights: ImageNet weights to start from instead of those that ``config`` names.

    Raises:
        MissingWeights: If the ImageNet weights cannot be had.
        ValueError: If the backbone is unknown or the embedding too long for the weights.
    """
    backbone = build_backbone(config.backbone, config.bn_momentum)
    network = DsnNetwork(backbone, config.dim, config.projection_dim, num_seen_classes)
    weights = weights or imagenet_weights(config.backbone, config.weights)
    if weights is not None:
        network.start_from(weights)
    return network


def load_se_weights(
    network: DsnNetwork | CseResNet50, state_dict: Mapping[str, Tensor]
) -> ImagenetWeights:
    """Load SE-ResNet-50 weights with the names of timm's ``legacy_seresnet50``.

    A whole network also gets its embedding and teacher head, see ``DsnNetwork.start_from``.

    Returns:
        The weights by our names, with the ImageNet classifier.

    Raises:
        ValueError: If names are missing or unexpected, which it names, or the backbone is
            not ``CseResNet50``.
    """
    weights = from_se_names(state_dict)
    if isinstance(network, DsnNetwork):
        network.start_from(weights)
    else:
        weights.load_into(network)
    return weights
