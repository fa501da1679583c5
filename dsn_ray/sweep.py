"""A sweep as it was asked for, and all trainings that follow from it."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dsn_ray.cli import counted
from dsn_ray.config import Config, layered
from dsn_ray.errors import UserError
from dsn_ray.space import Space, describe

Data = tuple[str, str | None]
Part = Literal["all", "search", "final"]
"""What of a sweep is run: both its search and its final job, or one of them."""


EMBEDDED: tuple[Data, ...] = (("openmoji-nature", None), ("openmoji-things", None))


EMBEDDED_TRIALS = 8


SEEDS = 3


def part_of(search_only: bool, final_only: bool) -> Part:
    """What these options ask for.

    Raises:
        UserError: If they exclude each other.
    """
    if search_only and final_only:
        raise UserError("search_only and final_only exclude each other.")
    return "search" if search_only else "final" if final_only else "all"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was asked for.

    Attributes:
        space: what varies.
        config: what does not, on the first data set.
        others: settings by dotted name that another data set has otherwise, as recipes may say.
        variants: of each variant and data set, the settings that differ from `config`.
        data: data sets; the first is tuned on, all are in the final job.
        trials: settings that the search tries; none where variants are compared.
        seeds: trainings of a setting on each data set in the final job.
    """

    space: Space
    config: Config
    others: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, dict[str, Any]]]
    data: tuple[Data, ...]
    trials: int
    seeds: int

    @property
    def tries(self) -> str:
        """How many settings the search tries, for people."""
        whole = len(self.space.grid()) if self.space.sampler.name == "grid" else 0
        if self.trials < whole:
            return f"the first {self.trials} of the grid's {whole} points"
        return counted(self.trials, "point" if whole else "setting")

    def config_on(self, data: str, variant: str | None = None) -> Config:
        """The configuration on a data set."""
        differs = self.variants[variant] if variant else self.others
        return self.config.with_settings(differs.get(data, {}))

    def finalists(
        self, tried: Iterable[dict[str, Any]]
    ) -> list[tuple[str, dict[str, Any], dict[str, Config]]]:
        """What the final job trains: of each its name, its settings, its configurations.

        Args:
            tried: the best setting of the search, or all of them; none where variants are compared.
        """
        names = [name for name, _ in self.data]
        if self.space.variants:
            return [
                (label, settings, {name: self.config_on(name, label) for name in names})
                for label, settings in self.space.variants.items()
            ]
        several = self.space.final.settings == "all"
        return [
            (
                describe(settings) if several else "",
                settings,
                {name: self.config_on(name).with_settings(settings) for name in names},
            )
            for settings in tried
        ]

    def configs(self) -> Iterator[tuple[str, Config]]:
        """The data set and the configuration of all kinds of trainings, the search's first.

        Of what a search draws there are the least and greatest values, each on its own.
        """
        for name, _ in self.data:
            if not self.space.variants:
                yield name, self.config_on(name)
            for label in self.space.variants:
                yield name, self.config_on(name, label)
        for setting, parameter in self.space.parameters.items():
            for value in parameter.extremes():
                yield self.data[0][0], self.config.with_settings({setting: value})

    def changed(
        self, settings: Mapping[str, Any], trials: int | None, seeds: int | None
    ) -> "Sweep":
        """The same with some settings on every data set and for every variant, or other numbers.

        Raises:
            UserError: If that cannot be.
        """
        refuse_varied(self.space, settings)

        def rest(differs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            return {
                data: {name: value for name, value in of.items() if name not in settings}
                for data, of in differs.items()
            }

        return replace(
            self,
            config=self.config.with_settings(settings),
            others=rest(self.others),
            variants={label: rest(differs) for label, differs in self.variants.items()},
            trials=self.trials if trials is None else _trials(self.space, self.data, trials),
            seeds=seeds or self.seeds,
        )

    def tree(self) -> dict[str, Any]:
        """What `config.yaml` holds."""
        return {
            "data": dict(self.data),
            "trials": self.trials,
            "seeds": self.seeds,
            "config": self.config.model_dump(mode="json"),
            "others": self.others,
            "variants": self.variants,
            "space": self.space.model_dump(mode="json"),
        }

    @classmethod
    def parse(cls, tree: Any) -> "Sweep":
        """From what `tree` gave."""
        return cls(
            space=Space.model_validate(tree["space"]),
            config=Config.model_validate(tree["config"]),
            others=tree["others"],
            variants=tree["variants"],
            data=tuple(tree["data"].items()),
            trials=tree["trials"],
            seeds=tree["seeds"],
        )


def make_sweep(
    space: Space,
    data: Sequence[Data],
    *,
    recipe: str | None = None,
    config: Mapping[str, Any] | None = None,
    over: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seeds: int | None = None,
) -> Sweep:
    """A sweep, from what a command or a program asks for.

    Settings come from the recipe, on the embedded data from the demonstration, from `config`, the
    space, its variant, and `over`; the later go over the earlier.

    Args:
        space: what varies.
        data: name and folder of each data set.
        recipe: where the settings start from; None for the paper.
        config: settings by dotted name.
        over: settings by dotted name.
        trials: settings to try; None for the whole of a grid and for the space's budget, of which
            the embedded data takes 8 at most.
        seeds: in the final job; None for what the space says, else 3, on the embedded data 1.

    Raises:
        UserError: If trials are asked for where nothing is searched, or a setting is not allowed.
    """
    names = [name for name, _ in data]
    embedded = is_embedded(data)

    def config_on(name: str, of: str | None = None, own: Mapping[str, Any] | None = None) -> Config:
        layers = config or {}, space.set, own or {}, over or {}
        return layered(name, embedded, of or recipe, *layers)

    first = config_on(names[0])
    others = {name: config_on(name).unlike(first) for name in names[1:]}
    variants = {}
    for label, settings in space.variants.items():
        own = {name: value for name, value in settings.items() if name != "recipe"}
        on = {name: config_on(name, settings.get("recipe"), own).unlike(first) for name in names}
        variants[label] = on
    return Sweep(
        space=space,
        config=first,
        others={name: differs for name, differs in others.items() if differs},
        variants=variants,
        data=tuple(data),
        trials=_trials(space, data, trials),
        seeds=seeds or space.final.seeds or (1 if embedded else SEEDS),
    )


def refuse_varied(space: Space, settings: Iterable[str]) -> None:
    """Refuses to fix what varies.

    Raises:
        UserError: If one of the settings does.
    """
    for name in settings:
        if name in space.varied:
            raise UserError(f"--set {name}: the space varies it; take it out of there first.")


def _trials(space: Space, data: Sequence[Data], asked: int | None) -> int:
    is_grid = space.sampler.name == "grid"
    if asked is None:
        most = EMBEDDED_TRIALS if is_embedded(data) and not is_grid else sys.maxsize
        return min(space.trials, most)
    if not space.parameters:
        raise UserError(f"--trials {asked}: this space compares variants, and searches nothing.")
    return min(asked, space.trials) if is_grid else asked


def is_embedded(data: Sequence[Data]) -> bool:
    """Whether a run is the demonstration."""
    return all(root is None for _, root in data)
