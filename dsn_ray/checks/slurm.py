"""Batch scripts for Slurm: the shell's syntax, and what must not be missing."""

import re
import shutil
import subprocess
from collections.abc import Iterator

from dsn_ray.checks.faults import (
    DASHBOARD,
    LOOPBACK,
    Fault,
    placeholder_faults,
    secret_faults,
)

_NEEDED = (
    (
        r"^#SBATCH --nodes=\d+",
        "#SBATCH --nodes",
        "Slurm is not told how many nodes",
        "give --nodes=N",
    ),
    (
        r"^#SBATCH --time=\S+",
        "#SBATCH --time",
        "Slurm is not told how long the job may take",
        "give --time=HH:MM:SS",
    ),
    (
        r"^#SBATCH --cpus-per-task=\d+",
        "#SBATCH --cpus-per-task",
        "Slurm is not told how many CPUs Ray may use on a node",
        "give --cpus-per-task=N",
    ),
    (
        r"^#SBATCH --(gpus|gres=gpu)\S*[=:]\S+",
        "#SBATCH --gpus-per-node",
        "the nodes get no GPU",
        "give --gpus-per-node=N",
    ),
    (r"^set -euo pipefail$", "set", "a failed command is passed over", "add `set -euo pipefail`"),
    (
        r"^export RAY_AUTH_MODE=token$",
        "RAY_AUTH_MODE",
        "Ray is started without a token, and whoever is on the nodes runs what he likes",
        "add `export RAY_AUTH_MODE=token` before Ray is started",
    ),
    (
        r"--dashboard-host[= ](127\.0\.0\.1|localhost|::1)",
        "--dashboard-host",
        "the dashboard is not bound to the node itself",
        "give --dashboard-host=127.0.0.1",
    ),
    (r"^trap .*EXIT$", "trap", "Ray outlives the sweep", "end it in a `trap ... EXIT`"),
    (r'dsn_ray\.tune "\$@"', "dsn_ray.tune", "no sweep is run", 'run python -m dsn_ray.tune "$@"'),
)


def slurm_faults(text: str) -> Iterator[Fault]:
    """What is wrong in a batch script.

    Args:
        text: of the script.
    """
    bash = shutil.which("bash")
    if bash:
        checked = subprocess.run(
            [bash, "-n"], input=text, capture_output=True, text=True, check=False
        )
        for line in checked.stderr.splitlines()[:1]:
            where, _, wrong = line.removeprefix(f"{bash}: ").partition(": ")
            yield Fault(where, wrong, "`bash -n` must find nothing")
    for pattern, key, wrong, allowed in _NEEDED:
        if not re.search(pattern, text, re.MULTILINE):
            yield Fault(key, wrong, allowed)
    for host in DASHBOARD.findall(text):
        if host not in LOOPBACK:
            yield Fault(
                "--dashboard-host",
                f"the dashboard is bound to {host}",
                "give 127.0.0.1 and reach it through ssh",
            )
    for number, line in enumerate(text.splitlines(), start=1):
        yield from secret_faults(line, f"line {number}")
        given = line.partition(" #")[0] if line.startswith("#SBATCH") else line.partition("#")[0]
        yield from placeholder_faults(given.strip(), f"line {number}")
