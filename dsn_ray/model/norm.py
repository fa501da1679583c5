"""Batch norm with the statistics of all ranks, on CPUs too."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks together, on CPUs.

    PyTorch's own ``SyncBatchNorm`` refuses CPU tensors. In training with several ranks this one
    gives what ``nn.BatchNorm2d`` gives for the joined batch: output, gradients and running
    statistics. Otherwise it is ``nn.BatchNorm2d``.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [N, C, H, W]``; N may differ between the ranks."""
        alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        if alone or not self.training:
            return super().forward(x)
        output, mean, variance, count = _JointBatchNorm.apply(
            x.to(self.weight.dtype), self.weight, self.bias, self.eps
        )
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        self.num_batches_tracked += 1
        return output.to(x.dtype)


def synchronise_batch_norm(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Make every batch norm of a module use the statistics of all ranks.

    Args:
        module: The network. On CPUs it is changed in place.
        device: Where it trains: on CUDA PyTorch's own implementation serves.

    Returns:
        The network to use instead of ``module``.
    """
    if torch.device(device).type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            # The subclass adds no state, so parameters, buffers and hooks stay as they are.
            child.__class__ = SyncBatchNorm2d
    return module


def average_running_statistics(module: nn.Module) -> None:
    """Give every rank the mean over ranks of each batch norm's running mean and variance."""
    buffers = [
        buffer
        for child in module.modules()
        if isinstance(child, nn.BatchNorm2d)
        for buffer in (child.running_mean, child.running_var)
        if buffer is not None
    ]
    joined = _all_reduced(torch.cat(buffers)) / distributed.get_world_size()
    for buffer, mean in zip(buffers, joined.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)


class _JointBatchNorm(torch.autograd.Function):
    """Batch norm of all ranks' batches: one all-reduce forward and one backward.

    Returns this rank's output, and the joint mean ``[C]``, biased variance ``[C]`` and count
    ``[1]``. Both directions are PyTorch's kernels for given statistics; backward adds what
    reaches the input through the statistics.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _joint_statistics(x)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        output = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        joint_weight, joint_bias = _all_reduced(torch.cat([grad_weight, grad_bias])).chunk(2)
        inverse_deviation = (variance + ctx.eps).rsqrt()
        per_element = -weight * inverse_deviation / count
        slope = per_element * joint_weight * inverse_deviation
        offset = per_element * joint_bias - mean * slope
        grad_x.addcmul_(x, _per_channel(slope)).add_(_per_channel(offset))
        return grad_x, grad_weight, grad_bias, None


def _joint_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``[C]``, biased variance ``[C]`` and count ``[1]`` of ``x [N, C, H, W]`` on all ranks.

    Sums are formed from each rank's mean and variance, in double precision: the difference of
    two large sums of squares would cost most digits of a small variance.
    """
    mean, variance = (part.double() for part in torch.batch_norm_update_stats(x, None, None, 0.0))
    count = mean.new_tensor([x.numel() // x.shape[1]])
    total = _all_reduced(torch.cat([count * mean, count * (variance + mean.square()), count]))
    sums, squares, count = total.split([len(mean), len(mean), 1])
    mean = sums / count
    variance = squares / count - mean.square()
    return mean.to(x.dtype), variance.to(x.dtype), count.to(x.dtype)


def _all_reduced(values: Tensor) -> Tensor:
    distributed.all_reduce(values)
    return values


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]
