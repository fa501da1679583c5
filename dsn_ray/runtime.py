"""Ray's start-up: attach or start, keep its chatter in a file; and work in other processes."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from dsn_ray.errors import UserError, warnings_shown_by

_RAY_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # Train runs appear in the dashboard
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster that a command starts reports to nobody
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run keeps its own; one of them wants torch
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, which says how to go on
}
_ON_ONE_NODE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes it away with a warning
}
_WIDTH_OF_FILES = 140
_OTHER_VERSION = "Version mismatch: "  # as Ray's error begins


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Attaches to the running Ray cluster, or starts one on this machine and ends it afterwards.

    The running one is that of `RAY_ADDRESS` or, without it, of `ray start` on this machine.

    Yields:
        The dashboard's address, and how to get the token that it asks for.

    Raises:
        UserError: If `RAY_ADDRESS` is no address, cannot be reached, or wants a token that is
            not given.
    """
    own = {name: value for name, value in _RAY_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(own)
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        given = os.environ.get("RAY_ADDRESS")
        address = _running_cluster(given)
        if address is None:
            alone = {n: value for n, value in _ON_ONE_NODE.items() if n not in os.environ}
            own |= alone | _own_address()
            os.environ.update(own)
            context = ray.init(
                address="local",
                include_dashboard=True,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        else:
            context = _attach(address, given)
        # SIGTERM, which ends Ray's jobs, does what Ctrl-C does: Ray's own handler leaves the
        # process from within whatever it is doing.
        _on_sigterm(signal.default_int_handler)
        quiet_data()
        if not context.dashboard_url:
            yield "not running"
        else:
            yield f"http://{context.dashboard_url} (its token: ray get-auth-token)"
    finally:
        gc.collect()  # what Ray Data left closes while Ray is there
        ray.shutdown()
        _on_sigterm(before)
        for name in own:
            os.environ.pop(name, None)


def _on_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _running_cluster(given: str | None) -> str | None:
    """The address of the cluster to attach to; None where none runs.

    Raises:
        UserError: If `RAY_ADDRESS`, where it is given, is no address.
    """
    from ray._private import services

    try:
        address: str | None = services.canonicalize_bootstrap_address(None)
    except ConnectionError:
        raise UserError(f"RAY_ADDRESS={given}: no Ray cluster runs on this machine.") from None
    except ValueError:
        raise UserError(
            f"RAY_ADDRESS={given}: this is no HOST:PORT, such as `ray start` prints; an address "
            "that begins with http:// is one for `ray job submit --address`."
        ) from None
    if address is not None and not given and not answers(address):
        return None  # `ray start` left its address behind; nobody is there any more
    return address


def _own_address() -> dict[str, str]:
    """Environment variables that give a cluster of our own an address known beforehand.

    Ray's State API, by which Train frees what a stopped trial held, looks for a cluster on the
    machine unless it is told which one: of two it may take the other's.
    """
    from ray._private import ray_constants

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {
        ray_constants.GCS_PORT_ENVIRONMENT_VARIABLE: str(port),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }


def _attach(address: str, given: str | None) -> Any:
    import ray

    if not answers(address):
        raise UserError(f"No Ray cluster answers at {address}: is RAY_ADDRESS right?")
    try:
        # By itself Ray takes this machine's token only for a cluster that it found by itself.
        return ray.init(
            address=address if given else "auto",
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": _RAY_ENVIRONMENT},
        )
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            f"The Ray cluster at {address} did not let us in: {_reason(error)}"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith(_OTHER_VERSION):
            raise
        versions = " ".join(str(error).removeprefix(_OTHER_VERSION).split())
        raise UserError(
            f"The Ray cluster at {address} has other versions than this machine. {versions}; "
            "install the same ones."
        ) from error


def people_console(file: IO[str] | None = None) -> Console:
    """A console for people, on standard output where no other file is given.

    A file or a pipe has no width of its own; tables get room there.
    """
    console = Console(file=file, highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_FILES
    return console


@contextmanager
def chatter_to(log: Path) -> Iterator[Console]:
    """Sends all that Ray and its libraries print to a file, and keeps the terminal for people.

    Args:
        log: the file, appended to.

    Yields:
        A console on what standard output was.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as sink, os.fdopen(os.dup(1), "w") as terminal:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        console = people_console(terminal)
        try:
            with warnings_shown_by(lambda text: console.print(text, soft_wrap=True)):
                yield console
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in enumerate(saved, start=1):
                os.dup2(original, number)
                os.close(original)


def answers(address: str) -> bool:
    """Whether somebody listens there; known within seconds, where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def _reason(error: BaseException) -> str:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any("AuthToken" in str(e) or "Authentication" in type(e).__name__ for e in causes):
        return (
            "it asks for a token; set RAY_AUTH_MODE=token, with the cluster's token in "
            "~/.ray/auth_token."
        )
    return f"{str(error).splitlines()[0].rstrip('.')}."


def apart(work: Callable[..., Any], results: int = 1) -> Any:
    """A remote function in a process of its own on this machine, which ends with all it loaded.

    It has this process's working folder and environment: those of a cluster may be others.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = Path.cwd()
    environment = {n: value for n, value in os.environ.items() if not n.startswith("RAY_")}

    def as_here(*arguments: Any) -> Any:
        os.chdir(folder)
        os.environ.update(environment)
        return work(*arguments)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    wanted = {"num_cpus": 0, "num_returns": results, "max_calls": 1, "scheduling_strategy": here}
    return ray.remote(**wanted)(as_here)


def fetched(references: Any) -> Any:
    """What `ray.get` gives; a task's UserError is raised as it was there."""
    import ray

    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as failed:
        if isinstance(failed.cause, UserError):
            raise failed.cause from None
        raise


def quiet_data() -> None:
    """Keeps Ray Data's bars out of what this process prints."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
