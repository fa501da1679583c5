"""How long a search takes through the page's server, alone and with twenty people drawing.

The photos are noise, 10,000 of them; their features are computed once and kept in `--work`.

Example:
    python -m benchmarks.page --checkpoint C --work .bench
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

PHOTOS, DRAWERS, SEARCHES = 10_000, 20, 15
NO_LIMITS = httpx.Limits(max_connections=None)
REST = 0.25  # seconds that a hand rests until the page searches


def make_photos(folder: Path) -> None:
    """Writes those that are missing."""
    random = np.random.default_rng(0)
    for number in range(PHOTOS):
        coarse = random.integers(0, 256, (6, 6, 3), np.uint8)
        file = folder / f"{number % 100:02}" / f"{number}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(file)


def drawing(number: int, to: Path) -> bytes:
    """A sketch of a few random lines, as large as the page sends it."""
    random = np.random.default_rng(number)
    picture = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        pen.line([tuple(p) for p in random.integers(20, 235, (5, 2)).tolist()], "black", 3)
    file = to / f"small{number}.png"
    picture.save(file)
    return file.read_bytes()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parsed = parser.parse_args()
    make_photos(parsed.work / "photos")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dsn_ray.serve", "--checkpoint", parsed.checkpoint]
    server = subprocess.Popen(
        [*command, "--gallery", str(parsed.work / "photos"), "--port", str(port)],
        env=os.environ | {"XDG_CACHE_HOME": str(parsed.work.resolve() / "cache")},
    )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60, limits=NO_LIMITS
        ) as client:
            while True:
                try:
                    if client.get("/healthz").status_code == 200:
                        break
                except httpx.TransportError:
                    if server.poll() is not None:
                        raise
                time.sleep(1)
            sketches = [drawing(number, parsed.work) for number in range(DRAWERS)]

            def search(sketch: bytes) -> tuple[float, int, list[int]]:
                started = time.perf_counter()
                answer = client.post("/search?top=20", content=sketch)
                took = time.perf_counter() - started
                found = answer.json().get("photos", [])
                return took, answer.status_code, [photo["photo"] for photo in found]

            def ask(person: int) -> list[tuple[float, int]]:
                return [search(sketches[person])[:2] for _ in range(SEARCHES)]

            def draw(person: int) -> list[tuple[float, int]]:
                """As the page does: it searches when a hand rests, and keeps photos it has."""
                done, seen = [], set[int]()
                time.sleep(person * REST / DRAWERS)
                for number in range(SEARCHES):
                    took, status, photos = search(sketches[(person + number) % DRAWERS])
                    done.append((took, status))
                    for photo in set(photos) - seen:
                        client.get(f"/photos/{photo}").raise_for_status()
                    seen |= set(photos)
                    time.sleep(REST)
                return done

            ask(0)
            rows = {"1, without a pause": ask(1)}
            for title, act in {"without a pause": ask, "drawing": draw}.items():
                with ThreadPoolExecutor(DRAWERS) as people:
                    together = [one for many in people.map(act, range(DRAWERS)) for one in many]
                rows[f"{DRAWERS}, {title}"] = together
    finally:
        server.terminate()
        server.wait(120)
    table = Table("people", "searches", "median", "slowest", "errors")
    for title, done in rows.items():
        times = [took * 1e3 for took, _ in done]
        errors = sum(status != 200 for _, status in done)
        table.add_row(
            *(title, str(len(done)), f"{statistics.median(times):.0f} ms"),
            *(f"{max(times):.0f} ms", str(errors)),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
