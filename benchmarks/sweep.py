"""A sweep of the demonstration whose command is a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def start_sweep(
    work: Path, name: str, space: str, *options: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """Starts it afresh in the folder `name` of `work`, one trial at a time.

    Args:
        work: of the benchmarks.
        name: of the run.
        space: the search space, as YAML.
        options: further ones of `dsn_ray.tune`.

    Returns:
        The process, whose output goes to `sweep.log` in that folder, and the run's folder.
    """
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text(space)
    command = [sys.executable, "-m", "dsn_ray.tune", "--space", "space.yaml", "--name", name]
    with (folder / "sweep.log").open("wb") as log:
        sweep = subprocess.Popen(
            [*command, "--concurrent", "1", *options],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder.resolve() / "cache")},
            stdout=log,
            stderr=log,
        )
    return sweep, folder / "runs" / name
