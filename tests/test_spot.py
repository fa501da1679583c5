"""AWS's spot market and on-demand machines, with Ray's own provider and an EC2 of our own."""

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from tests.data.trees import write

BOTO = {
    "boto3/__init__.py": "from boto3 import exceptions; __version__ = '9'",
    "boto3/exceptions.py": "class ResourceNotExistsError(Exception): ...",
    "boto3/resources/__init__.py": "",
    "boto3/resources/base.py": "class ServiceResource: ...",
    "botocore/__init__.py": "from botocore import exceptions",
    "botocore/client.py": "class BaseClient: ...",
    "botocore/config.py": "class Config: ...",
    "botocore/exceptions.py": (
        "class ClientError(Exception):\n"
        "    def __init__(self, code):\n"
        "        self.response = {'Error': {'Code': code, 'Message': code}}"
    ),
}


def forget(monkeypatch):
    """Has them imported anew."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("boto3", "botocore") or "._private.aws" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "dsn_ray.spot", raising=False)


@pytest.fixture
def provider(tmp_path, monkeypatch):
    """The provider, and what it asked EC2 for; EC2 refuses markets as it is told to."""
    for name, text in BOTO.items():
        write(tmp_path / name, text)
    forget(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    spot, botocore = (importlib.import_module(name) for name in ("dsn_ray.spot", "botocore"))
    made = object.__new__(spot.SpotThenOnDemand)
    made.provider_config, made.cluster_name, made.cache_stopped_nodes = {}, "dsn-ray", False
    made.asked, made.refused = [], {}

    def create_instances(**asked):
        made.asked.append(asked)
        market = asked.get("InstanceMarketOptions", {}).get("MarketType")
        if market in made.refused:
            raise botocore.exceptions.ClientError(made.refused[market])
        machine = {"id": "i-1", "instance_id": "i-1", "state": {"Name": "pending"}}
        return [SimpleNamespace(**machine, state_reason=None)]

    made.ec2_fail_fast = SimpleNamespace(create_instances=create_instances)
    yield made
    forget(monkeypatch)


SPOT = {
    "InstanceType": "g6.12xlarge",
    "SubnetIds": ["a", "b"],
    "InstanceMarketOptions": {"MarketType": "spot"},
}


def start(provider, config=SPOT):
    return provider.create_node(dict(config), {"ray-node-name": "worker"}, 1)


def test_the_spot_market_is_asked_first(provider):
    assert list(start(provider)) == ["i-1"]
    assert [asked["InstanceMarketOptions"] for asked in provider.asked] == [{"MarketType": "spot"}]


@pytest.mark.parametrize(
    "code", ["InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"]
)
def test_what_it_refuses_is_started_on_demand(provider, code):
    provider.refused["spot"] = code
    assert list(start(provider)) == ["i-1"]
    last = provider.asked[-1]
    assert "InstanceMarketOptions" not in last
    assert (last["InstanceType"], last["SubnetId"]) == ("g6.12xlarge", "a")
    assert {"Key": "Name", "Value": "worker"} in last["TagSpecifications"][0]["Tags"]
    assert {asked["SubnetId"] for asked in provider.asked[:-1]} == {"a", "b"}  # every zone first


def test_another_error_is_told(provider):
    provider.refused["spot"] = "UnauthorizedOperation"
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        start(provider)
    assert all("InstanceMarketOptions" in asked for asked in provider.asked)


def test_where_there_is_nothing_on_demand_either(provider):
    provider.refused = {"spot": "InsufficientInstanceCapacity", None: "VcpuLimitExceeded"}
    with pytest.raises(Exception, match="VcpuLimitExceeded"):
        start(provider)


def test_ray_by_itself_asks_the_spot_market_for_ever():
    """Where this fails, Ray has learned it, and `dsn_ray.spot` is not needed any more."""
    head = Instance(instance_id="h", instance_type="head", status=Instance.RAY_RUNNING)
    state = NodeState(ray_node_type_name="head", node_id=b"h", status=NodeStatus.RUNNING)
    markets = {"spot": 1, "on_demand": 0}
    types = {
        "head": NodeTypeConfig("head", 0, 1, resources={"CPU": 8}),
        **{
            name: NodeTypeConfig(name, 0, 2, priority=priority, resources={"CPU": 8, "GPU": 1})
            for name, priority in markets.items()
        },
    }
    monitor, launched = CloudResourceMonitor(), []
    for _ in range(3):
        asked = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=3,
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make({"GPU": 1})]
            ),
            current_instances=[AutoscalerInstance(im_instance=head, ray_node=state)],
            cloud_resource_availabilities=monitor.get_resource_availabilities(),
        )
        (launch,) = ResourceDemandScheduler(MagicMock()).schedule(asked).to_launch
        launched.append(launch.instance_type)
        failed = {"instance_id": "i", "new_instance_status": Instance.ALLOCATION_FAILED}
        monitor.notify([InstanceUpdateEvent(**failed, instance_type=launch.instance_type)])
    assert launched == ["spot"] * 3
