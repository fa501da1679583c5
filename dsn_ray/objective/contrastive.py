"""L_cmcm: supervised contrast between all views of sketches and photos."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def cross_modal_contrastive_loss(
    vectors: Tensor,
    labels: Tensor,
    temperature: float,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Pulls vectors of one class together, whatever their domain, and all others apart.

    For an anchor i with positives P(i), every other vector of its class:

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t) )

    and the loss is the mean of L_i over the anchors that have a positive, or their sum. This reads
    eq. 2 as supervised contrastive learning (Khosla et al., NeurIPS 2020, eq. 2).

    Args:
        vectors: `[N, D]` projections of the augmented views, of any length: they are normalised
            here.
        labels: `[N]` class of each vector; a sketch and a photo of one class share it.
        temperature: t, above 0; the paper uses 0.07.
        reduction: over the anchors; eq. 2 prints the sum, the released code takes the mean.

    Returns:
        A scalar in float32, or in float64 for such vectors. It is 0, with zero gradient, where
        no vector has another of its class.

    Raises:
        ValueError: If the shapes do not fit, the temperature is not above 0, or there is no such
            reduction.
    """
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ValueError(
            "vectors must be [N, D] and labels [N], not "
            f"{list(vectors.shape)} and {list(labels.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}.")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, not {reduction}.")
    with torch.autocast(vectors.device.type, enabled=False):
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        unit = functional.normalize(wide, dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        positive = (labels[:, None] == labels[None, :]) & ~itself
        positives = positive.sum(dim=1)
        anchors = positives > 0
        if not anchors.any():
            return wide.sum() * 0.0
        similarity = unit @ unit.T / temperature
        log_sum = similarity.masked_fill(itself, -torch.inf)[anchors].logsumexp(dim=1)
        positive_mean = (similarity * positive).sum(dim=1)[anchors] / positives[anchors]
        each = log_sum - positive_mean
        return each.sum() if reduction == "sum" else each.mean()
