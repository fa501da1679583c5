import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from dsn_ray.errors import UserError
from dsn_ray.runtime import apart, chatter_to, fetched, ray_cluster


def test_an_address_where_nobody_answers(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="No Ray cluster answers at"), ray_cluster():
        pass


@pytest.mark.parametrize("given", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "head"])
def test_an_address_of_the_wrong_form(monkeypatch, given):
    monkeypatch.setenv("RAY_ADDRESS", given)
    with (
        pytest.raises(UserError, match=f"RAY_ADDRESS={given}: this is no HOST:PORT"),
        ray_cluster(),
    ):
        pass


def test_no_cluster_to_find(monkeypatch):
    from ray._private import services

    def nobody(*_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", nobody)
    with pytest.raises(UserError, match="RAY_ADDRESS=auto: no Ray cluster runs"), ray_cluster():
        pass


def test_a_cluster_of_another_version(monkeypatch):
    from ray._private.utils import check_version_info

    def other(**_):
        check_version_info({"ray_version": "2.0.0", "python_version": "3.9.1"}, "node 127.0.0.1")

    monkeypatch.setattr(ray, "init", other)
    with socket.create_server(("", 0)) as listening:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
        said = r"started with: Ray: 2\.0\.0 Python: 3\.9\.1"
        with pytest.raises(UserError, match=said), ray_cluster():
            pass


def left_behind(address, monkeypatch):
    """What `ray start` on this machine has left behind."""
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = services.canonicalize_bootstrap_address
    monkeypatch.setattr(
        services,
        "canonicalize_bootstrap_address",
        lambda given, *rest, **more: found(given, *rest, **more) if given else address,
    )


def test_an_address_that_an_ended_cluster_left_behind_is_no_cluster(monkeypatch):
    left_behind("127.0.0.1:1", monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.delenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", raising=False)
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "0")
    with ray_cluster() as dashboard:
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert ray.cluster_resources()["CPU"] >= 1
        assert dashboard.startswith("http://127.0.0.1:")
    assert signal.getsignal(signal.SIGTERM) is before
    assert "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S" not in os.environ
    assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "0"


@ray.remote(num_cpus=0)
def nodes_by_state_api():
    from ray.util.state import list_nodes

    return [node.node_id for node in list_nodes()], ray.get_runtime_context().get_node_id()


def test_of_two_clusters_on_a_machine_each_knows_its_own(ray_address, monkeypatch):
    left_behind(None, monkeypatch)
    with ray_cluster():
        assert os.environ["RAY_ADDRESS"] != ray_address
        listed, own = ray.get(nodes_by_state_api.remote())
        assert listed == [own]
    assert "RAY_ADDRESS" not in os.environ


def test_chatter_goes_to_the_file_and_comes_back(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    log = tmp_path / "chatter.log"
    with chatter_to(log) as console:
        os.write(1, b"from below\n")
        os.write(2, b"from its neighbour\n")
        console.print("for people")
        assert console.width == 140
    print("afterwards")
    captured = capfd.readouterr()
    assert captured.out == "for people\nafterwards\n"
    assert "from below" in log.read_text()
    assert "from its neighbour" in log.read_text()


LEAVES = """
import gc, os
from dsn_ray import cli
from dsn_ray.errors import UserError

@cli.command
def main(arguments):
    from dsn_ray.runtime import ray_cluster
    with ray_cluster():
        import ray.data
        numbers = ray.data.from_items([{"n": n} for n in range(8)], override_num_blocks=8)
        batches = iter(numbers.iter_batches(batch_size=1))
        next(batches)
        os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
        raise UserError("in the middle")

print(main([]))
gc.collect()
print("went on")
"""


def test_what_a_command_leaves_of_its_data_does_not_start_ray_again(attached):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ENABLE_AUTO_CONNECT"}
    done = subprocess.run(
        [sys.executable, "-c", LEAVES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert done.stdout.split("\n", 1) == ["2", "went on\n"]


def process():
    return os.getpid()


def surroundings():
    return Path.cwd(), os.environ.get("GIVEN")


def divided(one, other):
    return divmod(one, other)


def refuse(what):
    raise UserError(f"{what} cannot be used.")


def test_work_apart_has_a_process_of_its_own_and_its_refusals_arrive_as_such(
    connected, tmp_path, monkeypatch
):
    one, other = (fetched(apart(process).remote()) for _ in range(2))
    assert len({one, other, os.getpid()}) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIVEN", "here")
    assert fetched(apart(surroundings).remote()) == (tmp_path, "here")
    assert fetched(list(apart(divided, results=2).remote(7, 2))) == [3, 1]
    with pytest.raises(UserError) as refused:
        fetched(apart(refuse).remote("This"))
    assert str(refused.value) == "This cannot be used."
    with pytest.raises(ray.exceptions.RayTaskError, match="ZeroDivisionError"):
        fetched(apart(divided).remote(1, 0))
