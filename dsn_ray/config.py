"""What a run is: one validated model per concern, YAML and `--set` in, YAML out.

A setting is named by its section and key, as in `loss.lambda1`. The defaults are the paper's;
`RECIPES` holds what the code released with the paper does instead, and `DEMONSTRATION` what the
embedded demonstration data wants.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dsn_ray.errors import UserError
from dsn_ray.yaml_files import Place, as_number, explain, load_yaml

OBJECTIVE = "mAP"
"""What a sweep maximises: mAP@all, real-valued, `standard` protocol, on validation classes."""
SEEN = "seen_binary_mAP"
"""What `train.keep=best_seen` chooses by: mAP@all, binary, `published`, on the training classes.

The queries are the held-out sketches where the lists hold some out, the gallery training photos.
"""


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NetworkConfig(Section):
    """The network (section 3 of the paper)."""

    backbone: Literal["cse_resnet50", "efficientnet_lite0"] = "cse_resnet50"
    """The trunk: the paper's, or a small one with weights from the Python registry."""
    dim: int = Field(64, ge=1, le=1000)
    """d, length of the embedding; the paper reports 64 and 512."""
    projection_dim: int | None = Field(128, ge=1)
    """Length of the contrastive projection; none puts the contrast on the embedding itself."""
    bn_momentum: float | None = Field(None, gt=0, le=1)
    """Batch-norm momentum; none keeps the backbone's own."""
    bn_statistics: Literal["joint", "worker"] = "joint"
    """Batch norm over all workers' parts of a batch, or over each worker's own, which waits for
    nobody but makes the numbers depend on the number of workers."""
    weights: str | None = None
    """File with ImageNet weights; none takes the backbone's usual place, "none" random ones."""


class LossConfig(Section):
    """The objective (eqs. 2 to 9)."""

    lambda1: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Weight of the contrastive loss L_cmcm."""
    lambda2: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the memory loss L_ml."""
    lambda3: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of classification and distillation, L_cls + L_ask."""
    tau: float = Field(0.07, ge=1e-3, allow_inf_nan=False)
    """Temperature of the contrastive loss."""
    contrastive: Literal["mean", "sum"] = "mean"
    """Over the anchors; eq. 2 prints the sum, lambda1 = 0.1 goes with the mean."""
    memory_gradient: bool = True
    """Whether the memory loss pulls the photos; without a gradient it is a constant."""
    distilled: Literal["photos", "all"] = "photos"
    """Which pictures learn from the teacher; eq. 7 prints all."""
    mask_weight: float = Field(0.3, ge=0, allow_inf_nan=False)
    """How much the semantic mask bends the teacher's label."""


class MemoryConfig(Section):
    """The bank of sketch features (eqs. 3 to 5)."""

    k: int = Field(10, ge=1)
    """Sketch features kept per class."""
    features: Literal["trunk", "embedding"] = "trunk"
    """Which features the bank holds and L_ml compares."""
    update: Literal["top_k", "release"] = "top_k"
    """The k most photo-like of the old ones and the batch's; or as the released code, faults and
    all."""
    lifetime: Literal["training", "epoch"] = "training"
    """How long the bank is kept."""


class OptimizerConfig(Section):
    """Adam with a learning rate that falls exponentially."""

    lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Learning rate of the first step."""
    lr_end: float = Field(1e-7, gt=0, allow_inf_nan=False)
    """Learning rate of the last step, or of the step after it where it falls by epochs."""
    decay: Literal["step", "epoch"] = "step"
    """How often the learning rate falls."""
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    """Coupled (L2) weight decay."""


class DataConfig(Section):
    """What a batch is made of."""

    px: int = Field(224, ge=32, le=512)
    """Side of a picture in pixels."""
    sketches_per_batch: int = Field(32, ge=1)
    """Sketches in a batch, over all workers."""
    photos_per_batch: int = Field(64, ge=1)
    """Photos in a batch, over all workers."""
    epoch: Literal["shorter", "longer"] = "shorter"
    """An epoch ends with the shorter domain, or with the longer while the shorter repeats."""
    per_class: int | None = Field(None, ge=1)
    """Train on at most so many sketches and photos of each class; none takes all."""
    teacher_sees: Literal["stored", "first_view"] = "stored"
    """The teacher judges the pictures as they are stored, once for all trainings; or the first
    view of each step, after the shared move and at the network's own size."""
    teacher_px: int = Field(224, ge=32, le=512)
    """Side at which the teacher sees the stored pictures."""
    semantics: str | None = None
    """File with the semantic mask, of `python -m dsn_ray.mask`; none takes the data set's own."""
    validation_classes: int = Field(10, ge=1)
    """Seen classes held out to choose settings by; training never sees them during a sweep."""
    validation_seed: int = 0
    """Which classes those are."""


