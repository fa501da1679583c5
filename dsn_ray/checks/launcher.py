"""Files of `ray up`: Ray's own schema, and what that does not see."""

import contextlib
import copy
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsn_ray.checks.aws import aws_faults, is_aws
from dsn_ray.checks.faults import (
    DASHBOARD,
    LOOPBACK,
    Fault,
    image_faults,
    key_faults,
    mapping,
    number,
    secret_faults,
    sequence,
)
from dsn_ray.fleet import Fleet, Machines

_STARTS = {"head_start_ray_commands": True, "worker_start_ray_commands": False}
_LOCAL = dict.fromkeys(("external_head_ip", "head_ip", "type", "use_internal_ips", "worker_ips"))
_PINNED_RAY = re.compile(r"\bray(?:\[[^\]]*\])?==([\w.]+)")
_TOKEN = ".ray/auth_token"
_LOCKED = "constraints.txt"


def launcher_faults(tree: Any, version: str) -> Iterator[Fault]:
    """What is wrong in a file of `ray up`.

    Of the faults that Ray's own schema finds only the first is told, as Ray tells it.

    Args:
        tree: what the file holds.
        version: Ray's, as it is installed here.
    """
    config = mapping(tree)
    kind = mapping(config.get("provider")).get("type")
    if kind != "local" and not is_aws(config):
        yield Fault("provider.type", f"{kind} is not checked here", "give aws or local")
        return
    completed, fault = _completed(config)
    if fault:
        yield fault
    yield from _local_faults(config) if kind == "local" else aws_faults(config)
    fleet = launcher_fleet(config)
    if fleet.kinds and not fleet.sum(lambda kind: kind.gpus):
        yield Fault("max_workers", "no machine with a GPU may come", "allow 1 or more")
    yield from _image_faults(config, version)
    yield from _setup_faults(config, version)
    for key, is_head in _STARTS.items():
        yield from _start_faults(sequence(completed.get(key)), key, is_head)
    yield from _port_faults(completed)
    yield from _container_faults(mapping(config.get("docker")))
    yield from secret_faults(config)
    yield from _mount_faults(mapping(config.get("file_mounts")))


def launcher_fleet(tree: Any) -> Fleet:
    """The workers that a file allows; none where it leaves their kinds to the machines."""
    config = mapping(tree)
    most = int(number(config.get("max_workers", 2)))
    kinds = (
        Machines(
            f"available_node_types.{name}",
            number(mapping(kind.get("resources")).get("CPU")),
            number(mapping(kind.get("resources")).get("GPU")),
            int(number(kind.get("max_workers", most))),
        )
        for name, kind in mapping(config.get("available_node_types")).items()
        if isinstance(kind, dict) and name != config.get("head_node_type")
    )
    return Fleet(tuple(kinds), most)


