"""Checks cluster files before anything is started or paid for; it needs no cloud.

Where a file is right it also looks whether `ray up` would get through from here: for AWS's
credentials, or whether machines of one's own answer.

Examples:
    python -m dsn_ray.cluster cluster/gpu.yaml
    python -m dsn_ray.cluster cluster/gpu.yaml --workers 4 --gpus-per-worker 1 --cpus-per-worker 11
    python -m dsn_ray.cluster --template cluster/gpu.yaml cluster/kuberay.yaml cluster/slurm.sh
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dsn_ray import cli
from dsn_ray.errors import UserError

if TYPE_CHECKING:
    from dsn_ray.checks.faults import Fault


@dataclass(frozen=True)
class Need:
    """What one training asks for.

    Attributes:
        workers: data-parallel ones.
        cpus_per_worker: CPUs of each.
        gpus_per_worker: GPUs of each.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float


def check_cluster_file(
    path: Path, need: Need | None = None, template: bool = False
) -> "list[Fault]":
    """Everything that is wrong in a cluster file, or with this machine where the file is right.

    Args:
        path: a file of `ray up`, manifests for KubeRay, or a batch script for Slurm (*.sh).
        need: what must have room; None to leave that out.
        template: whether placeholders may stay.

    Raises:
        UserError: If the file cannot be read or is not YAML.
    """
    from dsn_ray.checks.here import here_faults
    from dsn_ray.checks.slurm import slurm_faults

    text = _read(path)
    if path.suffix == ".sh":
        if need:
            raise UserError(f"{path}: what has room on Slurm is known only there.")
        faults = list(slurm_faults(text))
    else:
        documents = _documents(path, text)
        faults = list(_yaml_faults(path, documents, need)) or list(here_faults(documents[0]))
    return [fault for fault in faults if not (template and fault.is_placeholder)]


def _documents(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: this is not valid YAML.") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UserError(f"{path}: this is no cluster file; it must hold keys and values.")
    return documents


def _yaml_faults(
    path: Path, documents: list[dict[str, Any]], need: Need | None
) -> "Iterator[Fault]":
    from ray import __version__ as version

    from dsn_ray.checks.faults import fit_faults, placeholder_faults
    from dsn_ray.checks.kuberay import kuberay_faults, kuberay_fleet
    from dsn_ray.checks.launcher import launcher_faults, launcher_fleet

    if any("apiVersion" in document for document in documents):
        yield from kuberay_faults(documents, version)
        fleet = kuberay_fleet(documents)
        for document in documents:
            yield from placeholder_faults(document, str(document.get("kind", "")))
    elif len(documents) == 1:
        yield from launcher_faults(documents[0], version)
        fleet = launcher_fleet(documents[0])
        firsts: dict[str, Fault] = {}  # what stands behind an anchor is told once
        for fault in placeholder_faults(documents[0]):
            firsts.setdefault(fault.wrong, fault)
        yield from firsts.values()
    else:
        raise UserError(f"{path}: a file of `ray up` is one document, this has {len(documents)}.")
    if need:
        if not fleet.kinds:
            raise UserError(f"{path}: it does not say how large its machines are.")
        yield from fit_faults(fleet, need.workers, need.cpus_per_worker, need.gpus_per_worker)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"{path} cannot be read: {reason}.") from None


def _arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, "dsn_ray.cluster")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="of `ray up`, KubeRay or Slurm"
    )
    parser.add_argument("--template", action="store_true", help="placeholders may stay")
    group = parser.add_argument_group("what one training asks for, as the other commands take it")
    group.add_argument("--workers", type=int, metavar="N", help="(1)")
    group.add_argument("--gpus-per-worker", type=float, metavar="X", help="(1)")
    group.add_argument("--cpus-per-worker", type=float, metavar="Y", help="(1)")
    return parser


def _need(parsed: argparse.Namespace) -> Need | None:
    lowest = {"workers": 1, "cpus_per_worker": 0, "gpus_per_worker": 0}
    given = {name: getattr(parsed, name) for name in lowest}
    for name, least in lowest.items():
        if given[name] is not None and given[name] < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {given[name]:g}: at least {least} is needed.")
    if all(value is None for value in given.values()):
        return None
    return Need(**{name: 1 if value is None else value for name, value in given.items()})


@cli.command
def main(arguments: list[str] | None) -> None:
    """Runs the command."""
    parsed = _arguments().parse_args(arguments)
    need, count = _need(parsed), 0
    for path in parsed.files:
        faults = check_cluster_file(path, need, parsed.template)
        count += len(faults)
        for fault in faults:
            print(f"{path}: {fault}")
        if not faults:
            print(f"{path}: nothing wrong was found; nothing was started.")
    if count:
        raise UserError(f"{cli.counted(count, 'fault')} to mend before the cluster is started.")


if __name__ == "__main__":
    sys.exit(main())