class AugmentConfig(Section):
    """Random views of a picture (eq. 1): one move shared by all views, then changes of each.

    Where the paper is silent the numbers are those of the code released with it.
    """

    shared: float = Field(0.7, ge=0, le=1)
    """Probability that a picture is moved at all, once for its three views."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a mirror image within the shared move."""
    scale: float = Field(0.5, ge=0, le=1)
    """Probability of a change of size within the shared move."""
    scale_range: tuple[float, float] = (0.7, 1.3)
    """Least and greatest factor, drawn for each axis on its own."""
    rotate: float = Field(0.5, ge=0, le=1)
    """Probability of a rotation within the shared move."""
    degrees: float = Field(30.0, ge=0, le=180)
    """Greatest rotation either way."""
    shift: float = Field(0.5, ge=0, le=1)
    """Probability of a shift within the shared move."""
    shift_px: float = Field(10.0, ge=0, allow_inf_nan=False)
    """Greatest shift along each axis, in pixels of a picture 224 pixels wide."""
    centre: Literal["picture", "corner"] = "picture"
    """The fixed point of scale and rotation; the corner is a fault of the released code."""
    fill: Literal["natural", "black"] = "natural"
    """What lies beyond the picture: white paper around a sketch and the nearest pixel of the edge
    around a photo; black is a fault of the released code."""
    view_flip: float = Field(0.5, ge=0, le=1)
    """Probability of a mirror image, for each augmented view."""
    jitter: float = Field(0.8, ge=0, le=1)
    """Probability of a change of colours, for each augmented view."""
    brightness: float = Field(0.4, ge=0, le=1)
    """Factors are drawn from 1 - brightness to 1 + brightness."""
    contrast: float = Field(0.4, ge=0, le=1)
    """The same for contrast."""
    saturation: float = Field(0.4, ge=0, le=1)
    """The same for saturation."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Shifts are drawn from -hue to hue, in turns of the colour circle."""
    grey: float = Field(0.2, ge=0, le=1)
    """Probability of losing all colour, for each augmented view."""

    @field_validator("scale_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] < math.inf:
            raise ValueError("two numbers above 0 are needed, the least first")
        return value


class TrainConfig(Section):
    """How long and from which seed."""

    epochs: int = Field(10, ge=1)
    """Passes over the seen classes."""
    seed: int = Field(0, ge=0)
    """Decides the network's new weights, the order of pictures and their augmentation."""
    keep: Literal["last", "best_seen"] = "last"
    """Which epoch counts: the last, or the best by binary mAP of held-out sketches of the seen
    classes, of training sketches where none are held out."""


class SpeedConfig(Section):
    """How a step is computed; the numbers change no more than by rounding."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's forward and backward passes; losses, bank and weights stay in fp32."""
    fused_adam: bool = False
    """One kernel for the optimiser's step instead of several per weight."""
    compile: bool = False
    """The network through torch.compile, which takes a minute or more before the first step."""
    augment_on_device: bool = False
    """The views of a batch are made where it trains; a worker's CPUs decode only."""


class Config(Section):
    """Everything that decides the numbers of a training run."""

    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    memory: MemoryConfig = MemoryConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    speed: SpeedConfig = SpeedConfig()

    def with_settings(self, settings: Mapping[str, Any], where: str = "--set") -> "Config":
        """A copy with some settings replaced.

        Args:
            settings: values by dotted name, as in `{"loss.lambda1": 0.2}`.
            where: where they come from, for the message.

        Raises:
            UserError: If a name is unknown or a value is not allowed.
        """
        tree = self.model_dump()
        for name, value in settings.items():
            section, _, key = name.partition(".")
            if section not in tree or key not in tree[section]:
                raise UserError(f"{where}: {name} is not a setting; {_names_near(name)}.")
            tree[section][key] = value
        return parse_config(tree, Place(where))

    def unlike(self, other: "Config") -> dict[str, Any]:
        """The settings of this one that the other has otherwise, by dotted name."""
        mine, others = self.model_dump(mode="json"), other.model_dump(mode="json")
        return {
            f"{section}.{key}": value
            for section, keys in mine.items()
            for key, value in keys.items()
            if value != others[section][key]
        }


RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "network.projection_dim": None,
        "network.bn_statistics": "worker",
        "loss.memory_gradient": False,
        "memory.update": "release",
        "memory.lifetime": "epoch",
        "optimizer.decay": "epoch",
        "data.teacher_sees": "first_view",
        "augment.centre": "corner",
        "augment.fill": "black",
        "train.epochs": 20,
        "train.keep": "best_seen",
    },
}
"""What the paper says, and what its released code does."""

