"""What all commands share: arguments, how errors are told, and exit statuses."""

import argparse
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from dsn_ray.errors import Interrupted, UserError, warnings_shown_by

if TYPE_CHECKING:
    from rich.console import Console

    from dsn_ray.room import Shape

DONE, FAILED, WRONG_INPUT = 0, 1, 2
RANDOM_WEIGHTS = "Random weights: these numbers say nothing about the method."


class Command(Protocol):
    """A command: takes the arguments of `sys.argv` where none are given; returns a status."""

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Runs it."""


def command(run: Callable[[list[str] | None], None]) -> Command:
    """Turns a command's function into one that returns an exit status and explains errors.

    The status is 0 where the work is done, 2 where the input was wrong (one line says what and
    where) and 1 for anything else.
    """

    @functools.wraps(run)
    def wrapped(arguments: list[str] | None = None) -> int:
        # What Ray Data leaves to the garbage collector would start another Ray when it goes.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        try:
            with warnings_shown_by(lambda text: print(f"note: {text}", file=sys.stderr)):
                run(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return WRONG_INPUT
        except (Interrupted, KeyboardInterrupt) as error:
            print(f"Stopped. {error}".rstrip(), file=sys.stderr)
            return FAILED
        except Exception as error:  # the last place that can tell the user anything
            log = getattr(error, "log", None)
            if log is None:
                traceback.print_exc()
            else:
                print(f"failed: {_first_line(error)} (more in {log})", file=sys.stderr)
                for note in getattr(error, "__notes__", ()):
                    print(note, file=sys.stderr)
            return FAILED
        return DONE

    return wrapped


def parser(doc: str | None, module: str) -> argparse.ArgumentParser:
    """An argument parser whose help is the module's docstring, example included."""
    made = _Parser(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--plain", action=_Plain, nargs=0, help="plain lines, on a terminal too")
    return made


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        """Ends the command."""
        self.exit(2, f"error: {message} ({self.prog} --help).\n")


class _Plain(argparse.Action):
    """Has rich take the terminal for a file, by the variable that it has for that."""

    def __call__(self, *_: object) -> None:
        os.environ["TTY_COMPATIBLE"] = "0"


def add_data_argument(to: argparse.ArgumentParser) -> None:
    """Adds `--data NAME=DIR`, which may be given several times."""
    from dsn_ray.data.catalog import EMBEDDED, published_names

    to.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"raw data root or prepared shards of {', '.join(published_names())} or folder:LABEL; "
        f"or one of the embedded {', '.join(EMBEDDED)} (default: these)",
    )


def add_config_arguments(to: argparse.ArgumentParser) -> None:
    """Adds `--recipe`, `--config F` and `--set section.key=value`."""
    to.add_argument("--recipe", help="settings to start from: paper (default) or release")
    to.add_argument("--config", type=Path, metavar="F", help="YAML file with settings")
    to.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="one setting, as in loss.lambda1=0.2; may be repeated",
    )
    to.add_argument(
        "--weights", metavar="FILE", help='ImageNet weights of the backbone, or "none" for random'
    )


def add_shape_arguments(to: argparse.ArgumentParser) -> None:
    """Adds the options that shape a run on the cluster."""
    group = to.add_argument_group("on the cluster")
    group.add_argument(
        "--workers", type=int, metavar="N", help="per training (2, or 1 with a GPU or less in all)"
    )
    group.add_argument("--gpus-per-worker", type=float, metavar="X", help="(1 where there are any)")
    group.add_argument("--cpus-per-worker", type=float, metavar="Y", help="(an equal share)")
    group.add_argument("--concurrent", type=int, metavar="K", help="trainings at a time")
    group.add_argument(
        "--wait", type=float, default=900, metavar="S", help="seconds for machines to come (900)"
    )
    group.add_argument(
        "--patience",
        type=float,
        default=600,
        metavar="S",
        help="seconds without a step until a worker is taken for hung and replaced (600)",
    )