def _completed(config: dict[str, Any]) -> tuple[dict[str, Any], Fault | None]:
    """The file with Ray's defaults filled in, and what Ray's schema says against it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger(prepare_config.__module__).setLevel(logging.ERROR)
    said = io.StringIO()
    completed = config
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            completed = prepare_config(copy.deepcopy(config))
            validate_config(completed)
    except Exception as error:  # Ray raises anything from KeyError to an exit of its command line
        path = [str(part) for part in getattr(error, "absolute_path", ())]
        reason = getattr(error, "message", "") or str(error) or said.getvalue()
        words = " ".join(reason.split()).rstrip(".") or type(error).__name__
        schema = mapping(getattr(error, "schema", None))
        names = ", ".join(sorted(mapping(schema.get("properties"))))
        unknown = getattr(error, "validator", None) == "additionalProperties" and names
        allowed = f"allowed are {names}" if unknown else "see Ray's reference of cluster files"
        return mapping(completed), Fault(".".join(path) or "the file", words, allowed)
    return mapping(completed), None


def _local_faults(config: dict[str, Any]) -> Iterator[Fault]:
    provider = mapping(config.get("provider"))
    yield from key_faults(provider, _LOCAL, "provider")
    addresses = [provider.get("head_ip"), *sequence(provider.get("worker_ips"))]
    for address in sorted({str(a) for a in addresses if addresses.count(a) > 1}):
        yield Fault(
            "provider.worker_ips",
            f"{address} is there twice",
            "name each machine once, the head not",
        )
    auth = mapping(config.get("auth"))
    if not auth.get("ssh_user"):
        yield Fault("auth.ssh_user", "it is missing", "give the user's name on the machines")
    key = auth.get("ssh_private_key")
    if key and not Path(str(key)).expanduser().exists():
        yield Fault("auth.ssh_private_key", f"there is no file {key}", "give a key of yours")


def _image_faults(config: dict[str, Any], version: str) -> Iterator[Fault]:
    docker = mapping(config.get("docker"))
    gpus = max((kind.gpus for kind in launcher_fleet(config).kinds), default=0)
    for name, needed in (("image", gpus), ("head_image", 0), ("worker_image", gpus)):
        if name in docker:
            yield from image_faults(docker[name], f"docker.{name}", version, needed)
    for name, kind in mapping(config.get("available_node_types")).items():
        own = mapping(mapping(kind).get("docker"))
        if "worker_image" in own:
            key = f"available_node_types.{name}.docker.worker_image"
            needed = number(mapping(mapping(kind).get("resources")).get("GPU"))
            yield from image_faults(own["worker_image"], key, version, needed)


def _setup_faults(config: dict[str, Any], version: str) -> Iterator[Fault]:
    commands = [str(command) for command in sequence(config.get("setup_commands"))]
    if not any(_LOCKED in command for command in commands):
        yield Fault(
            "setup_commands",
            "none installs the project's locked versions, so that nodes may differ",
            f"add a `pip install --constraint {_LOCKED} --editable .` in the project's folder",
        )
    for command in commands:
        for found in _PINNED_RAY.findall(command):
            if found != version:
                yield Fault(
                    "setup_commands",
                    f"they install Ray {found}, and {version} is installed here",
                    f"give {version}, because every node and the one who submits need the same",
                )


def _start_faults(commands: list[Any], key: str, is_head: bool) -> Iterator[Fault]:
    starts = [str(c) for c in commands if re.search(r"\bray start\b", str(c))]
    if not starts:
        yield Fault(key, "no command starts Ray", "one must be `ray start ...`")
    for command in starts:
        if "RAY_AUTH_MODE=token" not in command.split("ray start")[0]:
            yield Fault(
                key,
                "Ray is started without a token, and whoever reaches its ports runs what he likes",
                "begin with `RAY_AUTH_MODE=token ray start`",
            )
        for host in DASHBOARD.findall(command):
            if host not in LOOPBACK:
                yield Fault(
                    key,
                    f"the dashboard is bound to {host}",
                    "give --dashboard-host=127.0.0.1 and reach it through `ray dashboard`",
                )
        if is_head and "--autoscaling-config" not in command:
            yield Fault(
                key,
                "the head starts no autoscaler, so that no worker comes",
                "add --autoscaling-config=~/ray_bootstrap_config.yaml",
            )


def _port_faults(config: dict[str, Any]) -> Iterator[Fault]:
    """Whether the workers look for the head where it listens."""
    head, worker = (" ".join(map(str, sequence(config.get(key)))) for key in _STARTS)
    listens = re.search(r"--port[= ](\d+)", head)
    looked_for = re.search(r"RAY_HEAD_IP:(\d+)", worker)
    if listens and looked_for and listens[1] != looked_for[1]:
        yield Fault(
            "worker_start_ray_commands",
            f"they look for the head at port {looked_for[1]}, and it listens at {listens[1]}",
            "give both the same",
        )


def _container_faults(docker: dict[str, Any]) -> Iterator[Fault]:
    options = [*sequence(docker.get("run_options")), *sequence(docker.get("head_run_options"))]
    if docker and not any("RAY_AUTH_MODE=token" in str(option) for option in options):
        yield Fault(
            "docker.run_options",
            "what `ray exec` runs in the container shows the cluster no token, and is refused",
            "add --env RAY_AUTH_MODE=token",
        )


def _mount_faults(mounts: dict[str, Any]) -> Iterator[Fault]:
    for remote, local in mounts.items():
        if Path(str(local)).expanduser().exists():
            continue
        hint = "name what is there, seen from the folder in which `ray up` is run"
        if str(local).endswith(_TOKEN):
            hint = "make it with `ray get-auth-token --generate`"
        yield Fault(f"file_mounts.{remote}", f"{local} does not exist", hint)
    if not any((Path(str(local)) / _LOCKED).expanduser().exists() for local in mounts.values()):
        yield Fault(
            "file_mounts", "the project reaches no node", f"mount its folder, with {_LOCKED} in it"
        )
    if not any(str(remote).endswith(_TOKEN) for remote in mounts):
        yield Fault(
            "file_mounts",
            "the token reaches no node",
            f"mount ~/{_TOKEN} as ~/{_TOKEN} of the node",
        )
