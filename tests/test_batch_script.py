"""The batch script for Slurm, run where Slurm, Ray and the sweep are small stand-ins."""

import os
import signal
import subprocess
import sys

import pytest

STUBS = {
    "scontrol": "printf 'first\\nsecond\\n'",
    "hostname": "echo '10.0.0.1 172.17.0.1'",
    "srun": 'echo "srun $*" >> "$LOG"; exec sleep 60',
    "ray": 'echo "ray $* $RAY_AUTH_MODE" >> "$LOG"; [ "$1" != status ] || grep -q ^srun "$LOG"',
    "python": (
        'if [ "$1" = -c ]; then grep -c ^srun "$LOG"; exit; fi; '
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

    def start(sweep):
        environment = {
            **os.environ,
            "LOG": str(tmp_path / "log"),
            "SWEEP": sweep,
            "SLURM_SUBMIT_DIR": str(tmp_path / "project"),
            "SLURM_JOB_NODELIST": "[first-second]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_ID": "123456",
            "SLURM_CPUS_PER_TASK": "8",
        }
        job = subprocess.Popen(
            ["bash", "cluster/slurm.sh", "--name", "my run"],
            env=environment,
            stdout=subprocess.PIPE,
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
    assert job.communicate(timeout=50)[0] == "Go on with\n"
    assert job.returncode == 1
