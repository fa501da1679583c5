"""A page to draw on: what one draws is searched for among the photos of a folder.

Examples:
    python -m dsn_ray.serve --checkpoint C --gallery photos
    python -m dsn_ray.serve --checkpoint C --gallery photos --replicas 2 --port 8080
"""

import argparse
import ipaddress
import os
import socket
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dsn_ray import cli
from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dsn_ray.batches import EmbedMany
    from dsn_ray.checkpoint import Checkpoint
    from dsn_ray.model import DsnNetwork

_FAREWELL = 5  # seconds that searches under way have when the page ends


def run_networks(
    checkpoint: "Checkpoint", network: "DsnNetwork", replicas: int, threads: int
) -> "EmbedMany":
    """Starts networks as a deployment of Ray Serve.

    One that starts again after a crash is the one that the photos met, whatever lies in the
    checkpoint's folder then.

    Args:
        checkpoint: what the network is of.
        network: embeds.
        replicas: how many networks.
        threads: torch's of each.

    Returns:
        Asks them for the features of sketches, uint8 `[n, 3, px, px]` to float32 `[n, d]`.
    """
    import ray
    import torch
    from ray import serve

    from dsn_ray.checkpoint import network_of
    from dsn_ray.gallery import embed

    config, classes = checkpoint.config, len(checkpoint.classes)
    state = ray.put(network.state_dict())

    class Searcher:
        def __init__(self) -> None:
            torch.set_num_threads(threads)
            self._network = network_of(config, classes, ray.get(state))

        def features(self, sketches: "NDArray[np.uint8]") -> "NDArray[np.float32]":
            return embed(self._network, list(sketches), photos=False)

    # Zero CPUs: on a small machine the processes share what there is instead of waiting for ever.
    deployment = serve.deployment(
        Searcher, num_replicas=replicas, max_ongoing_requests=2, ray_actor_options={"num_cpus": 0}
    )
    networks = serve.run(deployment.bind(), name="dsn_ray", route_prefix=None)

    async def features(sketches: "NDArray[np.uint8]") -> "NDArray[np.float32]":
        return await networks.features.remote(sketches)

    return features


def _serve(parsed: argparse.Namespace, listener: socket.socket) -> None:
    """Serves until a signal comes."""
    import torch
    import uvicorn
    from ray import serve

    from dsn_ray.batches import Batches
    from dsn_ray.data.storage import cache_folder
    from dsn_ray.gallery import open_gallery
    from dsn_ray.runtime import ray_cluster
    from dsn_ray.web import CAPACITY, make_app

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
            running = serve.status()
            if running.proxies or running.applications:
                raise UserError(
                    "Ray Serve already runs on this Ray cluster: end it, or unset RAY_ADDRESS."
                )
            try:
                # The page answers in this process: only what embeds sketches is Ray's.
                serve.start(proxy_location="Disabled")
                # Half of the CPUs decode and answer; where torch's threads have to wait for one
                # another's CPU, a sketch takes a hundred times as long.
                torch.set_num_threads(1)
                threads = max(1, (os.cpu_count() or 1) // (2 * parsed.replicas))
                networks = run_networks(checkpoint, network, parsed.replicas, threads)
                px, capacity = checkpoint.config.data.px, CAPACITY * parsed.replicas
                page = make_app(found, px, Batches(networks, parsed.replicas), capacity, hosts)
                address = f"http://{parsed.host}:{parsed.port}"
                console.print(f"Draw at {address} ({len(found.paths)} photos); Ctrl-C ends it.")
                web = uvicorn.Server(
                    uvicorn.Config(page, log_level="warning", timeout_graceful_shutdown=_FAREWELL)
                )
                with suppress(KeyboardInterrupt):
                    web.run(sockets=[listener])
            finally:
                serve.shutdown()


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
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
    with _listening(parsed.host, parsed.port) as listener:
        _serve(parsed, listener)


if __name__ == "__main__":
    sys.exit(main())
