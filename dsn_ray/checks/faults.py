"""What every check of a cluster file shares."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsn_ray.cli import counted
from dsn_ray.fleet import Fleet

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DASHBOARD = re.compile(r"--dashboard-host[= ]\s*['\"]?([^\s'\";]+)")
_PLACEHOLDER = re.compile(r"(?<![A-Za-z])EDIT(?![A-Za-z])")
_SECRET = r"[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY)(?:_ID)?"
_ASSIGNED = re.compile(rf"\b{_SECRET}=['\"]?(?![~/$\s'\"])")
_LOWEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Fault:
    """Something wrong in a cluster file.

    Attributes:
        key: where, as a path of keys.
        wrong: what is wrong.
        allowed: what is allowed, or what to do.
        is_placeholder: whether it is only that somebody has a value to fill in.
    """

    key: str
    wrong: str
    allowed: str
    is_placeholder: bool = False

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.key}: {self.wrong}; {self.allowed}."


def mapping(value: Any) -> dict[Any, Any]:
    """The value where it is a mapping, else an empty one, so that a check goes on."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float:
    """The value where it is a number, else 0."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def placeholder_faults(tree: Any, key: str = "") -> Iterator[Fault]:
    """What nobody has filled in yet, in keys and values of any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from placeholder_faults(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from placeholder_faults(value, f"{key}[{index}]")
    elif isinstance(tree, str) and _PLACEHOLDER.search(tree):
        yield Fault(key, f"{tree!r} is a placeholder", "put your own value there", True)


def secret_faults(tree: Any, key: str = "") -> Iterator[Fault]:
    """Tokens, passwords and keys that are written where they should be referred to.

    That is NAME=value within a text, `name: value`, and `{name: NAME, value: value}`; a value that
    is a path or a variable is none.
    """
    for index, value in enumerate(sequence(tree)):
        yield from secret_faults(value, f"{key}[{index}]")
    pairs = {str(name): value for name, value in mapping(tree).items()}
    if "value" in pairs:
        pairs[str(pairs.get("name"))] = pairs["value"]
    for name, value in pairs.items():
        where = f"{key}.{name}" if key else name
        if isinstance(value, str) and _ASSIGNED.search(f"{name.upper()}={value}"):
            yield _secret(where)
        elif name != str(mapping(tree).get("name")):
            yield from secret_faults(value, where)
    if isinstance(tree, str) and _ASSIGNED.search(tree):
        yield _secret(key)


def _secret(key: str) -> Fault:
    return Fault(key, "a secret is written there", "give it in a file, or by reference")


def key_faults(tree: Any, known: dict[str, Any], key: str) -> Iterator[Fault]:
    """Keys that nobody reads.

    Args:
        tree: a mapping, or a list of mappings.
        known: the keys it may have, each with those below it, or None where that is left open.
        key: where the tree stands.
    """
    for index, value in enumerate(sequence(tree)):
        yield from key_faults(value, known, f"{key}[{index}]")
    for name, value in mapping(tree).items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.7)
            meant = f"did you mean {near[0]}? A" if near else "a"
            yield Fault(
                f"{key}.{name}", "no such key", f"{meant}llowed are {', '.join(sorted(known))}"
            )
        elif known[name] is not None:
            yield from key_faults(value, known[name], f"{key}.{name}")


def image_faults(image: Any, key: str, version: str, gpus: float) -> Iterator[Fault]:
    """Whether a container image goes with the Ray that is installed here.

    Args:
        image: its name.
        key: where that stands.
        version: Ray's, as it is installed here.
        gpus: of the machines that run it.
    """
    name, _, tag = str(image or "").rpartition(":")
    if not name or "/" in tag:
        yield Fault(key, f"the image {image} has no tag", f"its tag must begin with {version}")
        return
    if tag != version and not tag.startswith(f"{version}-"):
        yield Fault(
            key,
            f"the image {image} is not of Ray {version}, which is installed here",
            f"its tag must begin with {version}, because every node and the one who submits need "
            "the same Ray",
        )
    if name.removeprefix("docker.io/") != "rayproject/ray":
        return
    python = re.search(r"-py(\d)(\d+)", tag)
    if python is None or (int(python[1]), int(python[2])) < _LOWEST_PYTHON:
        yield Fault(key, f"the image {image} is not known to have Python 3.11", "add -py311")
    if gpus and not re.search(r"-(gpu|cu\d+)$", tag):
        yield Fault(key, f"the image {image} sees no GPU", "end the tag in -gpu")


def fit_faults(fleet: Fleet, workers: int, cpus: float, gpus: float) -> Iterator[Fault]:
    """Whether a training has room on the largest cluster that a file allows.

    Args:
        fleet: what the cluster may have.
        workers: of one training.
        cpus: that each worker asks for.
        gpus: that each worker asks for.
    """
    asked = _size(cpus, gpus)
    for kind in fleet.kinds:
        if (kind.gpus or not gpus) and not kind.places(cpus, gpus):
            yield Fault(
                kind.name,
                f"{_size(kind.cpus, kind.gpus)} hold no worker with {asked}",
                "take larger machines, or ask for less",
            )
    places = fleet.places(cpus, gpus)
    if places < workers:
        yield Fault(
            "the whole cluster",
            f"it has room for {counted(places, 'worker')} with {asked}, and a training asks for "
            f"{workers}",
            "allow more machines or larger ones, or ask for less",
        )


def _size(cpus: float, gpus: float) -> str:
    return f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
