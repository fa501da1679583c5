"""What both backbones share: the picture's normalisation and the domain-conditional gate."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Rgb = tuple[float, float, float]


class Backbone(nn.Module):
    """A network from pictures and their domains to one pooled feature per picture.

    A subclass names its ``dim``, the ``mean`` and ``std`` of its input on the 0-255 scale, and
    defines ``forward(pictures [N, 3, H, W], is_photo [N]) -> [N, dim]``.
    """

    dim: ClassVar[int]
    mean: ClassVar[Rgb]
    std: ClassVar[Rgb]
    _mean: Tensor
    _std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_mean", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(self.std)[:, None, None], persistent=False)

    def normalise(self, pictures: Tensor) -> Tensor:
        """Normalise pictures ``[N, 3, H, W]``, uint8 or float on 0-255, as the weights expect.

        The result is in channels-last memory order, which the layers behind it keep: on CPUs this
        trains the small backbone 1.2 to 1.8 times as fast.
        """
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return (pictures - self._mean) / self._std


def pooled(x: Tensor) -> Tensor:
    """The mean over all places of ``x [N, C, H, W]``, ``[N, C]``.

    It sums first: the gradient of ``mean`` writes out a whole map of equal values, in another
    memory order than channels last, which the unit's gradient is then added to. So would that of a
    sum in fp32, which autocast makes of it on a GPU where no type is given.
    """
    return x.sum((2, 3), dtype=x.dtype) / (x.shape[2] * x.shape[3])


class ConditionalSqueezeExcite(nn.Module):
    """Squeeze-excite unit that also gets the domain: Wang et al., IJCAI 2021, section 3.1.

    The channels are scaled by ``s = ceiling * sigmoid(W2 [relu(W1 pool(x)); y])``, where y is 1
    for a photo and 0 for a sketch. The unit without y is that of Hu et al. 2018. The column of
    W2 that y meets starts at zero, so at the start the domain changes nothing.

    Args:
        channels: Number of channels of x.
        hidden: Number of outputs of W1.
        ceiling: The largest scale; 2 puts the middle of the sigmoid at the identity.
    """

    def __init__(self, channels: int, hidden: int, ceiling: float = 1.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden + 1, channels)
        self.ceiling = ceiling
        nn.init.zeros_(self.fc2.weight[:, -1].detach())

    def forward(self, x: Tensor, is_photo: Tensor) -> Tensor:
        """Scale the channels of ``x [N, C, H, W]``, given ``is_photo [N]``, boolean or 0 and 1."""
        hidden = functional.relu(self.fc1(pooled(x)))
        scale = self.fc2(torch.cat([hidden, is_photo.to(hidden.dtype)[:, None]], 1)).sigmoid()
        return x * (self.ceiling * scale)[:, :, None, None]
