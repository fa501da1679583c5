"""Folders of runs, and how one goes on."""

import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dsn_ray import cli, tune
from dsn_ray.config import Config
from dsn_ray.errors import Interrupted, UserError
from dsn_ray.room import Shape
from dsn_ray.runs import (
    Run,
    alone,
    bring_records,
    find_run,
    resumable,
    resumed,
    run_folder,
    save_settings,
)
from dsn_ray.training import Training


@pytest.mark.parametrize(
    ("name", "storage", "shape", "command"),
    [
        ("first", None, Shape(), "python -m dsn_ray.tune --resume --name first"),
        (
            "my run",
            None,
            Shape(workers=1, cpus_per_worker=0.5),
            "python -m dsn_ray.tune --resume --name 'my run' --workers 1 --cpus-per-worker 0.5",
        ),
        (
            "first",
            "s3://bucket/runs",
            Shape(wait=60),
            "python -m dsn_ray.tune --resume --name first --storage s3://bucket/runs --wait 60",
        ),
    ],
)
def test_a_stop_names_the_command_that_goes_on(name, storage, shape, command):
    with (
        pytest.raises(Interrupted) as stopped,
        resumable("dsn_ray.tune", find_run(name, storage), shape),
    ):
        raise KeyboardInterrupt
    assert str(stopped.value) == f"Go on with: {command}"
    assert shlex.split(command)[5] == name


def test_a_failure_names_the_command_that_goes_on_and_bad_input_does_not(tmp_path, capsys):
    @cli.command
    def fails(_):
        with (
            resumable("dsn_ray.train", find_run("r", None), Shape(workers=2)),
            cli.quiet_log("x", tmp_path),
        ):
            raise error

    error = RuntimeError("no disk")
    assert fails() == 1
    said = capsys.readouterr().err.splitlines()[-2:]
    assert said[0].startswith("failed: RuntimeError: no disk (more in ")
    assert said[1] == "Go on with: python -m dsn_ray.train --resume --name r --workers 2"
    error = UserError("Wrong.")
    assert fails() == 2
    assert "Go on" not in capsys.readouterr().err


def refused(name, leaves="ray.log"):
    try:
        with run_folder(name, "any", None) as run:
            (run.folder / leaves).touch()
            raise UserError("No.")
    except UserError:
        pass


def test_a_run_that_is_refused_at_its_start_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("first")
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    refused("second")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_a_run_that_is_refused_once_it_has_results_keeps_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("first", leaves="trials.jsonl")
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["trials.jsonl"]


class ReadOnly(BaseHTTPRequestHandler):
    """A bucket of S3 that holds nothing, and takes nothing."""

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.answer(200 if self.path == "/bucket" else 404, b"")

    def do_GET(self):
        self.answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Denied</Message></Error>")

    do_POST = do_DELETE = do_PUT  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_bucket_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), ReadOnly)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = r"--storage s3://bucket/runs/first: it cannot be written to \(.*ACCESS_DENIED"
        with pytest.raises(UserError, match=said), run_folder("first", "any", "s3://bucket/runs"):
            pass
        assert not (tmp_path / "runs").exists()
        run = find_run("first", "s3://bucket/runs")
        run.folder.mkdir(parents=True)
        save_settings(Training(Config(), ("sketchy", "S")), run)
        with pytest.raises(UserError, match=said):
            resumed("first", "s3://bucket/runs", False, Training.parse, lambda kept: kept)
    finally:
        server.shutdown()
        server.server_close()
    assert [path.name for path in tmp_path.glob("runs/*/*")] == ["config.yaml"]


HOLDS = """
import sys, time
from pathlib import Path
from dsn_ray.runs import Run, alone

with alone(Run(Path(sys.argv[1]), sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_has_one_driver_and_a_killed_one_holds_nothing(tmp_path):
    run = Run(tmp_path, str(tmp_path))
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert held.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f": process {held.pid} of .*, is at work"), alone(run):
            pass
    finally:
        held.kill()
        held.wait()
    with alone(run):
        pass
    with alone(run):
        pass


def test_another_machine_goes_on_with_what_the_storage_holds(
    tmp_path, drawings, monkeypatch, capsys
):
    storage, places = f"file://{tmp_path}/shared", []

    def on(machine):
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        return find_run("s", storage)

    def work(run, journal):
        with alone(run):
            (run.folder / "study.journal").write_text(journal)
        return (tmp_path / "shared" / "s" / "study.journal").read_text()

    run = on("first")
    monkeypatch.setattr("dsn_ray.sweeping.start", lambda sweep, *_: places.append(sweep))
    asked = ["--data", f"folder:toy={drawings}", "--smoke-test"]
    asked += ["--set", "data.validation_classes=2"]
    space = Path(__file__).parents[1] / "search_spaces" / "lambdas_small.yaml"
    assert tune.main(["--space", str(space), *asked]) == 0
    run.folder.mkdir(parents=True)
    save_settings(places[0], run)
    (tmp_path / "shared" / "s").mkdir(parents=True)  # as trainings do
    (run.folder / "final.unfinished.json").write_text("{}\n")
    assert work(run, "one\ntwo\nthr") == "one\ntwo\n"
    (run.folder / "final.unfinished.json").replace(run.folder / "final.json")
    work(run, "one\ntwo\nthree\n")

    other = on("other")
    assert tune.main(["--resume", "--name", "s", "--storage", storage, "--dry-run"]) == 0
    assert "search on folder:toy" in capsys.readouterr().out
    here = {path.name for path in other.folder.iterdir()}
    assert here == {"config.yaml", "drivers.txt", "final.json", "study.journal"}
    assert (other.folder / "study.journal").read_text() == "one\ntwo\nthree\n"
    work(other, "one\ntwo\nthree\nfour\n")

    for journal in ("one\ntwo\nthree\nfour\n", "more\n"):
        run = on("first")
        bring_records(run)
        assert (run.folder / "study.journal").read_text() == journal
        (run.folder / "study.journal").write_text("more\n")  # it is the newest by now
        with alone(run):
            pass
