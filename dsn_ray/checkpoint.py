"""Trained networks on disk: `state.pt`, and `about.json` that says what they were trained on."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsn_ray.config import Config
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import torch

    from dsn_ray.model import DsnNetwork


@dataclass(frozen=True)
class Checkpoint:
    """A trained network on disk.

    Attributes:
        directory: holds `state.pt` and `about.json`.
        data: the data set it was trained on.
        root: where that was read from; None for the embedded ones.
        config: the configuration of the training.
        classes: the classes it was trained on.
    """

    directory: Path
    data: str
    root: str | None
    config: Config
    classes: tuple[str, ...]

    def network_state(self) -> "dict[str, torch.Tensor]":
        """The network's parameters and buffers.

        Raises:
            UserError: If `state.pt` is broken, or holds anything but numbers.
        """
        import pickle

        import torch

        try:
            state = torch.load(self.directory / "state.pt", map_location="cpu", weights_only=True)
            network: dict[str, torch.Tensor] = state["network"]
            return network
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
            raise self._broken() from None

    def _broken(self) -> UserError:
        return UserError(
            f"--checkpoint {self.directory}: its state.pt does not hold the network that "
            "about.json describes."
        )

    def digest(self) -> str:
        """SHA-256 of its parameters, in hexadecimal."""
        with (self.directory / "state.pt").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def network(self) -> "DsnNetwork":
        """The network, ready to embed.

        Raises:
            UserError: If `state.pt` does not hold the network that `about.json` describes.
        """
        try:
            return network_of(self.config, len(self.classes), self.network_state())
        except (RuntimeError, AttributeError, TypeError):
            raise self._broken() from None


def network_of(config: Config, num_classes: int, state: "dict[str, torch.Tensor]") -> "DsnNetwork":
    """A trained network from its configuration and its parameters, ready to embed."""
    from dsn_ray.model import build_network

    without = config.network.model_copy(update={"weights": "none"})
    network = build_network(without, num_classes)
    network.load_state_dict(state)
    return network.eval()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Reads what a checkpoint folder says of itself.

    Args:
        directory: the checkpoint, or the folder of a training that kept only one.

    Raises:
        UserError: If it is not a checkpoint of this project, or there are several.
    """
    kept = sorted(file.parent for file in directory.glob("checkpoint_*/state.pt"))
    if len(kept) > 1:
        raise UserError(
            f"--checkpoint {directory} holds several; choose one of "
            f"{', '.join(folder.name for folder in kept)}."
        )
    directory = kept[0] if kept else directory
    try:
        about = json.loads((directory / "about.json").read_text(encoding="utf-8"))
        if not (directory / "state.pt").is_file():
            raise FileNotFoundError
        return Checkpoint(
            directory=directory,
            data=about["data"],
            root=about["root"],
            config=Config.model_validate(about["config"]),
            classes=tuple(about["classes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--checkpoint {directory}: this is not a checkpoint folder, which holds state.pt and "
            "about.json."
        ) from None
