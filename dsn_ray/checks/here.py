"""What would keep `ray up` from getting through from this machine, though its file is right."""

import importlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dsn_ray.checks.aws import is_aws
from dsn_ray.checks.faults import Fault, mapping, sequence
from dsn_ray.runtime import answers

_SSH = 22


def here_faults(config: dict[str, Any]) -> Iterator[Fault]:
    """No way to ask AWS for machines, or machines of one's own that do not answer.

    Args:
        config: a file of `ray up` in which nothing else is wrong.
    """
    provider = mapping(config.get("provider"))
    if is_aws(config):
        yield from _access_faults()
    elif provider.get("type") == "local" and "ssh_proxy_command" not in mapping(config.get("auth")):
        yield from _silence_faults(provider)


def _access_faults() -> Iterator[Fault]:
    if importlib.util.find_spec("boto3") is None:
        wrong = "boto3, with which `ray up` asks AWS for machines, is not installed here"
        yield Fault("provider.type", wrong, "pip install boto3")
        return
    core = importlib.import_module("botocore")
    importlib.import_module("botocore.session")
    try:
        missing = core.session.get_session().get_credentials() is None
        wrong = "this machine has no credentials for AWS"
    except core.exceptions.BotoCoreError as error:
        missing, wrong = True, f"this machine's credentials for AWS cannot be read ({error})"
    if missing:
        hint = "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        yield Fault("provider.type", wrong, hint)


def _silence_faults(provider: dict[str, Any]) -> Iterator[Fault]:
    places = {"provider.head_ip": provider.get("head_ip")}
    for index, address in enumerate(sequence(provider.get("worker_ips"))):
        places[f"provider.worker_ips[{index}]"] = address
    with ThreadPoolExecutor(32) as pool:
        heard = pool.map(lambda address: answers(f"{address}:{_SSH}"), places.values())
        for (key, address), hears in zip(places.items(), heard, strict=True):
            if not hears:
                wrong = f"{address} does not answer on port {_SSH} of ssh"
                yield Fault(key, wrong, "start the machine and its sshd, or mend the address")
