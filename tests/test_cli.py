"""What the commands share, without Ray."""

import os
import shlex
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dsn_ray.cli import Interrupted, command, find_run, parser, resumable, run_folder
from dsn_ray.errors import DataWarning, UserError
from dsn_ray.runtime import Shape, chatter_to, people_console


def test_plain_makes_a_terminal_a_file(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert people_console().is_terminal
    parser("A command.", "dsn_ray.any").parse_args(["--plain"])
    assert not people_console().is_terminal


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

    do_POST = do_DELETE = do_PUT

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
    finally:
        server.shutdown()
        server.server_close()
    assert not list(tmp_path.glob("runs/*"))


def warn():
    warnings.warn("2 queries left out", DataWarning, stacklevel=2)
    warnings.warn("of a library", UserWarning, stacklevel=2)


@pytest.mark.filterwarnings("ignore:of a library")
def test_what_the_numbers_depend_on_is_one_line(capsys):
    assert command(lambda _: warn())([]) == 0
    assert capsys.readouterr().err == "note: 2 queries left out.\n"


@pytest.mark.filterwarnings("ignore:of a library")
def test_it_is_said_on_the_terminal_while_chatter_goes_to_a_file(tmp_path, capfd):
    with chatter_to(tmp_path / "log"):
        warn()
        os.write(1, b"chatter")
    assert capfd.readouterr().out == "2 queries left out.\n"
    said = (tmp_path / "log").read_text()
    assert "chatter" in said
    assert "left out" not in said
