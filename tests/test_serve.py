"""The command that serves the page."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dsn_ray import serve
from tests.conftest import processes_with


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", "0"], "--replicas 0: at least 1"),
        (["--port", "70000"], "--port 70000: it must be"),
        (["--host", "198.51.100.1"], "--host 198.51.100.1 --port 8000: "),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--gallery", "nowhere"], "--gallery nowhere: there is no such folder"),
    ],
)
def test_bad_input_is_one_line(checkpoint, drawings, capsys, options, said, port):
    usual = ["--checkpoint", str(checkpoint), "--gallery", str(drawings / "photo")]
    if "--host" not in options and "--port" not in options:
        usual += ["--port", str(port)]
    assert serve.main([*usual, *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_checkpoint_of_another_dimension_is_one_line(
    checkpoint, drawings, capsys, port, tmp_path
):
    shutil.copytree(checkpoint, tmp_path / "other")
    about = json.loads((tmp_path / "other" / "about.json").read_text())
    about["config"]["network"]["dim"] = 32
    (tmp_path / "other" / "about.json").write_text(json.dumps(about))
    given = ["--checkpoint", str(tmp_path / "other"), "--gallery", str(drawings / "photo")]
    assert serve.main([*given, "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not hold the network that about.json describes" in line


def test_a_port_in_use_is_said_before_anything_starts(checkpoint, drawings, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = ["--checkpoint", str(checkpoint), "--gallery", str(drawings / "photo")]
        assert serve.main([*given, "--port", port]) == 2
    assert "in use" in capsys.readouterr().err


@pytest.mark.slow
def test_people_draw_all_at_once_and_ctrl_c_ends_it(
    checkpoint, drawings, cache, port, tmp_path, tmp_path_factory
):
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["DSN_RAY_TEST"] = str(tmp_path)
    environment["XDG_CACHE_HOME"] = str(cache)
    environment["RAY_TMPDIR"] = str(tmp_path_factory.mktemp("ray"))
    (tmp_path / "photos").symlink_to(drawings / "photo")  # given relative to the working folder
    shutil.copytree(checkpoint, tmp_path / "network")
    given = ["--checkpoint", "network", "--gallery", "photos"]
    running = subprocess.Popen(
        [sys.executable, "-m", "dsn_ray.serve", *given, "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limits = httpx.Limits(max_connections=None)
    sketches = [file.read_bytes() for file in sorted(drawings.glob("sketch/*/0.png"))]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            wait_for(client, running)

            def search(number):
                return client.post("/search?top=3", content=sketches[number % len(sketches)])

            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(search, range(60)))
            assert {answer.status_code for answer in answers} == {200}
            for number, answer in enumerate(answers):
                assert answer.json() == answers[number % len(sketches)].json()
            photo = answers[0].json()["photos"][0]
            assert client.get(f"/photos/{photo['photo']}").status_code == 200
            with ThreadPoolExecutor(200) as pool:
                crowd = {answer.status_code: answer for answer in pool.map(search, range(400))}
            assert set(crowd) == {200, 429}
            assert crowd[429].headers["retry-after"] == "1"
            too_large = client.post("/search", content=bytes(50 * 2**20))
            assert too_large.status_code == 413
            assert search(0).json() == answers[0].json()
            # A network that starts again is the one that the photos met.
            (tmp_path / "network" / "state.pt").write_bytes(b"another one")
            for process in processes_with(f"DSN_RAY_TEST={tmp_path}", "Searcher"):
                os.kill(process, signal.SIGKILL)
            wait_for(client, running, lambda: search(0))
            assert search(0).json() == answers[0].json()
        os.killpg(running.pid, signal.SIGINT)
        said, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert f"Draw at http://127.0.0.1:{port}" in said
    assert "Traceback" not in errors
    assert not processes_with(f"DSN_RAY_TEST={tmp_path}")


def wait_for(client, running, ask=None):
    ask = ask or (lambda: client.get("/healthz"))
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        try:
            if ask().status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail("the server did not come up")


@pytest.mark.slow
def test_what_others_serve_on_a_cluster_is_left_alone(
    checkpoint, drawings, attached, cache, port, capsys, monkeypatch
):
    import ray
    from ray import serve as ray_serve

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    others = (
        "import ray; from ray import serve; ray.init(); "
        f"serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}})"
    )
    subprocess.run([sys.executable, "-c", others], check=True, timeout=120)
    given = ["--checkpoint", str(checkpoint), "--gallery", str(drawings / "photo")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        another = free.getsockname()[1]
    assert serve.main([*given, "--port", str(another)]) == 2
    assert "Ray Serve already runs on this Ray cluster" in capsys.readouterr().err
    ray.init()
    try:
        assert ray_serve.status().proxies
        ray_serve.shutdown()
    finally:
        ray.shutdown()
