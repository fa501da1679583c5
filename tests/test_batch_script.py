"""The batch script for Slurm, run where Slurm, Ray and the sweep are small stand-ins."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STUBS = {
    "scontrol": "printf 'first\\nsecond\\n'",
    "hostname": "echo '10.0.0.1 172.17.0.1'",
    "srun": (
        'case "$*" in *" test -r "*) [ -z "$NO_TOKEN" ]; exit;; esac; '
        'echo "srun $*" >> "$LOG"; exec sleep 60'
    ),
    "ray": (
        'echo "ray $* $RAY_AUTH_MODE" >> "$LOG"; '
        '[ "$1" != status ] || { [ -z "$SILENT" ] && grep -q ^srun "$LOG"; }'
    ),
    "python": (
        'if [ "$1" = -c ]; then [ -n "$ALONE" ] && echo 1 || grep -c ^srun "$LOG"; exit; fi; '
        'echo "python $* $RAY_ADDRESS" >> "$LOG"; '
        f'exec {sys.executable} -c "$SWEEP"'
    ),
}


@pytest.fixture
def slurm(tmp_path):
    """Starts it on two nodes, with a sweep in Python; gives the process and a log of commands."""
    bin_folder = tmp_path / "project" / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    for name, text in STUBS.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    jobs = []

    def start(sweep, script="cluster/slurm.sh", **more):
        environment = {
            **os.environ,
            "LOG": str(tmp_path / "log"),
            "SWEEP": sweep,
            "SLURM_SUBMIT_DIR": str(tmp_path / "project"),
            "SLURM_JOB_NODELIST": "[first-second]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_ID": "123456",
            "SLURM_CPUS_PER_TASK": "8",
            **more,
        }
        job = subprocess.Popen(
            ["bash", str(script), "--name", "my run"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        jobs.append(job)
        return job, tmp_path / "log"

    yield start
    for job in jobs:
        job.kill()
        job.wait()


def test_the_batch_script_ends_ray_with_the_sweep(slurm):
    job, log = slurm("raise SystemExit(2)")
    assert job.wait(timeout=50) == 2, "its stand-ins would have taken a minute"
    said = log.read_text()
    assert "--nodelist=first" in said
    assert "ray start --block --head --node-ip-address=10.0.0.1 --port=23456" in said
    assert "ray start --block --address=10.0.0.1:23456" in said
    assert "--exclude=first" in said
    assert "ray status token" in said
    assert "python -m dsn_ray.tune --name my run 10.0.0.1:23456" in said


def test_the_batch_script_hands_the_signal_on_to_the_sweep(slurm):
    job, _ = slurm(
        "import time\ntry:\n print('up', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n print('Go on with'); raise SystemExit(1)"
    )
    assert job.stdout.readline() == "up\n"
    job.send_signal(signal.SIGINT)
    assert job.communicate(timeout=50)[0].startswith("Go on with\n")
    assert job.returncode == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("NO_TOKEN", "error: a node does not see ~/.ray/auth_token; copy it there"),
        ("SILENT", "error: Ray's head did not answer at 10.0.0.1:23456 within 5 minutes"),
        ("ALONE", "error: not all 2 nodes had joined after 5 minutes"),
    ],
)
def test_the_batch_script_says_why_it_gives_up(slurm, tmp_path, wrong, words):
    hasty = tmp_path / "slurm.sh"
    hasty.write_text(Path("cluster/slurm.sh").read_text().replace("SECONDS + 300", "SECONDS + 3"))
    job, log = slurm("raise SystemExit", hasty, **{wrong: "1"})
    assert words in job.communicate(timeout=50)[0]
    assert job.returncode == 1
    assert "dsn_ray.tune" not in log.read_text()