RECIPES_ON: dict[tuple[str, str], dict[str, Any]] = {
    ("release", "tuberlin"): {
        "data.sketches_per_batch": 9,
        "data.photos_per_batch": 81,
        "train.epochs": 16,
        "train.keep": "last",
    },
}
"""What a recipe does otherwise on one data set, by recipe and data set."""


def recipe_settings(recipe: str, data: str) -> dict[str, Any]:
    """What a recipe sets on a data set.

    Raises:
        UserError: If there is no such recipe.
    """
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: it must be {' or '.join(RECIPES)}.")
    return {**RECIPES[recipe], **RECIPES_ON.get((recipe, data), {})}


DEMONSTRATION: dict[str, Any] = {
    "network.backbone": "efficientnet_lite0",
    "network.bn_statistics": "worker",
    "data.px": 64,
    "data.sketches_per_batch": 12,
    "data.photos_per_batch": 24,
    "data.epoch": "longer",
    "data.per_class": 32,
    "data.validation_classes": 3,
    "optimizer.lr": 3e-3,
    "optimizer.lr_end": 1e-5,
    "train.epochs": 3,
}
"""Settings of the embedded demonstration: small pictures and batches, for two cores."""


def layered(data: str, embedded: bool, recipe: str | None, *layers: Mapping[str, Any]) -> Config:
    """The configuration on a data set.

    Args:
        data: the data set; a recipe may have settings for it.
        embedded: whether the demonstration is run, whose settings go over the recipe's.
        recipe: where it starts from; None for the paper.
        layers: settings by dotted name, each going over those before it.

    Raises:
        UserError: If there is no such recipe, or a name or a value is not allowed.
    """
    demonstration = DEMONSTRATION if embedded else {}
    config = Config()
    for layer in (recipe_settings(recipe or "paper", data), demonstration, *layers):
        config = config.with_settings(layer)
    return config


def parse_config(tree: object, where: Place) -> Config:
    """Builds a configuration from nested mappings, as YAML gives them.

    Args:
        tree: sections by name; what is left out takes its default.
        where: the file, for the message.

    Raises:
        UserError: If a key is unknown or a value is not allowed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, where, Config)) from None


def load_settings(path: Path) -> dict[str, Any]:
    """The settings of a configuration file, which has any of the sections, by dotted name.

    Raises:
        UserError: If it cannot be read, a key is unknown or a value is not allowed.
    """
    tree, place = load_yaml(path)
    values = parse_config({} if tree is None else tree, place).model_dump()
    return {
        f"{section}.{key}": values[section][key]
        for section, keys in (tree or {}).items()
        for key in keys
    }


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Reads `--set` arguments: `loss.lambda1=0.2` gives `{"loss.lambda1": 0.2}`.

    Raises:
        UserError: If one is not of the form `section.key=value`.
    """
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as section.key=value, as in loss.lambda1=0.2.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        settings[name.strip()] = as_number(value)
    return settings


def setting_names() -> list[str]:
    """Every setting by its dotted name."""
    return [
        f"{section}.{key}"
        for section, settings in Config().model_dump().items()
        for key in settings
    ]


def _names_near(name: str) -> str:
    section = name.partition(".")[0]
    if section in Config.model_fields:
        keys = [n for n in setting_names() if n.startswith(f"{section}.")]
        return f"section {section} has {', '.join(keys)}"
    return f"the sections are {', '.join(Config.model_fields)}, as in loss.lambda1"
