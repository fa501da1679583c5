"""How long a search takes in galleries of a thousand to ten million photos.

Example:
    python -m benchmarks.search
"""

import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from dsn_ray.retrieval.index import BinaryCodes, Codes, Index, at_length_one
from dsn_ray.retrieval.ranking import words

DIM = 64
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
REPEATS = 9


def index_of(size: int, random: np.random.Generator) -> Index:
    """Random features at length 1; their signs are the codes."""
    features = at_length_one(random.standard_normal((size, DIM), np.float32))
    codes = BinaryCodes(np.zeros(DIM), np.eye(DIM), words(features > 0))
    return Index(features, lambda features: codes)


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
    table = Table("photos", "codes", "one sketch", "each of 20 at once")
    for size in SIZES:
        index = index_of(size, random)
        queries = random.standard_normal((20, DIM), np.float32)
        for codes in ("real", "binary"):
            one, twenty = (seconds(index, queries[:n], codes) for n in (1, 20))
            table.add_row(f"{size:,}", codes, f"{one * 1e3:.2f} ms", f"{twenty / 20 * 1e3:.2f} ms")
    Console().print(table)


if __name__ == "__main__":
    main()
