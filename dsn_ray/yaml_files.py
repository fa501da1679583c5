"""YAML files, so read that whatever is wrong in one can be named by file, line and key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dsn_ray.errors import UserError

Keys = tuple[str | int, ...]
"""The way to a value in a YAML file: keys of mappings and numbers in lists."""


@dataclass(frozen=True)
class Place:
    """Where settings come from, for messages.

    Attributes:
        name: a file or an option.
        lines: the line of each key of a file.
    """

    name: str
    lines: Mapping[Keys, int] = field(default_factory=dict)

    def at(self, *keys: str | int) -> str:
        """The name, with the line of a key or of what it stands in, where that is known."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return f"{self.name}, line {self.lines[keys[:end]]}"
        return self.name

    def below(self, key: str) -> "Place":
        """The place of what stands below a key."""
        lines = {keys[1:]: line for keys, line in self.lines.items() if keys[0] == key}
        return Place(self.name, lines)


def load_yaml(path: Path) -> tuple[Any, Place]:
    """Reads a YAML file: what it holds, and where in it each key stands.

    Raises:
        UserError: If it cannot be read, is not YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines: dict[Keys, int] = {}
        for keys, line in _lines(yaml.compose(text, yaml.SafeLoader)):
            if keys in lines:
                name = ".".join(map(str, keys))
                raise UserError(
                    f"{path}, line {line}: {name} stands on line {lines[keys]} already."
                )
            lines[keys] = line
        return yaml.safe_load(text), Place(str(path), lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"{path} cannot be read: {reason}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else path
        raise UserError(f"{where}: this is not valid YAML.") from None


def _lines(node: yaml.Node | None, above: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """The line of each key below a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            keys = (*above, str(key.value))
            yield keys, key.start_mark.line + 1
            yield from _lines(value, keys)
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*above, number), value.start_mark.line + 1
            yield from _lines(value, (*above, number))


def explain(error: ValidationError, place: Place, model: type[BaseModel]) -> str:
    """One sentence for the first thing that is wrong: file, line, key and what is allowed.

    Unknown keys come first: they are often the misspelt names of missing ones.
    """
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    name = ".".join(str(part) for part in first["loc"])
    where = place.at(*first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = model.model_fields
        for part in first["loc"][:-1]:
            inner = allowed[str(part)].annotation if str(part) in allowed else None
            if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                break
            allowed = inner.model_fields
        return f"{where}: {name} is not a known key; allowed are {', '.join(allowed)}."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    message = message[0].lower() + message[1:]
    given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
    return f"{where}: {name or 'the whole file'}: {message}{given}."


def as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
