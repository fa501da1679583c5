"""Draws the README's pictures from a run of the demonstration.

Example:
    python docs/pictures.py runs/lambdas-...
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from numpy.typing import NDArray
from playwright.sync_api import Page, sync_playwright

from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.data.openmoji import open_embedded, render
from dsn_ray.data.storage import cache_folder
from dsn_ray.gallery import embed, open_gallery
from dsn_ray.report import write_report
from dsn_ray.web import make_app

HERE = Path(__file__).parent
DATA = "openmoji-things"
DRAWN = "glasses"


def export_photos(folder: Path) -> None:
    """The unseen classes' photos as files."""
    for record in open_embedded(DATA).records:
        if record.split == "unseen" and record.domain == "photo":
            name = Path(record.path).with_suffix(".png").name
            file = folder / record.class_name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(render(record.path))


def serve(checkpoint: Path, photos: Path) -> uvicorn.Server:
    """The page, without Ray: one process is enough for a picture."""
    opened = open_checkpoint(checkpoint)
    network = opened.network()

    async def feature(sketch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return embed(network, [sketch], photos=False)[0]

    gallery = open_gallery(opened, network, photos, cache_folder())
    app = make_app(gallery, opened.config.data.px, feature)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    return server


def shoot(page: Page, name: str) -> None:
    """Saves what the page shows."""
    page.screenshot(path=HERE / f"{name}.png")


def main(run: Path) -> None:
    """Draws them."""
    rows = json.loads((run / "final.json").read_text(encoding="utf-8"))["rows"]
    checkpoint = Path(next(row["checkpoint"] for row in rows if row["dataset"] == DATA))
    report = write_report(run)
    shutil.copy(run / "report" / f"retrievals-{DATA}.png", HERE / "retrieval.png")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        export_photos(Path(folder))
        server = serve(checkpoint, Path(folder))
        port = server.servers[0].sockets[0].getsockname()[1]
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 660})
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_role("button", name=DRAWN).click()
        page.locator("#photos img").nth(11).wait_for()
        page.wait_for_load_state("networkidle")
        page.evaluate("window.scrollTo(0, 0)")
        shoot(page, "page")
        page.set_viewport_size({"width": 1200, "height": 900})
        page.goto(report.resolve().as_uri())
        page.get_by_role("heading", name="The search").evaluate("e => e.scrollIntoView()")
        shoot(page, "report")
        browser.close()
        server.should_exit = True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
