"""`ray up`, `ray submit` and `ray down`, with the project's file for machines of one's own."""

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.test_survival import options, trials_of
from tests.two_hosts import PROGRAMS, allowed, two_hosts

pytestmark = pytest.mark.system

FILE = Path(__file__).parents[1] / "cluster" / "local.yaml"
UP = "ray up --yes --no-config-cache cluster.yaml"


@pytest.fixture
def hosts(tmp_path_factory):
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or not allowed():
        pytest.skip("no namespaces, or no openssh-server, rsync or iproute2")
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not [host.name for host in both if host.name in left or running_in(host.name)]


def cluster_file(hosts):
    """The project's file for these hosts, on which the project is installed already."""
    tree = yaml.safe_load(FILE.read_text())
    tree["provider"] |= {"head_ip": hosts[0].address, "worker_ips": [hosts[1].address]}
    tree["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    del tree["file_mounts"]["~/dsn_ray_project"]
    tree["setup_commands"] = tree["setup_commands"][:1]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        tree[key][-1] += " --num-cpus=1 --object-store-memory=200000000"
    return yaml.safe_dump(tree)


def test_a_sweep_over_two_hosts_outlives_one_of_them(hosts, tmp_path, drawings):
    head, worker = hosts
    head.run("ray get-auth-token --generate > /dev/null")
    (head.own / "root" / "cluster.yaml").write_text(cluster_file(hosts))
    shutil.copy(FILE.with_name("sweep.py"), head.own / "root")
    head.run(UP, timeout=240)
    deadline = time.monotonic() + 120
    while "2.0 CPU" not in head.run("RAY_AUTH_MODE=token ray status").replace("0.0/", ""):
        assert time.monotonic() < deadline
        time.sleep(2)

    asked = options(tmp_path, drawings, trials=3)
    asked[1] = str(tmp_path / "space.yaml")
    words = " ".join([*asked, "--workers", "1"])
    submit = f"ray submit cluster.yaml sweep.py -- {words}"
    said = []
    sweep = threading.Thread(target=lambda: said.append(head.run(submit, timeout=500)))
    sweep.start()
    journal = head.own / "root" / "runs" / "s" / "epochs.jsonl"
    while not (journal.exists() and len(journal.read_text().splitlines()) >= 3):
        assert sweep.is_alive(), said
        assert time.monotonic() < deadline + 240
        time.sleep(0.5)
    worker.die()
    sweep.join(500)
    assert said, "the sweep failed"
    trials = trials_of(head.own / "root")
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    assert len({trial["value"] for trial in trials}) == 1
    assert json.loads((head.own / "root" / "runs" / "s" / "final.json").read_text())["rows"]
    head.run("ray down --yes cluster.yaml", timeout=120)
    ours = ("raylet", "gcs_server", "dashboard", "monitor", "ssh: ")  # the last stay for 10 s
    deadline = time.monotonic() + 30
    while left := [name for name in running_in(head.name) if any(part in name for part in ours)]:
        assert time.monotonic() < deadline, left
        time.sleep(1)


def running_in(space):
    """The command lines of what runs in a network namespace."""
    done = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
    commands = (Path(f"/proc/{pid}/cmdline") for pid in done.stdout.split())
    return [path.read_text().replace("\0", " ") for path in commands if path.exists()]
