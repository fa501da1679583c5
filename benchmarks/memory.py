"""How much memory a benchmark takes, over all processes of the machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


@contextmanager
def memory_watched(kind: Literal["Pss", "Pss_Anon"]) -> Iterator[list[float]]:
    """Gains the GiB by which the memory of all processes rose meanwhile, at its peak.

    Args:
        kind: all of their proportional set size, or their own memory alone, without what lies in
            shared memory, such as the object store, and in files.
    """

    def in_use() -> int:
        total = 0
        for rollup in Path("/proc").glob("[0-9]*/smaps_rollup"):
            try:
                lines = rollup.read_text().splitlines()
            except OSError:
                continue
            total += sum(int(x.split()[1]) for x in lines if x.startswith(f"{kind}:"))
        return total

    before, most, done = in_use(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(1.0):
            most = max(most, in_use())

    watcher = threading.Thread(target=watch)
    watcher.start()
    risen: list[float] = []
    try:
        yield risen
    finally:
        done.set()
        watcher.join()
    risen.append(max(0, most - before) / 2**20)
