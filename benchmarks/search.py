"""How long a search takes in galleries of a thousand to ten million photos.

Example:
    python -m benchmarks.search
"""

import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from dsn_ray.retrieval.index import Codes, Index, at_length_one

DIM = 64
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
REPEATS = 9
CODES: tuple[Codes, ...] = ("real", "binary")


def seconds(index: Index, queries: np.ndarray, codes: Codes) -> float:
    """Median of several searches for ten photos each."""
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        index.search(queries, 10, codes)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def main() -> None:
    """Prints the table."""
    random = np.random.default_rng(0)
    table = Table("photos", "codes", "fitting codes", "one sketch", "each of 20 at once")
    for size in SIZES:
        index = Index(at_length_one(random.standard_normal((size, DIM), np.float32)))
        queries = random.standard_normal((20, DIM), np.float32)
        started = time.perf_counter()
        _ = index.binary
        fitting = {"real": "", "binary": f"{time.perf_counter() - started:.1f} s"}
        for codes in CODES:
            one, twenty = (seconds(index, queries[:n], codes) for n in (1, 20))
            table.add_row(
                *(f"{size:,}", codes, fitting[codes]),
                *(f"{one * 1e3:.2f} ms", f"{twenty / 20 * 1e3:.2f} ms"),
            )
    Console().print(table)


if __name__ == "__main__":
    main()
