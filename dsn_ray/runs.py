"""Where a run keeps what it makes: its folder and storage, and how one is gone on with."""

import dataclasses
import fcntl
import os
import platform
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import yaml

from dsn_ray.cli import check_writable
from dsn_ray.errors import Interrupted, UserError
from dsn_ray.yaml_files import load_yaml

if TYPE_CHECKING:
    from dsn_ray.room import Shape

DRIVERS = "drivers.txt"
"""A line for each process that has worked on a run; the one at work holds a lock on the file."""
RECORDS = (
    *("config.yaml", "study.journal", "trials.jsonl", "epochs.jsonl", "sessions.jsonl"),
    *("final.json", "final.unfinished.json", DRIVERS),
)
"""What a run's folder must have, beside its storage, for the run to go on."""
_COPY_EVERY = 10  # seconds


@dataclass(frozen=True)
class Run:
    """Where a run keeps what it makes.

    Attributes:
        folder: the run's folder on this machine.
        storage: folder or URL for checkpoints and Ray's state.
    """

    folder: Path
    storage: str

    @property
    def options(self) -> list[str]:
        """The options that name this run."""
        parent = self.storage.rpartition("/")[0]
        usual = parent == str(Path("runs").absolute())
        return ["--name", self.folder.name] + ([] if usual else ["--storage", parent])


def find_run(name: str, storage: str | None) -> Run:
    """The places of a run, whether it exists or not.

    Raises:
        UserError: If the name is more than a name.
    """
    if Path(name).name != name or name.startswith("."):
        raise UserError(f"--name {name}: this must be a plain name, without folders.")
    if storage is not None and "://" in storage:
        return Run(Path("runs").absolute() / name, f"{storage.rstrip('/')}/{name}")
    folder = Path(storage or "runs").absolute() / name
    return Run(folder, str(folder))


@contextmanager
def run_folder(name: str | None, stem: str, storage: str | None) -> Iterator[Run]:
    """Makes the folder of a new run, and takes it away if bad input stops the run at its start.

    Args:
        name: of the run; None for the stem and the time.
        stem: what is run.
        storage: folder or URL that holds runs; None for `runs` in the working folder.

    Raises:
        UserError: If the folder exists or cannot be made.
    """
    run = find_run(name or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}", storage)
    for place in (str(run.folder), run.storage):
        if _exists(place):
            raise UserError(
                f"--name {run.folder.name}: {place} exists already; choose another name, or give "
                "--resume to go on with it."
            )
    new = [folder for folder in run.folder.parents if not folder.exists()]
    try:
        check_writable(run.folder.parent, "--storage")
        _check_rights(run.storage)
        run.folder.mkdir()
        yield run
    except UserError:
        if run.folder.exists() and {path.name for path in run.folder.iterdir()} <= {
            DRIVERS,
            "config.yaml",
            "ray.log",
            "sessions.jsonl",
        }:
            shutil.rmtree(run.folder, ignore_errors=True)
        with suppress(OSError):  # something is there, or was never made
            for folder in new:
                folder.rmdir()
        raise


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Keeps other processes from a run for as long as this one works on it, or lives.

    Meanwhile its records are copied to its storage, so that another machine can go on with it.

    Raises:
        UserError: If another process is at work there.
    """
    with (run.folder / DRIVERS).open("a+", encoding="utf-8") as drivers:
        try:
            fcntl.flock(drivers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            drivers.seek(0)
            raise UserError(
                f"{run.folder}: {drivers.read().splitlines()[-1]}, is at work on this run; wait "
                "for its end, or stop it first."
            ) from None
        except OSError:
            pass  # a file system without locks
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        drivers.write(f"process {os.getpid()} of {platform.node()}, since {since}\n")
        drivers.flush()
        with _copied(run):
            yield


@contextmanager
def _copied(run: Run) -> Iterator[None]:
    """Copies a run's records to its storage again and again, if that is not the folder itself."""
    if run.storage == str(run.folder):
        yield
        return
    copied: dict[str, bytes] = {}
    ended = threading.Event()

    def copy() -> None:
        over = False
        while not over:
            over = ended.wait(_COPY_EVERY if copied else 1)
            with suppress(OSError):  # the next time comes
                _copy_records(run, copied)

    copier = threading.Thread(target=copy, daemon=True)
    copier.start()
    try:
        yield
    finally:
        ended.set()
        copier.join()


def _copy_records(run: Run, copied: dict[str, bytes]) -> None:
    """Copies what has changed since `copied`, once a training has begun to write there."""
    from dsn_ray.data.storage import Folder

    there = Folder.at(run.storage)
    if not there.exists():
        return
    for name in RECORDS:
        path = run.folder / name
        if path.exists():
            lines = path.read_bytes()
            lines = lines[: lines.rfind(b"\n") + 1]  # the rest is being written
            if lines != copied.get(name):
                there.write(name, lines)
                copied[name] = lines
        elif there.holds(name):
            there.filesystem.delete_file(f"{there.path}/{name}")


