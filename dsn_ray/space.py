"""What a sweep varies: the schema of the files in `search_spaces/`."""

import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dsn_ray.config import RECIPES, Config, Section
from dsn_ray.errors import UserError
from dsn_ray.yaml_files import Place, as_number, explain, load_yaml

if TYPE_CHECKING:
    from optuna.trial import Trial

PREPARED_ONCE = (
    "data.px",
    "data.semantics",
    "data.teacher_px",
    "data.teacher_sees",
    "loss.distilled",
    "network.backbone",
    "network.weights",
)
"""Settings that decide how the pictures of a data set are prepared for its trainings."""

Value = Annotated[Any, AfterValidator(as_number)]
"""Of a setting."""

_SAME_FOR_ALL = ("data.validation_classes", "data.validation_seed", "train.epochs")


class Parameter(Section):
    """The distribution of one setting."""

    distribution: Literal["uniform", "loguniform", "int", "logint", "categorical"] = "categorical"
    """How values are drawn."""
    low: float | None = None
    """Least value; not for categorical."""
    high: float | None = None
    """Greatest value, included; not for categorical."""
    choices: list[Value] | None = Field(None, min_length=1)
    """The values of a categorical setting, and of a grid."""
    when: dict[str, Value] = Field(default_factory=dict)
    """Values of earlier parameters with which this one is drawn; else it keeps its usual value."""

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

    def __str__(self) -> str:
        """For people."""
        values = f"one of {', '.join(map(str, self.extremes()))}"
        if self.choices is None:
            values = f"{self.distribution} from {self.low:g} to {self.high:g}"
        return values + (f" where {describe(self.when)}" if self.when else "")

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
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.extremes()
        return bool(low <= value <= high) and (isinstance(low, float) or value % 1 == 0)

    def is_drawn(self, settings: Mapping[str, Any]) -> bool:
        """Whether its conditions hold in a setting that has its earlier parameters."""
        return all(name in settings and settings[name] == v for name, v in self.when.items())

    def draw(self, trial: "Trial", name: str) -> Any:
        """A value that Optuna's sampler proposes."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        low, high = self.extremes()
        log = self.distribution.startswith("log")
        if self.distribution.endswith("int"):
            return trial.suggest_int(name, low, high, log=log)
        return trial.suggest_float(name, low, high, log=log)


class Sampler(Section):
    """Who proposes the next setting."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"] = "tpe"
    """Optuna's tree-structured Parzen estimator, Gaussian process, covariance matrix adaptation
    (ranges only), quasi-random or random points; or every combination of the choices."""
    seed: int = 0
    """The same seed proposes the same settings, one trial at a time."""
    startup_trials: int = Field(5, ge=1)
    """Random trials before TPE, GP or CMA-ES starts to learn from results."""


class Scheduler(Section):
    """Who stops hopeless trials."""

    name: Literal["asha", "median", "none"] = "asha"
    """Asynchronous successive halving over epochs; the median of the other trials; or nobody."""
    grace_epochs: int = Field(1, ge=1)
    """Epochs that every trial may run."""
    reduction_factor: float = Field(2, gt=1)
    """Of the trials at a rung of successive halving, one in so many goes on."""


class Budget(Section):
    """How much the search may cost."""

    trials: int | None = Field(None, ge=1)
    """Number of settings tried; a grid tries all of its own."""
    seeds: int = Field(1, ge=1)
    """Trainings of each setting, whose mean counts."""


class Final(Section):
    """What is trained on all seen classes of each data set, and rated on the unseen ones."""

    settings: Literal["best", "all"] = "best"
    """The best setting of the search, or all of them, though none is chosen by that."""
    seeds: int | None = Field(None, ge=1)
    """Trainings of each on each data set; none for 3, or 1 on the embedded data."""


