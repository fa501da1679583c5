import io
import os

import pytest
from rich.console import Console

from dsn_ray.errors import UserError
from dsn_ray.runtime import (
    Resources,
    Shape,
    allot,
    chatter_to,
    ray_cluster,
    refuse_local_storage_on_many_nodes,
)


def said():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def connected(attached):
    with ray_cluster() as dashboard:
        yield dashboard


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(), Resources(2, 1.0, 0.0, 1)),
        (Shape(workers=1), Resources(1, 2.0, 0.0, 1)),
        (Shape(workers=4), Resources(4, 0.5, 0.0, 1)),
        (Shape(concurrent=2), Resources(2, 0.5, 0.0, 2)),
        (Shape(cpus_per_worker=0.25), Resources(2, 0.25, 0.0, 1)),
    ],
)
def test_the_machines_cpus_are_shared_out(connected, shape, expected):
    assert allot(shape, said()) == expected


def test_what_is_missing_is_said(connected):
    with pytest.raises(UserError, match="needs 6 CPUs, but this Ray cluster has 2"):
        allot(Shape(workers=3, cpus_per_worker=2), said())
    with pytest.raises(UserError, match="needs 1 GPUs, but this Ray cluster has 0"):
        allot(Shape(workers=2, gpus_per_worker=0.5), said())


def test_one_node_may_keep_its_checkpoints_itself(connected):
    refuse_local_storage_on_many_nodes("runs")
    assert connected.startswith("http://127.0.0.1:")
    assert "ray get-auth-token" in connected


def test_an_address_where_nobody_answers(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="No Ray cluster answers at"), ray_cluster():
        pass


def test_resources_on_one_line():
    assert str(Resources(2, 1.0, 0.0, 1)) == ("1 training at a time, each on 2 workers with 1 CPU")
    assert str(Resources(1, 4.0, 0.5, 3)) == (
        "3 trainings at a time, each on 1 worker with 4 CPU and 0.5 GPU"
    )
    assert Resources(2, 1.0, 0.0, 1).per_worker == {"CPU": 1.0}


def test_chatter_goes_to_the_file_and_comes_back(tmp_path, capfd):
    log = tmp_path / "chatter.log"
    with chatter_to(log) as console:
        os.write(1, b"from below\n")
        os.write(2, b"from its neighbour\n")
        console.print("for people")
    print("afterwards")
    captured = capfd.readouterr()
    assert captured.out == "for people\nafterwards\n"
    assert "from below" in log.read_text()
    assert "from its neighbour" in log.read_text()
