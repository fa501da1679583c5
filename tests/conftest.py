"""What several tests share: one Ray cluster, and a small data set of drawings."""

import json
import logging
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
ALLOWED_SKIPS = (
    *("no GPU", "no namespaces", "no C++ compiler", "no time left"),
    *(f"{package} is not installed" for package in ("wordnet-base", "chromium", "prometheus")),
)
SHAPES = ("circle", "square", "triangle", "cross", "ladder", "zigzag", "diamond", "arrow")
UNSEEN = ("zigzag", "diamond", "arrow")
PER_CLASS = 6

logging.raiseExceptions = False  # Ray's handlers outlive the streams that pytest lends to a test


def pytest_configure():
    """As commands have it: Ray starts only when asked to, and Ctrl-C means something.

    In a background job of a shell too.
    """
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup():
    """Where the whole run has a deadline, what has not begun by then is skipped."""
    if time.time() > float(os.environ.get("DSN_RAY_TEST_UNTIL", "inf")):
        pytest.skip("no time left")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the real data is there, a test that skips has failed, but for a few reasons."""
    report = yield
    if report.skipped and SHARED_DATA.is_dir():
        reason = str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped although the data is there: {reason}"
    return report


def processes_with(variable: str, title: str = "") -> list[int]:
    """The processes that a test started: those with its mark `NAME=VALUE` in their environment.

    Args:
        variable: the mark.
        title: only those whose command line contains this.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = variable.encode() in (process / "environ").read_bytes().split(b"\0")
            if marked and title.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture(scope="session")
def ray_address():
    """A running Ray cluster of two CPUs, as `ray start` leaves one; commands attach to it."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "1"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_port": port,
            "object_store_memory": 300 * 2**20,
        },
    )
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def attached(ray_address, monkeypatch):
    """Commands of this test find the shared cluster."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)


@pytest.fixture
def connected(ray_address):
    """This process is a driver of the shared cluster."""
    import ray

    ray.init(address=ray_address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder for commands, with what earlier tests prepared."""
    return tmp_path_factory.mktemp("cache")


def rows_by_key(rows):
    return {(r["codes"], r["protocol"], r["metric"]): r["value"] for r in rows}


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """A data set in the `folder:` layout: eight shapes, filled as photos and outlined as sketches.

    One of its photos is no picture.
    """
    root = tmp_path_factory.mktemp("drawings")
    for shape in SHAPES:
        for number in range(PER_CLASS):
            for domain in ("sketch", "photo"):
                draw(root, domain, shape, number)
    (root / "photo" / "circle" / "broken.png").write_text("this is no picture")
    (root / "unseen.txt").write_text("\n".join(UNSEEN))
    return root


@pytest.fixture(scope="session")
def prepared(ray_address, tmp_path_factory):
    """Large pictures, by file and domain, and what shards hold of each.

    They are as large as TU-Berlin's sketches, as the page's canvas, and photos that are no squares.
    """
    import pyarrow.parquet as pq
    import ray

    from dsn_ray.data.catalog import open_source
    from dsn_ray.data.preparing import prepare_shards
    from dsn_ray.data.roots import LocalRoot
    from dsn_ray.data.storage import Folder

    root, out = (tmp_path_factory.mktemp(name) for name in ("large", "shards"))
    for split in ("circle", "square"):
        for domain, size in (
            ("sketch", (512, 512)),
            ("sketch", (1111, 1111)),
            ("photo", (700, 500)),
        ):
            picture = Image.new("RGB", size, "white")
            pen = ImageDraw.Draw(picture)
            for line in np.random.default_rng(len(split)).integers(0, min(size), (30, 4)):
                pen.line(line.tolist(), "black" if domain == "sketch" else "purple", 5)
            file = root / domain / split / f"{size[0]}.{'png' if domain == 'sketch' else 'jpg'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    (root / "unseen.txt").write_text("square\n")
    ray.init(address=ray_address, log_to_driver=False)
    prepare_shards(open_source("folder:large", LocalRoot(root)), Folder.at(out))
    ray.shutdown()
    return {
        (root / row["path"], row["path"].partition("/")[0]): row["encoded"]
        for file in out.glob("split=*/domain=*/*.parquet")
        for row in pq.read_table(file, columns=["path", "encoded"], partitioning=None).to_pylist()
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint folder of a network before its first step, for pictures of 32 px."""
    import torch

    from dsn_ray.config import Config
    from dsn_ray.model import build_network, imagenet_weights

    config = Config().with_settings({"network.backbone": "efficientnet_lite0", "data.px": 32})
    torch.manual_seed(0)
    network = build_network(config.network, 2, imagenet_weights("efficientnet_lite0"))
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.save({"network": network.state_dict()}, folder / "state.pt")
    about = {"data": "folder:toy", "root": None, "config": config.model_dump(mode="json")}
    (folder / "about.json").write_text(json.dumps({**about, "classes": ["circle", "cross"]}))
    return folder


def draw(root: Path, domain: str, shape: str, number: int) -> None:
    rng = np.random.default_rng((SHAPES.index(shape), number, domain == "photo"))
    corners = {
        "circle": [(np.cos(a), np.sin(a)) for a in np.linspace(0, 6.28, 24)],
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1), (1, 1), (-1, 1)],
        "cross": [(-1, -1), (1, 1), (0, 0), (1, -1), (-1, 1), (0, 0)],
        "ladder": [(-1, -1), (-1, 1), (1, 1), (1, -1), (0, -1), (0, 1)],
        "zigzag": [(-1, 1), (-0.5, -1), (0, 1), (0.5, -1), (1, 1)],
        "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
        "arrow": [(-1, 0), (1, 0), (0.4, -0.6), (1, 0), (0.4, 0.6), (1, 0)],
    }[shape]
    size = rng.uniform(14, 24)
    points = [(32 + size * x + rng.normal(), 32 + size * y + rng.normal()) for x, y in corners]
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    if domain == "photo":
        pen.polygon(points, fill=tuple(int(v) for v in rng.integers(0, 200, 3)), outline="black")
    else:
        pen.line([*points, points[0]], fill="black", width=2)
    path = root / domain / shape / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
