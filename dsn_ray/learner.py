"""One worker's training state and step: network, optimiser, schedule and memory bank.

Nothing here knows of Ray. Where a torch process group runs, features are gathered across its ranks,
so that the losses and the bank are those of the whole batch on every rank.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsn_ray.config import Config
from dsn_ray.data.batch import Batch, Draws
from dsn_ray.data.device_views import views_on_device
from dsn_ray.model.network import DsnNetwork, NetworkOutput
from dsn_ray.model.teacher import Teacher
from dsn_ray.objective import (
    LossTerms,
    MemoryBank,
    classification_loss,
    cross_modal_contrastive_loss,
    dsn_loss,
    semantic_distillation_loss,
)

LOSSES = (*LossTerms._fields, "total")
"""The values of a step, by place: the four losses and their weighted sum."""


def losses_by_name(values: Tensor) -> dict[str, float]:
    """What the steps of all ranks came to; every rank calls this, and waits for the others.

    Args:
        values: `[5]` in the order of `LOSSES`.

    Returns:
        Their means over the ranks, by name.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values / dist.get_world_size()
        dist.all_reduce(values)
    return dict(zip(LOSSES, values.tolist(), strict=True))


class Learner:
    """What training carries from step to step; it saves and loads itself.

    Attributes:
        network: the network, for evaluation.
        device: where it trains.
        bank: the memory bank, the same on every rank.
        epoch: number of finished epochs.
    """

    def __init__(
        self,
        network: DsnNetwork,
        config: Config,
        mask: Tensor,
        total_steps: int,
        parallel: nn.Module | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Starts at epoch 0.

        Args:
            network: on its device, for as many classes as the mask has rows.
            config: decides losses, bank and optimiser.
            mask: `[C, 1000]` semantic mask of the training classes.
            total_steps: steps of the whole training, for the schedule.
            parallel: the network wrapped for data-parallel training, where several ranks train.
            teacher: judges the first views, where the batches do not bring its logits.
        """
        self.network = network
        self._forward: Callable[..., Any] = parallel or network
        self._config = config
        speed = config.speed
        if speed.compile:
            self._forward = torch.compile(self._forward)
        self.device = next(network.parameters()).device
        self._mask = mask.to(self.device)
        dim = network.backbone.dim if config.memory.features == "trunk" else config.network.dim
        self.bank = MemoryBank(len(mask), config.memory.k, dim, config.memory.update).to(
            self.device
        )
        self._teacher = None if teacher is None else teacher.to(self.device)
        adam = config.optimizer
        self.optimizer = torch.optim.Adam(
            network.parameters(),
            lr=adam.lr,
            weight_decay=adam.weight_decay,
            fused=speed.fused_adam,
        )
        fall, epochs = adam.lr_end / adam.lr, config.train.epochs
        steps_per_epoch = max(1, total_steps // epochs)

        def by_step(step: int) -> float:
            return float(fall ** (step / max(1, total_steps - 1)))

        def by_epoch(step: int) -> float:
            return float(fall ** (step // steps_per_epoch / epochs))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, by_step if adam.decay == "step" else by_epoch
        )
        self.epoch = 0

    def begin_epoch(self) -> None:
        """Forgets what the configuration keeps for one epoch only."""
        if self._config.memory.lifetime == "epoch":
            self.bank.clear()

    def step(self, batch: Batch) -> Tensor:
        """Takes one optimisation step on this rank's part of a batch.

        Returns:
            `[5]` this rank's values in the order of `LOSSES`, on the device, which who reads them
            waits for.
        """
        self.network.train()
        terms = self.losses(batch)
        weights = self._config.loss
        total = dsn_loss(terms, weights.lambda1, weights.lambda2, weights.lambda3)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        return torch.stack([*(term.detach() for term in terms), total.detach()])

    def losses(self, batch: Batch) -> LossTerms:
        """The four losses of a batch, after the bank has seen it.

        Classification and distillation are means over this rank's equal part of the batch; the
        contrastive and the memory loss see the gathered batch. Without augmented views the
        contrastive loss is 0.
        """
        sketches = self._views(batch.sketch_views, batch.sketch_draws, True)
        photos = self._views(batch.photo_views, batch.photo_draws, False)
        sketch_labels, photo_labels = (
            values.to(self.device, non_blocking=True)
            for values in (batch.sketch_labels, batch.photo_labels)
        )
        labels = torch.cat([sketch_labels, photo_labels])
        is_photo = torch.cat([torch.zeros_like(sketch_labels), torch.ones_like(photo_labels)])
        each = sketches.shape[1]
        views = torch.cat([sketches, photos]).transpose(0, 1).flatten(0, 1)
        first, count = len(labels), len(sketch_labels)
        output = self._outputs(views, is_photo.repeat(each), first)

        config = self._config
        taught = slice(count, first) if config.loss.distilled == "photos" else slice(first)
        remembered = output.trunk if config.memory.features == "trunk" else output.embedding
        sketch_features = _gathered(remembered[:count].detach())
        photo_features = _gathered(remembered[count:first])
        all_sketch_labels, all_photo_labels = _gathered(sketch_labels), _gathered(photo_labels)
        self.bank.update(sketch_features, all_sketch_labels, photo_features, all_photo_labels)
        pulled = photo_features if config.loss.memory_gradient else photo_features.detach()
        return LossTerms(
            contrastive=cross_modal_contrastive_loss(
                _gathered(output.projection[first:]),
                _gathered(labels.repeat(each - 1)),
                config.loss.tau,
                config.loss.contrastive,
            ),
            memory=self.bank.loss(pulled, all_photo_labels),
            classification=classification_loss(output.class_logits, labels),
            distillation=semantic_distillation_loss(
                output.teacher_logits[taught],
                self._judgement(batch, views[:first][taught]),
                self._mask[labels[taught]],
                config.loss.mask_weight,
            ),
        )

    def _views(self, views: Tensor, draws: Draws | None, is_sketch: bool) -> Tensor:
        """A domain's views on the device, made there where the batch brings what was drawn."""
        views = views.to(self.device, non_blocking=True)
        if draws is None:
            return views
        return views_on_device(views[:, 0], is_sketch, draws, self._config.augment)

    def _outputs(self, views: Tensor, is_photo: Tensor, first: int) -> NetworkOutput:
        """The network's outputs, in fp32 where it works in bf16."""
        if self._config.speed.precision == "fp32":
            output: NetworkOutput = self._forward(views, is_photo, first)
            return output
        with torch.autocast(self.device.type, torch.bfloat16):
            output = self._forward(views, is_photo, first)
        return NetworkOutput(*(part.float() for part in output))

    def _judgement(self, batch: Batch, pictures: Tensor) -> Tensor:
        """The teacher's logits of the pictures that learn from it, `[N, 1000]`."""
        if self._teacher is not None:
            return self._teacher.logits(pictures)
        if batch.teacher_logits is None:
            raise ValueError("the batch brings no teacher logits, and there is no teacher")
        return batch.teacher_logits.to(self.device, non_blocking=True)

    def save(self, path: Path) -> None:
        """Writes everything that training carries; tensors, numbers and names only."""
        state: dict[str, Any] = {
            name: getattr(self, name).state_dict()
            for name in ("network", "bank", "optimizer", "schedule")
        }
        torch.save({**state, "epoch": self.epoch}, path)

    def load(self, path: Path) -> None:
        """Goes on where `save` was called."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("network", "bank", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch = state["epoch"]


def _gathered(local: Tensor) -> Tensor:
    """The ranks' equal parts one after another; gradients flow back to where each came from.

    Each rank works out the whole loss, so a part's gradient arrives once from every rank; the mean
    that data-parallel training takes over ranks makes that once.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1 or local.numel() == 0:
        return local
    gathered: Tensor = _Gather.apply(local.contiguous())
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension, whose gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