class Space(Section):
    """A sweep: what varies, who proposes, who stops, and how much.

    It either searches among `parameters`, or compares `variants` in the final job alone.
    """

    parameters: dict[str, Parameter] = Field(default_factory=dict)
    """Distributions by dotted setting name."""
    variants: dict[str, dict[str, Value]] = Field(default_factory=dict)
    """Settings by the name of what is compared; the first is what the others are compared with.
    `recipe` among them starts from a recipe."""
    first: list[dict[str, Value]] = Field(default_factory=list)
    """Settings tried before the sampler proposes any; each names every parameter."""
    sampler: Sampler = Sampler()
    scheduler: Scheduler = Scheduler()
    budget: Budget = Budget()
    final: Final = Final()
    set: dict[str, Value] = Field(default_factory=dict)
    """Settings that this sweep fixes, by dotted name; `--set` overrides them."""

    @property
    def varied(self) -> dict[str, None]:
        """The names of all settings that differ between trials, in order."""
        among = [name for settings in self.variants.values() for name in settings]
        return dict.fromkeys([*self.parameters, *among])

    @property
    def trials(self) -> int:
        """Settings that the search tries."""
        if self.sampler.name == "grid" and self.parameters:
            return min(len(self.grid()), self.budget.trials or len(self.grid()))
        return self.budget.trials or 0

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the choices; a parameter whose conditions fail is left out."""
        points = []
        for values in product(*(p.choices or [] for p in self.parameters.values())):
            point: dict[str, Any] = {}
            for (name, parameter), value in zip(self.parameters.items(), values, strict=True):
                if parameter.is_drawn(point):
                    point[name] = value
            if point not in points:
                points.append(point)
        return points

    def propose(self, trial: "Trial") -> dict[str, Any]:
        """A setting, drawn by Optuna's sampler in the order of the parameters."""
        point: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.is_drawn(point):
                point[name] = parameter.draw(trial, name)
        return point

    def check(self, config: Config, place: Place) -> None:
        """Checks that every value the sweep may propose is one that the configuration allows.

        Raises:
            UserError: If a name is unknown, a value is not allowed, or the parts do not go
                together.
        """
        for complaint, *keys in self._complaints():
            raise UserError(f"{place.at(*keys)}: {': '.join(map(str, keys))}: {complaint}.")
        for idle, why in self._idle_keys():
            if idle in place.lines:
                raise UserError(
                    f"{place.at(*idle)}: {'.'.join(idle)} has no effect, because {why}."
                )
        for name, value in self.set.items():
            config.with_settings({name: value}, f"{place.at('set', name)}: set")
        for name, parameter in self.parameters.items():
            for value in parameter.extremes():
                where = f"{place.at('parameters', name)}: parameters"
                config.with_settings({name: value}, where)
        for number, point in enumerate(self.first):
            config.with_settings(point, f"{place.at('first', number)}: first")
        for label, settings in self.variants.items():
            config.with_settings(
                {name: value for name, value in settings.items() if name != "recipe"},
                f"{place.at('variants', label)}: variants: {label}",
            )

    def _complaints(self) -> Iterator[tuple[str | int, ...]]:
        """What does not go together: a complaint, and the keys of what it is about."""
        if bool(self.parameters) == bool(self.variants):
            yield "either parameters to search or variants to compare are needed", "parameters"
        for name in self.set.keys() & self.varied.keys():
            yield f"{name} varies, and cannot be fixed here too; choose one", "set", name
        yield from self._wrong_parameters()
        yield from self._wrong_points()
        for label, settings in self.variants.items():
            if (recipe := settings.get("recipe", "paper")) not in list(RECIPES):
                yield f"recipe {recipe} is none of {', '.join(RECIPES)}", "variants", label
            if "train.seed" in settings:
                yield "train.seed is counted up by final.seeds", "variants", label
        if self.parameters and not self.trials:
            yield "trials is missing, the number of settings tried", "budget"
        if self.budget.seeds > 1 and self.scheduler.name != "none":
            yield "with several seeds of a setting no scheduler can stop it; use none", "scheduler"

    def _idle_keys(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Keys that change nothing where they are given, and why."""
        sampler, scheduler = self.sampler.name, self.scheduler.name
        if self.variants:
            for key in (
                ("first",),
                ("sampler",),
                ("scheduler",),
                ("budget",),
                ("final", "settings"),
            ):
                yield key, "variants are compared and nothing is searched"
        if sampler not in ("tpe", "gp", "cmaes"):
            yield ("sampler", "startup_trials"), f"{sampler} does not learn from results"
        if sampler == "grid":
            yield ("sampler", "seed"), "a grid has its own order"
        if scheduler == "none":
            yield ("scheduler", "grace_epochs"), "nobody stops a trial"
        if scheduler != "asha":
            yield ("scheduler", "reduction_factor"), "it belongs to asha"

    def _wrong_parameters(self) -> Iterator[tuple[str | int, ...]]:
        earlier: list[str] = []
        sampler = self.sampler.name
        for name, parameter in self.parameters.items():
            if name in PREPARED_ONCE:
                yield (
                    f"{name} cannot vary, because the pictures are prepared with it once for all "
                    "trials; fix it under set, or compare variants",
                    *("parameters", name),
                )
            if name in _SAME_FOR_ALL:
                yield (
                    f"{name} cannot vary, because trials with different ones cannot be compared; "
                    "fix it under set",
                    *("parameters", name),
                )
            if name == "train.seed":
                yield "budget.seeds is the number of seeds", "parameters", name
            for condition, value in parameter.when.items():
                if condition not in earlier:
                    allowed = ", ".join(earlier) or "none"
                    yield (
                        f"{condition} is no earlier parameter; these are {allowed}",
                        *("parameters", name, "when"),
                    )
                elif not self.parameters[condition].contains(value):
                    yield (
                        f"{condition} is never {value}, but one of "
                        f"{self.parameters[condition].extremes()}",
                        *("parameters", name, "when"),
                    )
            if sampler == "grid" and parameter.choices is None:
                yield "a grid takes choices, not a range", "parameters", name
            if sampler == "cmaes" and (parameter.choices is not None or parameter.when):
                yield "CMA-ES takes ranges, without conditions", "parameters", name
            earlier.append(name)

    def _wrong_points(self) -> Iterator[tuple[str | int, ...]]:
        if self.first and self.sampler.name == "grid":
            yield "a grid has its own order", "first"
        for number, point in enumerate(self.first):
            drawn = {name: None for name, p in self.parameters.items() if p.is_drawn(point)}
            if point.keys() != drawn.keys():
                yield (
                    f"each setting must name {', '.join(drawn)}, not "
                    f"{', '.join(point) or 'nothing'}",
                    *("first", number),
                )
            for name, value in point.items():
                if name in drawn and not self.parameters[name].contains(value):
                    yield (
                        f"{name}={value} lies outside its own distribution, "
                        f"{self.parameters[name].extremes()}",
                        *("first", number),
                    )


def load_space(path: Path) -> Space:
    """Reads and checks a space file.

    Raises:
        UserError: If it cannot be read, or anything in it is not allowed.
    """
    tree, place = load_yaml(path)
    try:
        space = Space.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, place, Space)) from None
    space.check(Config(), place)
    return space


def describe(settings: Mapping[str, Any]) -> str:
    """Settings on one line, as in `lambda1=0.1 k=10`."""
    return " ".join(
        f"{name.rpartition('.')[2]}={value:.3g}"
        if isinstance(value, float)
        else f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
    )
