"""A page to draw on: what one draws is searched for among the photos of a folder.

Examples:
    python -m dsn_ray.serve --checkpoint C --gallery photos
    python -m dsn_ray.serve --checkpoint C --gallery photos --replicas 2 --port 8080
"""

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dsn_ray import cli
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from fastapi import FastAPI
    from numpy.typing import NDArray
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from dsn_ray.checkpoint import Checkpoint
    from dsn_ray.gallery import Gallery
    from dsn_ray.model import DsnNetwork

_BATCH, _BATCH_WAIT = 16, 0.002  # sketches embedded at a time, and seconds to wait for more
_ONGOING = 1000  # requests that reach the page at a time; it refuses searches itself, politely


def application(
    checkpoint: "Checkpoint",
    network: "DsnNetwork",
    gallery: "Gallery",
    replicas: int,
    threads: int,
    hosts: Collection[str],
) -> "Application":
    """What Ray Serve runs: networks that embed, and before them the page with its search.

    The page is one process with one list of photos, so that a photo's number means the same in
    every request, also after a crash and where files have come and gone since. Likewise a network
    that starts again is the one that the photos met, whatever lies in the checkpoint's folder then.

    Args:
        checkpoint: what the network is of.
        network: embeds.
        gallery: the photos.
        replicas: how many networks.
        threads: torch's of each.
        hosts: as of `make_app`.
    """
    import numpy as np
    import ray
    from ray import serve

    from dsn_ray.checkpoint import network_of
    from dsn_ray.gallery import embed
    from dsn_ray.web import CAPACITY, make_app

    config, classes = checkpoint.config, len(checkpoint.classes)
    state, photos = ray.put(network.state_dict()), ray.put(gallery)

    class Searcher:
        def __init__(self) -> None:
            _use_threads(threads)
            self._network = network_of(config, classes, ray.get(state))

        def features(self, sketches: "NDArray[np.uint8]") -> "NDArray[np.float32]":
            return embed(self._network, list(sketches), photos=False)

    class Page:
        def __init__(self, searcher: "DeploymentHandle") -> None:
            _use_threads(1)
            self._searcher = searcher

        def __serve_build_asgi_app__(self) -> "FastAPI":
            capacity = CAPACITY * replicas
            return make_app(ray.get(photos), config.data.px, self._features, capacity, hosts)

        # Batches are made here: what one search costs on its way to a network, sixteen cost too.
        @serve.batch(
            max_batch_size=_BATCH,
            batch_wait_timeout_s=_BATCH_WAIT,
            max_concurrent_batches=replicas,
        )
        async def _features(
            self, sketches: "list[NDArray[np.uint8]]"
        ) -> "list[NDArray[np.float32]]":
            return list(await self._searcher.features.remote(np.stack(sketches)))

    # Zero CPUs: on a small machine the processes share what there is instead of waiting for ever.
    searcher = serve.deployment(
        Searcher, num_replicas=replicas, max_ongoing_requests=2, ray_actor_options={"num_cpus": 0}
    )
    here = ray.get_runtime_context().get_node_id()  # where the photos are
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    names = (name for name in resources if name.startswith("node:") and "head" not in name)
    page = serve.deployment(
        serve.ingress()(Page),
        max_ongoing_requests=_ONGOING,
        ray_actor_options={"num_cpus": 0, "resources": dict.fromkeys(names, 0.001)},
    )
    return page.bind(searcher.bind())


def _use_threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


def _serve(parsed: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    from ray import serve

    from dsn_ray.data.storage import cache_folder
    from dsn_ray.gallery import open_gallery
    from dsn_ray.runtime import ray_cluster

    checkpoint = open_checkpoint(parsed.checkpoint)
    network = checkpoint.network()
    with cli.quiet_log("serve") as console:
        found = open_gallery(
            checkpoint,
            network,
            parsed.gallery,
            cache_folder(),
            lambda done, of: console.print(f"{done} of {of} new photos", soft_wrap=True),
        )
        _ = found.index.binary  # now, and not in the first search by binary codes
        for path, reason in found.rejected[:10]:
            console.print(f"{path} is left out: {reason}", soft_wrap=True)
        hosts: tuple[str, ...] = ("127.0.0.1", "::1", "localhost", parsed.host)
        if not ipaddress.ip_address(socket.gethostbyname(parsed.host)).is_loopback:
            hosts = ()
            console.print("Everybody who reaches this address can search: there is no password.")
        with ray_cluster():
            if serve.status().proxies:
                raise UserError(
                    "Ray Serve already runs on this Ray cluster: end it, or unset RAY_ADDRESS."
                )
            served = application(
                checkpoint,
                network,
                replace(found, root=found.root.resolve()),
                parsed.replicas,
                # Half of the CPUs decode and answer; where torch's threads have to wait for one
                # another's CPU, a sketch takes a hundred times as long.
                threads=max(1, (os.cpu_count() or 1) // (2 * parsed.replicas)),
                hosts=hosts,
            )
            try:
                serve.start(
                    proxy_location="HeadOnly",
                    http_options={"host": parsed.host, "port": parsed.port},
                )
                serve.run(served, name="dsn_ray", route_prefix="/")
                address = f"http://{parsed.host}:{parsed.port}"
                console.print(f"Draw at {address} ({len(found.paths)} photos); Ctrl-C ends it.")
                with suppress(KeyboardInterrupt):
                    signal.pause()
            finally:
                serve.shutdown()


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}.") from None


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.serve")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="C", help="its folder")
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="of photos")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="(8000)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="networks (1)")
    return parser


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    if parsed.replicas < 1:
        raise UserError(f"--replicas {parsed.replicas}: at least 1 is needed.")
    if not 1 <= parsed.port <= 65535:
        raise UserError(f"--port {parsed.port}: it must be from 1 to 65535.")
    if find_spec("fastapi") is None:
        raise UserError("The page needs FastAPI: pip install 'dsn-ray[serve]' brings it.")
    _check_free(parsed.host, parsed.port)
    _serve(parsed)


if __name__ == "__main__":
    sys.exit(main())