def shape_of(parsed: argparse.Namespace) -> "Shape":
    """The options of `add_shape_arguments`.

    Raises:
        UserError: If one is out of range.
    """
    from dsn_ray.room import Shape

    lowest = {
        "workers": 1,
        "gpus_per_worker": 0,
        "cpus_per_worker": 0,
        "concurrent": 1,
        "wait": 0,
        "patience": 1,
    }
    for name, least in lowest.items():
        value = getattr(parsed, name)
        if value is not None and value < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {value:g}: at least {least} is needed.")
    return Shape(**{name: getattr(parsed, name) for name in lowest})


def add_run_arguments(to: argparse.ArgumentParser) -> None:
    """Adds `--name` and `--storage`, which say where a run's folder is."""
    to.add_argument("--name", metavar="N", help="of the run (default: what it runs, and the time)")
    to.add_argument("--storage", metavar="DIR_OR_URL", help="where runs go (default: runs)")
    to.add_argument("--resume", action="store_true", help="go on with the run of that name")
    to.add_argument(
        "--allow-changed",
        action="store_true",
        help="with --resume: go on although other options decide the numbers than before",
    )


def settings_of(parsed: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of `--config`, and those of `--set` and `--weights`, which go over all others.

    Raises:
        UserError: If a file cannot be read, or a setting in it is not allowed.
    """
    from dsn_ray.config import load_settings, parse_settings

    over = parse_settings(parsed.settings)
    if parsed.weights:
        over["network.weights"] = parsed.weights
    return load_settings(parsed.config) if parsed.config else {}, over


def parse_data(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Names and places of `--data`.

    Raises:
        UserError: If one is malformed or given twice.
    """
    from dsn_ray.data.catalog import parse_data_argument

    parsed = [parse_data_argument(text) for text in arguments]
    names = [name for name, _ in parsed]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--data {name} is given twice; label the second as folder:LABEL.")
    return parsed


def as_data(pairs: "Sequence[tuple[str, str | Path | None]]") -> list[tuple[str, str | None]]:
    """Names and places as `parse_data` gives them, of those that Python gave."""
    return parse_data([name if place is None else f"{name}={place}" for name, place in pairs])


def check_writable(folder: Path, where: str) -> None:
    """Makes sure that files can be written into a folder, which is made where it is missing.

    Raises:
        UserError: If not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{where} {folder}: cannot be written to ({error.strerror}).") from None


def check_file(out: Path | None, option: str) -> None:
    """Makes sure that the file an option names can be written, before the work begins.

    Raises:
        UserError: If not.
    """
    if out is None:
        return
    check_writable(out.parent, option)
    if out.is_dir():
        raise UserError(f"{option} {out}: this is a folder; name a file.")


@contextmanager
def progress_bar(console: "Console", text: str) -> "Iterator[Callable[[int, int], None]]":
    """A bar that is told how much is done and how much there is; nothing without a terminal."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def quiet_log(name: str, folder: Path | None = None) -> "Iterator[Console]":
    """Keeps Ray's chatter in a log file whose path is printed; errors gain that path as `log`.

    Args:
        name: of the log file.
        folder: where it goes; None for the temporary folder.
    """
    from dsn_ray.runtime import chatter_to

    log = (folder or Path(tempfile.gettempdir())) / f"{name}.log"
    if folder is None:
        log = log.with_stem(f"dsn-ray-{name}-{os.getpid()}")
    try:
        with chatter_to(log) as console:
            console.print(f"Ray's messages go to {log}", style="dim", soft_wrap=True)
            try:
                yield console
            except UserError:
                raise
            except Exception:
                traceback.print_exc()
                raise
    except UserError:
        raise
    except Exception as error:
        error.log = log  # type: ignore[attr-defined]
        raise


def counted(amount: float, noun: str) -> str:
    """An amount and its noun, as in "1 worker", "2 workers" and "0.5 GPU"."""
    number = f"{amount:.0f}" if amount == int(amount) else f"{amount:g}"
    return f"{number} {noun}{'s' * (amount > 1 or amount == 0)}"


def _first_line(error: BaseException) -> str:
    """What the innermost cause says: Ray wraps errors, and their text, several times."""
    cause: Any = error
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    lines = [line for line in str(cause).splitlines() if line.strip()] or [""]
    if lines[0].startswith("Traceback"):
        return lines[-1]
    return f"{type(cause).__name__}: {lines[0]}"
