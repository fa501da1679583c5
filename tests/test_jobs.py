"""A cluster as `cluster/local.yaml` starts it: who may submit a job, and what is seen of it."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import ray
import yaml

from tests.conftest import processes_with
from tests.test_page import browser  # noqa: F401 - a fixture
from tests.test_survival import options, trials_of

pytestmark = pytest.mark.system

CLUSTER = Path(__file__).parents[1] / "cluster"
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "a" * 64
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory, cache):
    """The head that the file starts, at ports of its own and without its autoscaler."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text(TOKEN)
    port, client, agent = (free_port() for _ in range(3))
    mark = f"DSN_RAY_TEST={folder}"
    commands = yaml.safe_load((CLUSTER / "local.yaml").read_text())["head_start_ray_commands"]
    command = commands[-1].replace("~/dsn_ray_env/bin/ray", RAY)
    command = command.replace("--port=6379", f"--port={free_port()}")
    command = command.replace(
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
        f"--dashboard-port={port} --dashboard-agent-listen-port={agent} "
        f"--ray-client-server-port={client} "
        "--num-cpus=2 --object-store-memory=300000000 --block",
    )
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "XDG_CACHE_HOME": str(cache),
        "RAY_metrics_report_interval_ms": "2000",
        "DSN_RAY_TEST": str(folder),
    }
    environment.pop("RAY_ADDRESS", None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["bash", "-c", command], env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: "Ray runtime started" in (folder / "log").read_text(), 90)
        wait_until(lambda: get(f"http://127.0.0.1:{port}/api/version") is not None, 60)
        yield Dashboard(port, client, agent, folder, environment)
    finally:
        process.kill()
        for pid in processes_with(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def get(url, **more):
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=10, **more)
    return None


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


