"""What the commands share, without Ray."""

import os
import warnings

import pytest

from dsn_ray.cli import command, counted, parser
from dsn_ray.errors import DataWarning
from dsn_ray.runtime import chatter_to, people_console


def test_plain_makes_a_terminal_a_file(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert people_console().is_terminal
    parser("A command.", "dsn_ray.any").parse_args(["--plain"])
    assert not people_console().is_terminal


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


def test_what_is_wrong_with_an_option_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        parser("A command.", "dsn_ray.any").parse_args(["--plian"])
    assert capsys.readouterr().err == (
        "error: unrecognized arguments: --plian (python -m dsn_ray.any --help).\n"
    )


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0, "0 GPUs"), (0.5, "0.5 GPU"), (1, "1 GPU"), (1.5, "1.5 GPUs"), (10.0**6, "1000000 GPUs")],
)
def test_amounts_are_counted_as_people_do(amount, said):
    assert counted(amount, "GPU") == said
