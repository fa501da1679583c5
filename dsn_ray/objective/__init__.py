"""What training pulls on: the four losses of the Domain-Smoothing Network and its memory bank.

Tensors in, tensors out; nothing here knows of Ray or of other processes. Equations are those of
Wang et al., "Domain-Smoothing Network for Zero-Shot Sketch-Based Image Retrieval", IJCAI 2021.
"""

from dsn_ray.objective.classification import classification_loss
from dsn_ray.objective.contrastive import cross_modal_contrastive_loss
from dsn_ray.objective.distill import semantic_distillation_loss
from dsn_ray.objective.memory import MemoryBank
from dsn_ray.objective.total import LossTerms, dsn_loss

__all__ = [
    "LossTerms",
    "MemoryBank",
    "classification_loss",
    "cross_modal_contrastive_loss",
    "dsn_loss",
    "semantic_distillation_loss",
]
