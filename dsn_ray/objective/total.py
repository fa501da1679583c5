"""The weighted sum that training minimises."""

from typing import NamedTuple

from torch import Tensor


class LossTerms(NamedTuple):
    """The four losses of a batch, each a scalar."""

    contrastive: Tensor
    memory: Tensor
    classification: Tensor
    distillation: Tensor


def dsn_loss(terms: LossTerms, lambda1: float, lambda2: float, lambda3: float) -> Tensor:
    """L = lambda1 L_cmcm + lambda2 L_ml + lambda3 (L_cls + L_ask), eq. 9.

    Args:
        terms: the four losses.
        lambda1: weight of the contrastive loss; the paper uses 0.1.
        lambda2: weight of the memory loss; the paper uses 1.
        lambda3: weight of classification and distillation; the paper uses 1.

    Returns:
        A scalar.
    """
    supervised = terms.classification + terms.distillation
    return lambda1 * terms.contrastive + lambda2 * terms.memory + lambda3 * supervised
