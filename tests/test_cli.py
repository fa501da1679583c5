"""What the commands share, without Ray."""

import os
import shlex
import warnings

import pytest

from dsn_ray.cli import Interrupted, command, find_run, parser, resumable
from dsn_ray.errors import DataWarning
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
@pytest.mark.parametrize("by", [KeyboardInterrupt, SystemExit(15)])
def test_a_stop_names_the_command_that_goes_on(name, storage, shape, command, by):
    with (
        pytest.raises(Interrupted) as stopped,
        resumable("dsn_ray.tune", find_run(name, storage), shape),
    ):
        raise by
    assert str(stopped.value) == f"Go on with: {command}"
    assert shlex.split(command)[5] == name


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
