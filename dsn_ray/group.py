"""The torch process group of a training's workers.

Ray's own configuration of it imports torch wherever it is unpickled: in the trial, in Train's
controller and in its record of runs, which all wait for the workers. Here workers alone import it.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

_LAST_WORDS = 30.0  # seconds for the group to be taken down


@dataclass
class ProcessGroup(BackendConfig):
    """What `torch.distributed` runs on.

    Attributes:
        backend: `gloo` or `nccl`.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        """Who sets it up, in Train's controller."""
        return _Group

    @property
    def train_func_context(self) -> Any:
        """What a worker trains within."""
        return _on_own_device

    def to_dict(self) -> dict[str, Any]:
        """For Train's record of runs."""
        return {"backend": self.backend}


class _Group(Backend):
    """Has the workers join a group, and leave it."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address = worker_group.execute_single(0, _free_address)
        world = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, address, rank, world
                )
                for rank in range(world)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with suppress(ray.exceptions.GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=_LAST_WORDS)


def _free_address() -> dict[str, str]:
    """Of this worker, by torch's names."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as free:
        return {"MASTER_ADDR": host, "MASTER_PORT": str(free.getsockname()[1])}


def _join(backend: str, address: dict[str, str], rank: int, world: int) -> None:
    from torch import distributed

    os.environ.update(address)
    distributed.init_process_group(backend, rank=rank, world_size=world)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _on_own_device() -> Iterator[None]:
    import ray.train.torch
    import torch

    if (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)
    yield
