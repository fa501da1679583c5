"""What a sweep varies: the schema of the files in `search_spaces/`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dsn_ray.config import Config, Section, explain, load_yaml
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


_PREPARED_ONCE = (
    "data.px",
    "data.semantics",
    "data.teacher_px",
    "data.teacher_sees",
    "loss.distilled",
    "network.backbone",
    "network.weights",
)


_SAME_FOR_ALL = ("data.validation_classes", "data.validation_seed", "train.epochs")


class Parameter(Section):
    """The distribution of one setting."""

    distribution: Literal["uniform", "loguniform", "int", "logint", "categorical"]
    """How values are drawn."""
    low: float | None = None
    """Least value; not for categorical."""
    high: float | None = None
    """Greatest value, included; not for categorical."""
    choices: list[Any] | None = Field(None, min_length=1)
    """The values of a categorical setting."""

    @model_validator(mode="after")
    def _check(self) -> "Parameter":
        if self.distribution == "categorical":
            if self.choices is None or self.low is not None or self.high is not None:
                raise ValueError("a categorical distribution takes choices, not low and high")
            return self
        if self.choices is not None or self.low is None or self.high is None:
            raise ValueError(f"a distribution {self.distribution} takes low and high, not choices")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError("low and high must be finite")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low:g} and {self.high:g}")
        if self.distribution.startswith("log") and self.low <= 0:
            raise ValueError(f"low must be above 0 on a log scale, not {self.low:g}")
        if self.distribution.endswith("int") and self.low % 1 + self.high % 1 > 0:
            raise ValueError("low and high must be whole numbers")
        return self

    def extremes(self) -> list[Any]:
        """Values that must be allowed for all others to be."""
        if self.choices is not None:
            return self.choices
        whole = self.distribution.endswith("int")
        return [int(x) if whole else x for x in (self.low, self.high) if x is not None]

    def contains(self, value: Any) -> bool:
        """Whether the distribution may give a value."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.extremes()
        return bool(low <= value <= high)

    def to_optuna(self) -> "BaseDistribution":
        """The distribution as Optuna knows it."""
        from optuna import distributions

        if self.choices is not None:
            return distributions.CategoricalDistribution(self.choices)
        low, high = self.extremes()
        log = self.distribution.startswith("log")
        if self.distribution.endswith("int"):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(low, high, log=log)


class Sampler(Section):
    """Who proposes the next setting."""

    name: Literal["tpe", "random"] = "tpe"
    """Optuna's tree-structured Parzen estimator, or random search."""
    seed: int = 0
    """The same seed proposes the same settings, one trial at a time."""
    startup_trials: int = Field(5, ge=1)
    """Random trials before TPE starts to learn from results."""


class Scheduler(Section):
    """Who stops hopeless trials."""

    name: Literal["asha", "none"] = "asha"
    """Asynchronous successive halving over epochs, or nobody."""
    grace_epochs: int = Field(1, ge=1)
    """Epochs that every trial may run."""
    reduction_factor: float = Field(2, gt=1)
    """Of the trials at a rung, one in so many goes on."""


class Budget(Section):
    """How much a sweep may cost."""

    trials: int = Field(ge=1)
    """Number of settings tried."""


class Space(Section):
    """A sweep: what varies, who proposes, who stops, and how much."""

    parameters: dict[str, Parameter] = Field(min_length=1)
    """Distributions by dotted setting name."""
    first: list[dict[str, Any]] = Field(default_factory=list)
    """Settings tried before the sampler proposes any; each names every parameter."""
    sampler: Sampler = Sampler()
    scheduler: Scheduler = Scheduler()
    budget: Budget
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings that this sweep fixes, by dotted name; `--set` overrides them."""

    def check(self, config: Config, where: str) -> None:
        """Checks that every value the sweep may propose is one that the configuration allows.

        Raises:
            UserError: If a name is unknown, a value is not allowed, or a first setting is not one
                value for each parameter.
        """
        config.with_settings(self.set, f"{where}: set")
        for name in self.set.keys() & self.parameters.keys():
            raise UserError(f"{where}: {name} stands under both set and parameters; choose one.")
        for name, parameter in self.parameters.items():
            if name in _PREPARED_ONCE:
                raise UserError(
                    f"{where}: parameters: {name} cannot vary, because the pictures are prepared "
                    "with it once for all trials; fix it under set."
                )
            for value in parameter.extremes():
                config.with_settings({name: value}, f"{where}: parameters")
            if name in _SAME_FOR_ALL:
                raise UserError(
                    f"{where}: parameters: {name} cannot vary, because trials with different ones "
                    "cannot be compared; fix it under set."
                )
        for point in self.first:
            if point.keys() != self.parameters.keys():
                raise UserError(
                    f"{where}: first: each setting must name {', '.join(self.parameters)}, not "
                    f"{', '.join(point) or 'nothing'}."
                )
            config.with_settings(point, f"{where}: first")
            for name, value in point.items():
                if not self.parameters[name].contains(value):
                    raise UserError(
                        f"{where}: first: {name}={value} lies outside its own distribution, "
                        f"{self.parameters[name].extremes()}."
                    )


def load_space(path: Path) -> Space:
    """Reads and checks a space file.

    Raises:
        UserError: If it cannot be read, or anything in it is not allowed.
    """
    tree = load_yaml(path)
    try:
        space = Space.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, str(path), Space)) from None
    space.check(Config(), str(path))
    return space


def describe(settings: Mapping[str, Any]) -> str:
    """Settings on one line, as in `lambda1=0.1 k=10`."""
    return " ".join(
        f"{name.rpartition('.')[2]}={value:.3g}"
        if isinstance(value, float)
        else f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
    )
