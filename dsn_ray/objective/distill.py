"""L_ask: what the ImageNet teacher knows about the photos, bent towards the class's own meaning."""

import torch
from torch import Tensor


def semantic_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, mask_rows: Tensor, mask_weight: float
) -> Tensor:
    """Soft cross-entropy against the teacher's label (eq. 7; Liu et al., ICCV 2019).

    The soft label is `softmax(teacher_logits + mask_weight * mask_rows)`.

    Args:
        student_logits: `[N, 1000]` over the ImageNet classes.
        teacher_logits: `[N, 1000]` of the frozen teacher; no gradient reaches them.
        mask_rows: `[N, 1000]` semantic mask row of each sample's class.
        mask_weight: how much the mask counts; SAKE and DSN use 0.3.

    Returns:
        The mean over the samples; 0, with zero gradient, where there are none.

    Raises:
        ValueError: If the three shapes differ.
    """
    if not student_logits.shape == teacher_logits.shape == mask_rows.shape:
        raise ValueError(
            "student_logits, teacher_logits and mask_rows must have one shape, not "
            f"{list(student_logits.shape)}, {list(teacher_logits.shape)} "
            f"and {list(mask_rows.shape)}."
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        wide = student_logits.dtype if student_logits.dtype == torch.float64 else torch.float32
        if len(student_logits) == 0:
            return student_logits.to(wide).sum() * 0.0
        soft_labels = torch.softmax(
            teacher_logits.detach().to(wide) + mask_weight * mask_rows.to(wide), dim=1
        )
        log_probabilities = torch.log_softmax(student_logits.to(wide), dim=1)
        return -(soft_labels * log_probabilities).sum(dim=1).mean()