def bring_records(run: Run) -> None:
    """Brings a run's records here, if another machine has gone on with it since.

    Raises:
        UserError: If the storage cannot be reached.
    """
    from dsn_ray.data.storage import Folder

    if run.storage == str(run.folder) or not _exists(run.storage):
        return
    there, here = Folder.at(run.storage), run.folder / DRIVERS
    if not there.holds(DRIVERS):
        return
    if here.exists() and here.read_bytes().startswith(there.read(DRIVERS)):
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        if there.holds(name):
            (run.folder / name).write_bytes(there.read(name))
        else:
            (run.folder / name).unlink(missing_ok=True)


@contextmanager
def resumable(module: str, run: Run, shape: "Shape", options: Sequence[str] = ()) -> Iterator[None]:
    """Says which command goes on with a run, in the shape it has, where it is stopped or fails.

    Raises:
        Interrupted: In place of `KeyboardInterrupt`, which Ctrl-C and SIGTERM are.
    """
    asked = [
        word
        for field in dataclasses.fields(shape)
        if (value := getattr(shape, field.name)) != field.default
        for word in ("--" + field.name.replace("_", "-"), f"{value:g}")
    ]
    words = ["python", "-m", module, "--resume", *run.options, *options, *asked]
    hint = f"Go on with: {shlex.join(words)}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(hint) from None
    except UserError:
        raise
    except Exception as error:
        error.add_note(hint)
        raise


def _exists(place: str) -> bool:
    from dsn_ray.data.storage import Folder

    try:
        return Folder.at(place).exists()
    except OSError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--storage {place}: it cannot be reached ({reason}).") from None


def _check_rights(storage: str, within: str = "") -> None:
    """Writes and deletes a folder where a URL points, as a run will, or within what is there.

    Raises:
        UserError: If that is not allowed.
    """
    from dsn_ray.data.storage import Folder

    if "://" not in storage:
        return
    folder = Folder.at(storage)
    folder = folder / within if within else folder
    try:
        folder.write("probe", b"")
        folder.remove()
    except OSError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--storage {storage}: it cannot be written to ({reason}).") from None


class Asked(Protocol):
    """What a run was asked for."""

    def tree(self) -> dict[str, Any]:
        """Its `config.yaml`: all that decides its numbers."""


AskedT = TypeVar("AskedT", bound=Asked)


def save_settings(asked: Asked, run: Run) -> None:
    """Writes a run's `config.yaml`, from which it can be resumed."""
    text = yaml.safe_dump(asked.tree(), sort_keys=False, allow_unicode=True)
    unfinished = run.folder / "config.unfinished.yaml"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(run.folder / "config.yaml")


def resumed(
    name: str | None,
    storage: str | None,
    allow_changed: bool,
    parse: Callable[[Any], AskedT],
    ask: Callable[[AskedT], AskedT],
) -> tuple[Run, AskedT]:
    """The run that `--resume --name N` goes on with, and what is asked of it.

    Args:
        name: of the run.
        storage: as of `find_run`.
        allow_changed: whether something else may be asked than before.
        parse: reads the contents of `config.yaml`.
        ask: what is asked now, given what was.

    Raises:
        UserError: If there is no such run, its file is broken, something else is asked although
            that is not allowed, or its storage cannot be written to.
    """
    if name is None:
        raise UserError("--resume needs --name, the run to go on with.")
    run = find_run(name, storage)
    bring_records(run)
    path = run.folder / "config.yaml"
    if not path.exists():
        raise UserError(f"--resume: {path.parent} is not the folder of a run.")
    try:
        kept = parse(load_yaml(path)[0])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is broken, so this run cannot be resumed.") from None
    asked = ask(kept)
    changed = list(_differences(kept.tree(), asked.tree()))
    if changed and not allow_changed:
        raise UserError(
            f"--resume: {path} and the options disagree on {'; '.join(changed[:3])}"
            f"{' and more' if len(changed) > 3 else ''}; leave these options out, give "
            "--allow-changed to go on with what they say, or choose another --name."
        )
    check_writable(run.folder, "--name")
    _check_rights(run.storage, "probe")
    return run, asked


def _differences(kept: Any, asked: Any, name: str = "") -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(asked, dict):
        for key in {**kept, **asked}:
            below = f"{name}.{key}" if name else str(key)
            yield from _differences(kept.get(key), asked.get(key), below)
    elif kept != asked:
        yield f"{name} ({kept}, now {asked})"
