"""The network: tensors in, tensors out, no Ray.

A backbone that knows the domain of each picture (``conditional``, ``cse_resnet``,
``efficientnet_lite``, by name in ``backbone``) starts from ImageNet weights (``weights``) and
carries the embedding, the projection and two classifiers (``network``). The same backbone, left
as ImageNet trained it, is the ``teacher``. Where several processes train one network, ``norm``
makes their batch norms one.
"""

from dsn_ray.model.network import DsnNetwork, build_network, load_se_weights
from dsn_ray.model.teacher import Teacher
from dsn_ray.model.weights import MissingWeights, imagenet_weights

__all__ = [
    "DsnNetwork",
    "MissingWeights",
    "Teacher",
    "build_network",
    "imagenet_weights",
    "load_se_weights",
]
