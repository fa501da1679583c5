"""CSE-ResNet-50: SE-ResNet-50 whose squeeze-excite units also get the domain."""

from torch import Tensor, nn
from torch.nn import functional

from dsn_ray.model.conditional import Backbone, ConditionalSqueezeExcite, pooled

_REDUCTION = 16
_EXPANSION = 4


class Bottleneck(nn.Module):
    """Residual bottleneck with a conditional squeeze-excite unit on its branch.

    As in the Caffe model that the ImageNet weights come from, the stride is in the first
    convolution.

    Args:
        channels: Number of input channels.
        width: Number of channels inside; the output has four times as many.
        stride: Stride of the block.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se_module = ConditionalSqueezeExcite(out_channels, out_channels // _REDUCTION)
        self.downsample = nn.Sequential()
        if stride != 1 or channels != out_channels:
            self.downsample.append(nn.Conv2d(channels, out_channels, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor, is_photo: Tensor) -> Tensor:
        """Map ``x [N, channels, H, W]`` to ``[N, 4 width, H / stride, W / stride]``."""
        branch = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = functional.relu(self.bn2(self.conv2(branch)), inplace=True)
        branch = self.se_module(self.bn3(self.conv3(branch)), is_photo)
        return functional.relu(branch + self.downsample(x), inplace=True)


class CseResNet50(Backbone):
    """SE-ResNet-50 (Hu et al. 2018) with the domain in every squeeze-excite unit.

    Wang et al., IJCAI 2021, section 3.1, take this backbone from SAKE (Liu et al., ICCV 2019).
    Its parameters have the names of timm's ``legacy_seresnet50``.
    """

    dim = 2048
    mean = (123.675, 116.28, 103.53)
    std = (58.395, 57.12, 57.375)

    def __init__(self) -> None:
        super().__init__()
        self.layer0 = nn.Sequential()
        self.layer0.add_module("conv1", nn.Conv2d(3, 64, 7, 2, padding=3, bias=False))
        self.layer0.add_module("bn1", nn.BatchNorm2d(64))
        self.layer1 = _layer(64, 64, blocks=3, stride=1)
        self.layer2 = _layer(256, 128, blocks=4, stride=2)
        self.layer3 = _layer(512, 256, blocks=6, stride=2)
        self.layer4 = _layer(1024, 512, blocks=3, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor, is_photo: Tensor) -> Tensor:
        """Map pictures to pooled features.

        Args:
            pictures: ``[N, 3, H, W]``, uint8 or float on 0-255.
            is_photo: ``[N]``, true or 1 for a photo, false or 0 for a sketch.

        Returns:
            The trunk's features ``[N, 2048]``.
        """
        x = functional.relu(self.layer0(self.normalise(pictures)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, is_photo)
        return pooled(x)


def _layer(channels: int, width: int, blocks: int, stride: int) -> nn.ModuleList:
    first = Bottleneck(channels, width, stride)
    rest = (Bottleneck(width * _EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.ModuleList([first, *rest])
