"""L_ml: a bank of the most photo-like sketch features of each class, and the pull towards it."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsn_ray.objective.labels import check_labels


class MemoryBank(nn.Module):
    """Keeps, per class, the k sketch features nearest to the class's photos (section 3.3).

    It has buffers but no parameters: it moves between devices and into checkpoints like any
    module, and no gradient ever reaches what it holds.

    Attributes:
        features: `[C, k, dim]` kept features.
        filled_places: `[C]` number of places in use, the first ones of each class.
    """

    features: Tensor
    filled_places: Tensor

    def __init__(
        self, num_classes: int, k: int, dim: int, rule: Literal["top_k", "release"] = "top_k"
    ) -> None:
        """Starts empty.

        Args:
            num_classes: C, the number of seen classes.
            k: places per class; the paper uses 10.
            dim: length of a feature.
            rule: what `update` does: the paper's top k, or what the released code does.

        Raises:
            ValueError: If one of the three is below 1, or there is no such rule.
        """
        super().__init__()
        for name, value in (("num_classes", num_classes), ("k", k), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if rule not in ("top_k", "release"):
            raise ValueError(f"rule must be top_k or release, not {rule}.")
        self.num_classes, self.k, self.dim, self.rule = num_classes, k, dim, rule
        self.register_buffer("features", torch.zeros(num_classes, k, dim))
        self.register_buffer("filled_places", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def update(
        self,
        sketch_features: Tensor,
        sketch_labels: Tensor,
        image_features: Tensor,
        image_labels: Tensor,
    ) -> None:
        """Keeps the top k of the old bank and the batch's sketches, per class (eqs. 3 and 4).

        Candidates are ranked by their cosine to the mean photo feature of their class in this
        batch. A class without photos in the batch only fills its free places, in the order of
        the batch. Ties go to what is already in the bank, then to what comes first. What stays
        keeps its place; a class's places are in no order.

        By the rule `release` sketches are taken one after another, as they come. The first k of a
        class are kept. A later one that is nearer to the class's mean photo than the class's
        furthest entry, say entry number j, should replace it; the released code writes it over all
        k entries of class j instead, whatever its own class.

        Args:
            sketch_features: `[S, dim]`.
            sketch_labels: `[S]` classes from 0 to C - 1.
            image_features: `[I, dim]`.
            image_labels: `[I]` classes from 0 to C - 1.

        Raises:
            ValueError: If a shape does not fit or a label on a CPU is outside the classes.
        """
        self._check("sketch", sketch_features, sketch_labels)
        self._check("image", image_features, image_labels)
        if len(sketch_labels) == 0:
            return
        rule = self._update_as_released if self.rule == "release" else self._keep_top_k
        with torch.autocast(sketch_features.device.type, enabled=False):  # ranks want all digits
            rule(sketch_features, sketch_labels, image_features, image_labels)

    def _keep_top_k(
        self,
        sketch_features: Tensor,
        sketch_labels: Tensor,
        image_features: Tensor,
        image_labels: Tensor,
    ) -> None:
        dtype, device = self.features.dtype, sketch_labels.device
        new = sketch_features.detach().to(dtype)
        touched, owners = sketch_labels.unique(return_inverse=True)
        # A product, since adding by index is in no fixed order on a GPU.
        members = (image_labels == touched[:, None]).to(dtype)
        photo_sum = members @ image_features.detach().to(dtype)
        # Within a class, the product with the sum ranks as the cosine to the mean does, once
        # divided by one's own length. Without photos it is 0 for everyone.
        held = self.features.index_select(0, touched)
        old_closeness = torch.bmm(photo_sum[:, None], held.mT)[:, 0] / _length(held)
        new_closeness = (new * photo_sum.index_select(0, owners)).sum(dim=1) / _length(new)
        in_use = torch.arange(self.k, device=device) < self.filled_places[touched, None]
        old_closeness[~in_use] = -math.inf

        closeness = torch.cat([old_closeness.flatten(), new_closeness])
        classes = torch.arange(len(touched), device=device).repeat_interleave(self.k)
        classes = torch.cat([classes, owners])
        order = closeness.argsort(descending=True, stable=True)
        order = order[classes[order].argsort(stable=True)]
        sizes = self.k + torch.bincount(owners, minlength=len(touched))
        first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        kept = torch.empty_like(order, dtype=torch.bool)
        kept[order] = torch.arange(len(order), device=device) - first < self.k

        stay = kept[: in_use.numel()].view_as(in_use) & in_use
        enter = kept[in_use.numel() :]
        places = stay.int().argsort(dim=1, stable=True)  # of a class, those to write to come first
        turn = functional.one_hot(owners, len(touched)).mul(enter[:, None]).cumsum(0)
        turn = turn.gather(1, owners[:, None])[:, 0] - 1
        self.features[sketch_labels[enter], places[owners, turn][enter]] = new[enter]
        self.filled_places[touched] += sizes - self.k
        self.filled_places.clamp_(max=self.k)

    def _update_as_released(
        self, sketches: Tensor, sketch_labels: Tensor, photos: Tensor, photo_labels: Tensor
    ) -> None:
        centres = {
            label: photos[photo_labels == label].mean(dim=0).to(self.features.dtype)
            for label in set(photo_labels.tolist())
        }
        for feature, label in zip(
            sketches.to(self.features.dtype), sketch_labels.tolist(), strict=True
        ):
            place = int(self.filled_places[label])
            if place < self.k:
                self.features[label, place] = feature
                self.filled_places[label] += 1
            elif label in centres:
                kept = functional.cosine_similarity(self.features[label], centres[label], dim=1)
                furthest = int(kept.argmin())
                closeness = functional.cosine_similarity(feature, centres[label], dim=0)
                if furthest < self.num_classes and closeness > kept[furthest]:
                    self.features[furthest] = feature

    @property
    def fill(self) -> float:
        """Part of all places that are in use, from 0 to 1."""
        return float(self.filled_places.sum()) / (self.num_classes * self.k)

    def clear(self) -> None:
        """Forgets everything."""
        self.features.zero_()
        self.filled_places.zero_()

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """The mean of each class's kept features.

        Returns:
            `[C, dim]` prototypes, zero for an empty class, and `[C]` whether a class has one.
        """
        places = torch.arange(self.k, device=self.features.device)
        in_use = places < self.filled_places[:, None]
        kept = (self.features * in_use[:, :, None]).sum(dim=1)
        return kept / self.filled_places.clamp(min=1)[:, None], self.filled_places > 0

    def loss(self, image_features: Tensor, image_labels: Tensor) -> Tensor:
        """Pulls each photo towards the prototype of its class (eq. 5).

        Args:
            image_features: `[I, dim]`; the gradient reaches them.
            image_labels: `[I]` classes from 0 to C - 1.

        Returns:
            The mean of `-cos(feature, prototype)` over the photos whose class has a prototype;
            0, with zero gradient, where there are none.

        Raises:
            ValueError: If a shape does not fit or a label on a CPU is outside the classes.
        """
        self._check("image", image_features, image_labels)
        prototypes, filled = self.prototypes()
        chosen = filled[image_labels]
        with torch.autocast(image_features.device.type, enabled=False):
            wide = image_features.to(torch.promote_types(image_features.dtype, prototypes.dtype))
            if not chosen.any():
                return wide.sum() * 0.0
            cosine = functional.cosine_similarity(
                wide[chosen], prototypes[image_labels[chosen]].to(wide.dtype), dim=1
            )
            return -cosine.mean()

    def _check(self, domain: str, features: Tensor, labels: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"{domain}_features must be [N, {self.dim}], not {list(features.shape)}."
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"{domain}_labels must be [{len(features)}], not {list(labels.shape)}."
            )
        check_labels(f"{domain}_labels", labels, self.num_classes)


def _length(features: Tensor) -> Tensor:
    """Euclidean, over the last dimension; never zero."""
    return features.norm(dim=-1).clamp(min=torch.finfo(features.dtype).tiny)
