"""L_cls: which seen class a picture shows."""

import torch
from torch import Tensor
from torch.nn import functional

from dsn_ray.objective.labels import check_labels


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the linear classifier, for sketches and photos alike (eq. 6).

    Args:
        logits: `[N, C]` over the seen classes.
        labels: `[N]` classes from 0 to C - 1.

    Returns:
        The mean over the pictures, in float32, or in float64 for such logits; 0, with zero
        gradient, where there are none.

    Raises:
        ValueError: If the shapes do not fit or a label on a CPU is outside the classes.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [N, C] and labels [N], not {list(logits.shape)} and "
            f"{list(labels.shape)}."
        )
    check_labels("labels", labels, logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        if len(labels) == 0:
            return wide.sum() * 0.0
        return functional.cross_entropy(wide, labels)
