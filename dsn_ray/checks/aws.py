"""What a file of `ray up` says of AWS, compared with what AWS has."""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dsn_ray.checks.faults import Fault, key_faults, mapping, number, sequence
from dsn_ray.cli import counted

TABLES = Path(__file__).parents[1] / "data" / "files" / "aws.yaml"
SPOT_THEN_ON_DEMAND = "dsn_ray.spot.SpotThenOnDemand"
_MARKETS = ("spot", "on-demand", "capacity-block")


@cache
def tables() -> dict[str, Any]:
    """Regions, machines with their CPUs and GPUs, and the keys of a node_config."""
    return dict(yaml.safe_load(TABLES.read_text(encoding="utf-8")))


def is_aws(config: dict[str, Any]) -> bool:
    """Whether a file of `ray up` starts machines of AWS."""
    provider = mapping(config.get("provider"))
    return provider.get("type") == "aws" or (
        provider.get("type") == "external" and provider.get("module") == SPOT_THEN_ON_DEMAND
    )


def aws_faults(config: dict[str, Any]) -> Iterator[Fault]:
    """What is wrong with region, machines and firewall.

    Args:
        config: a file of `ray up`.
    """
    provider = mapping(config.get("provider"))
    yield from key_faults(provider, tables()["provider"], "provider")
    yield from _place_faults(provider)
    head = config.get("head_node_type")
    for name, kind in mapping(config.get("available_node_types")).items():
        yield from _machine_faults(mapping(kind), f"available_node_types.{name}", name == head)
        if provider.get("type") == "aws" and name != head and _market(mapping(kind)) == "spot":
            yield Fault(
                "provider.type",
                "what the spot market refuses is asked of it for ever",
                f"give external, and module: {SPOT_THEN_ON_DEMAND}, which then takes it on demand",
            )
    rules = mapping(provider.get("security_group")).get("IpPermissions")
    for index, rule in enumerate(sequence(rules)):
        yield from _rule_faults(mapping(rule), f"provider.security_group.IpPermissions[{index}]")


def _place_faults(provider: dict[str, Any]) -> Iterator[Fault]:
    region, zones = provider.get("region"), provider.get("availability_zone")
    if region not in tables()["regions"]:
        near = difflib.get_close_matches(str(region), tables()["regions"], n=3)
        wrong = "it is missing" if region is None else f"AWS has no region {region}"
        hint = ", ".join(near) if near else "one such as us-west-2"
        yield Fault("provider.region", wrong, f"give {hint}")
        return
    for zone in str(zones).split(",") if zones else ():
        if not re.fullmatch(rf"{region}(-[a-z]+-\d)?[a-z]", zone.strip()):
            yield Fault(
                "provider.availability_zone",
                f"{zone.strip()} is no zone of the region {region}",
                f"give zones such as {region}a, with commas between them",
            )


def _machine_faults(kind: dict[str, Any], key: str, is_head: bool) -> Iterator[Fault]:
    node, resources = mapping(kind.get("node_config")), mapping(kind.get("resources"))
    yield from key_faults(node, tables()["node_config"], f"{key}.node_config")
    name = _market(kind)
    where = f"{key}.node_config.InstanceMarketOptions"
    if node.get("InstanceMarketOptions") and name not in _MARKETS:
        yield Fault(where, f"the market {name} does not exist", f"it is {' or '.join(_MARKETS)}")
    if is_head and name == "spot":
        yield Fault(where, "a spot head takes the whole run with it", "leave the key out")
    if not mapping(node.get("IamInstanceProfile")):
        yield Fault(
            f"{key}.node_config.IamInstanceProfile",
            "it is missing, so that the machine cannot reach the bucket",
            "give {Name: ...} or {Arn: ...}",
        )
    if not node.get("ImageId") and not node.get("LaunchTemplate"):
        yield Fault(
            f"{key}.node_config.ImageId",
            "it is missing, and the image that Ray would take is too old for PyTorch's CUDA",
            "give the identifier of an image of the region",
        )
    yield from _resource_faults(node.get("InstanceType"), resources, key)


def _market(kind: dict[str, Any]) -> Any:
    options = mapping(mapping(kind.get("node_config")).get("InstanceMarketOptions"))
    return options.get("MarketType")


def _resource_faults(machine: Any, resources: dict[str, Any], key: str) -> Iterator[Fault]:
    known = tables()["machines"]
    if not isinstance(machine, str) or machine not in known:
        near = difflib.get_close_matches(str(machine), known, n=4, cutoff=0.5)
        yield Fault(
            f"{key}.node_config.InstanceType",
            "it is missing" if machine is None else f"the machine {machine} is not known here",
            f"give one such as {', '.join(near) or 'g6.12xlarge'}, or add it to {TABLES.name}",
        )
        return
    cpus, gpus = known[machine]
    if not 0 < number(resources.get("CPU")) <= cpus:
        yield Fault(
            f"{key}.resources.CPU",
            f"it is {resources.get('CPU', 'missing')}, and {machine} has {counted(cpus, 'CPU')}",
            f"give 1 to {cpus}",
        )
    if number(resources.get("GPU")) != gpus:
        yield Fault(
            f"{key}.resources.GPU",
            f"it is {resources.get('GPU', 'missing')}, and {machine} has {counted(gpus, 'GPU')}",
            f"give {gpus}" if gpus else "leave it out",
        )


def _rule_faults(rule: dict[str, Any], key: str) -> Iterator[Fault]:
    ports = rule.get("FromPort"), rule.get("ToPort")
    if rule.get("IpProtocol") != "tcp" or ports != (22, 22):
        yield Fault(
            key,
            f"it opens {rule.get('IpProtocol')} ports {ports[0]} to {ports[1]}",
            "only ssh may be open, tcp from 22 to 22: `ray dashboard` goes through it, and the "
            "machines reach each other without a rule",
        )
