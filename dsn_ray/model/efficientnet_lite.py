"""EfficientNet-Lite0 with conditional gates: the small backbone for CPUs."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from dsn_ray.model.conditional import Backbone, ConditionalSqueezeExcite, pooled

_BATCH_NORM_EPS = 1e-3
_GATE_REDUCTION = 4


class Stage(NamedTuple):
    """A row of blocks of one width; the stride is that of its first block."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STEM_CHANNELS = 32
_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution without bias that pads as TensorFlow's "same".

    The output has ceil(size / stride) rows; an odd number of padding rows puts the extra one
    behind, where PyTorch would always pad both sides alike.

    Args:
        channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Side of the kernel.
        stride: Stride.
        groups: Number of groups.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [N, C, H, W]`` to ``[N, C', ceil(H / stride), ceil(W / stride)]``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
        )
        if height % 2 or width % 2:
            x = functional.pad(
                x, (width // 2, width - width // 2, height // 2, height - height // 2)
            )
            height = width = 0
        padding = (height // 2, width // 2)
        return functional.conv2d(x, self.weight, None, stride, padding, groups=self.groups)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project: the block of EfficientNet-Lite.

    Args:
        channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expansion: How many times wider the block is inside; 1 leaves the expansion out.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        width = channels * expansion
        self.expands = expansion > 1
        self.shortcut = stride == 1 and channels == out_channels
        if self.expands:
            self.expand_conv = SameConv2d(channels, width, 1)
            self.bn0 = nn.BatchNorm2d(width, _BATCH_NORM_EPS)
        self.depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self.bn1 = nn.BatchNorm2d(width, _BATCH_NORM_EPS)
        self.project_conv = SameConv2d(width, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels, _BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [N, C, H, W]`` to ``[N, C', ceil(H / stride), ceil(W / stride)]``."""
        branch = x
        if self.expands:
            branch = functional.relu6(self.bn0(self.expand_conv(branch)), inplace=True)
        branch = functional.relu6(self.bn1(self.depthwise_conv(branch)), inplace=True)
        branch = self.bn2(self.project_conv(branch))
        return x + branch if self.shortcut else branch


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 with a conditional squeeze-excite gate after each of its seven stages.

    The published network (Tan and Le 2019, the "lite" variant of TensorFlow's TPU models) has
    no squeeze-excite units. The gates carry the domain as in Wang et al., IJCAI 2021, section
    3.1; their last layer starts at zero and their scale at one, so that at the start they are
    the identity. Parameters have the names of the published PyTorch weights, without the
    underscores that lead those.
    """

    dim = 1280
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, _STEM_CHANNELS, 3, 2)
        self.bn0 = nn.BatchNorm2d(_STEM_CHANNELS, _BATCH_NORM_EPS)
        self.blocks = nn.ModuleList()
        self.gates = nn.ModuleList()
        channels = _STEM_CHANNELS
        for stage in _STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                self.blocks.append(
                    InvertedResidual(
                        channels, stage.channels, stage.kernel, stride, stage.expansion
                    )
                )
                channels = stage.channels
            self.gates.append(_identity_gate(channels))
        self.conv_head = SameConv2d(channels, self.dim, 1)
        self.bn1 = nn.BatchNorm2d(self.dim, _BATCH_NORM_EPS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pictures: Tensor, is_photo: Tensor) -> Tensor:
        """Map pictures to pooled features.

        Args:
            pictures: ``[N, 3, H, W]``, uint8 or float on 0-255, from 32 px.
            is_photo: ``[N]``, true or 1 for a photo, false or 0 for a sketch.

        Returns:
            The trunk's features ``[N, 1280]``.
        """
        x = self.normalise(pictures)
        x = functional.relu6(self.bn0(self.conv_stem(x)), inplace=True)
        blocks = iter(self.blocks)
        for stage, gate in zip(_STAGES, self.gates, strict=True):
            for _ in range(stage.blocks):
                x = next(blocks)(x)
            x = gate(x, is_photo)
        x = functional.relu6(self.bn1(self.conv_head(x)), inplace=True)
        return pooled(x)


def _identity_gate(channels: int) -> ConditionalSqueezeExcite:
    gate = ConditionalSqueezeExcite(channels, channels // _GATE_REDUCTION, ceiling=2.0)
    nn.init.zeros_(gate.fc2.weight)
    nn.init.zeros_(gate.fc2.bias)
    return gate