class Dashboard:
    """Where jobs are submitted."""

    def __init__(self, port, client, agent, folder, environment):
        self.port, self.client, self.agent = port, client, agent
        self.folder, self.environment = folder, environment
        self.url = f"http://127.0.0.1:{port}"

    def job(self, verb, *words, **environment):
        done = subprocess.run(
            [RAY, "job", verb, "--address", self.url, *words],
            env=self.environment | {"RAY_AUTH_MODE": "token"} | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout + done.stderr

    def submit(self, name, folder, options):
        command = shlex.join([sys.executable, "-m", "dsn_ray.tune", *options])
        inside = f"cd {shlex.quote(str(folder))} && {command}"
        said = self.job("submit", "--no-wait", "--submission-id", name, "--", "bash", "-c", inside)
        assert "submitted successfully" in said, said

    def ask(self, path):
        answer = get(f"{self.url}/api/jobs/{path}", headers=BEARER)
        return answer.json() if answer else {}

    def train_runs(self):
        answer = get(f"{self.url}/api/train/v2/runs/v1", headers=BEARER)
        return {run["name"] for run in answer.json()["train_runs"]}

    def said(self, name):
        return self.ask(f"{name}/logs").get("logs", "")

    def end(self, name, seconds=240):
        """Waits for a job's end; returns its state."""
        ends = ("SUCCEEDED", "FAILED", "STOPPED")
        wait_until(lambda: self.ask(name).get("status") in ends, seconds)
        return self.ask(name)["status"]


def test_who_has_no_token_submits_nothing(dashboard):
    jobs = f"{dashboard.url}/api/jobs/"
    entry = {"entrypoint": "touch /tmp/never"}
    assert httpx.post(jobs, json=entry, timeout=30).status_code == 401
    wrong = {"Authorization": f"Bearer {'b' * 64}"}
    assert httpx.post(jobs, json=entry, headers=wrong, timeout=30).status_code in (401, 403)
    assert httpx.get(jobs, headers=BEARER, timeout=30).json() == []
    elsewhere = ray.util.get_node_ip_address()
    assert get(f"http://{elsewhere}:{dashboard.port}/api/version", headers=BEARER) is None
    agents = f"http://{elsewhere}:{dashboard.agent}/api/job_agent/jobs/"
    assert httpx.post(agents, json=entry, timeout=30).status_code == 401
    connect = f"import ray; ray.init('ray://{elsewhere}:{dashboard.client}')"
    stranger = {**os.environ, "HOME": str(dashboard.folder), "RAY_AUTH_MODE": "disabled"}
    friend = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    for who, gets_in in ((stranger, False), (friend, True)):
        said = subprocess.run(
            [sys.executable, "-c", connect],
            env=who,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert (said.returncode == 0) == gets_in, said.stderr


@contextmanager
def prometheus(folder):
    """A Prometheus server that reads what the project's file says."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Debian's prometheus is not installed")
    settings = (CLUSTER / "prometheus.yml").read_text().replace("/tmp/ray", f"{folder}/ray")
    (folder / "prometheus.yml").write_text(settings.replace("10s", "2s"))
    port = free_port()
    server = subprocess.Popen(
        [
            *(program, f"--config.file={folder}/prometheus.yml"),
            *(f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/api/v1/query"
    finally:
        server.kill()
        server.wait()


class Seen:
    """The dashboard as people see it, in a browser that has been given the token."""

    def __init__(self, browser, url):  # noqa: F811
        self.page, self.url = browser.new_page(viewport={"width": 1400, "height": 1000}), url
        self.page.goto(url)
        self.page.get_by_placeholder("Enter your authentication token").fill(TOKEN)
        self.page.get_by_role("button", name="Submit").click()
        self.page.get_by_placeholder("Enter your authentication token").wait_for(state="hidden")

    def shows(self, place, *cells, section=None, rows=None):
        self.page.goto(f"{self.url}/#/{place}")
        if section:
            self.page.get_by_text(section).click()
        if rows:
            self.page.get_by_label("Page Size").first.fill(rows)
        for cell in cells:
            self.page.get_by_role("cell", name=cell).first.wait_for(timeout=30_000)


def test_a_job_is_seen_stopped_and_gone_on_with(dashboard, tmp_path, drawings, browser):  # noqa: F811
    shape = ["--workers", "1", "--concurrent", "1"]
    asked = [*options(tmp_path, drawings, trials=4), *shape]
    with prometheus(dashboard.folder) as query:
        dashboard.submit("first", tmp_path, asked)

        def series(name):
            answer = get(query, params={"query": name})
            found = answer.json()["data"]["result"] if answer else []
            return {one["metric"].get("training"): one for one in found}

        wait_until(lambda: "trial 1, seed 0" in series("ray_dsn_validation_map"), 240)
        metric = series("ray_dsn_validation_map")["trial 1, seed 0"]
        assert (metric["metric"]["run"], metric["metric"]["dataset"]) == ("s", "folder:toy")
        assert 0 < float(metric["value"][1]) <= 1
        speeds = "pictures_per_second", "waiting_for_data_ratio"
        for name in ("epoch", "loss", *speeds, "bank_fill_ratio", "training_state"):
            wait_until(lambda name=name: "trial 1, seed 0" in series(f"ray_dsn_{name}"), 60)
        eyes = Seen(browser, dashboard.url)
        eyes.shows("jobs", "first", "RUNNING")
        eyes.shows("actors", "_trial", "RayTrainWorker", rows="100")
        job, pipeline = dashboard.ask("first")["job_id"], "trial1-seed0-worker0-epoch1"
        eyes.shows(f"jobs/{job}", pipeline, section="Ray Data Overview")
        assert "trial1-seed0" in dashboard.train_runs()
        wait_until(lambda: "trial 2/4 epoch 1/" in dashboard.said("first"), 120)
        wait_until(lambda: series("ray_dsn_best_validation_map"), 60)
        dashboard.job("stop", "first")
        assert dashboard.end("first") == "STOPPED"
    said = dashboard.said("first")
    assert "\x1b[" not in "".join(line for line in said.splitlines() if line.startswith("trial"))
    assert "python -m dsn_ray.tune --resume --name s" in said
    before = trials_of(tmp_path)
    assert 1 <= len(before) < 4

    dashboard.submit("second", tmp_path, ["--resume", *asked[-10:]])
    assert dashboard.end("second") == "SUCCEEDED", dashboard.said("second")
    after = trials_of(tmp_path)
    assert after[: len(before)] == before
    assert {trial["value"] for trial in after} == {after[0]["value"]}
    assert json.loads((tmp_path / "runs" / "s" / "final.json").read_text())["rows"]
