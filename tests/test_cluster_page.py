"""The commands of `cluster/README.md`, run where what they start are small stand-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dsn_ray import tune
from dsn_ray.space import load_space

CLUSTER = Path("cluster")
# What a stand-in is given is run by a shell, as Ray, ssh and Docker do it on the node.
STUBS = {
    "python": 'printf "%s\\0" "$@" >> "$LOG"; printf "\\n" >> "$LOG"',
    "ray": (
        'case "$1 $2" in "exec "*) exec bash -c "${@: -1}";; '
        f'"submit "*) cp "$3" ~; exec bash -c "{sys.executable} ~/$(basename "$3") ${{*:5}}";; '
        '"job submit") while [ "$1" != -- ]; do shift; done; exec "${@:2}";; esac'
    ),
    **dict.fromkeys(("aws", "kubectl", "docker"), ":"),
}
STUBS["sbatch"] = 'python -m dsn_ray.tune "${@:2}"'


def pieces():
    """Every place that says how a sweep is started on a cluster, by its name."""
    page = (CLUSTER / "README.md").read_text()
    for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.M | re.S):
        for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S):
            if "dsn_ray.tune" in block or "sweep.py" in block:
                yield heading, block
    header = re.findall(r"^# ? ?(.*)$", (CLUSTER / "slurm.sh").read_text(), re.M)
    yield "slurm.sh", "\n".join(line for line in header if re.match(r" *(sbatch|--)", line))
    (*_, job) = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    yield "kuberay.yaml", job["spec"]["entrypoint"].replace("cd /home/ray/project", "cd .")


@pytest.mark.parametrize(("place", "commands"), [pytest.param(*p, id=p[0]) for p in pieces()])
def test_a_documented_sweep_is_what_it_says(tmp_path, place, commands):
    environment = tmp_path / "dsn_ray_env" / "bin"
    environment.mkdir(parents=True)
    for name, text in STUBS.items():
        (environment / name).write_text(f"#!/bin/bash\n{text}\n")
        (environment / name).chmod(0o755)
    (tmp_path / "cluster").symlink_to(CLUSTER.resolve())
    log = tmp_path / "log"
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=tmp_path,
        env={
            "PATH": f"{environment}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LOG": str(log),
            "DSN_BUCKET": "s3://my-bucket",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    runs = [
        line.split("\0")[2:-1] for line in log.read_text().splitlines() if "dsn_ray.tune" in line
    ]
    assert runs
    for words in runs:
        parsed = tune._arguments().parse_args(words)
        assert parsed.name == "first"
        assert "://" in parsed.storage
        if not parsed.resume:
            assert parsed.data
            load_space(Path(*parsed.space.parts[-2:]))
