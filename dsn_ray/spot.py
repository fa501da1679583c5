"""The node provider of `cluster/gpu.yaml`: AWS's spot market, and on demand where that has nothing.

Ray 2.60 by itself asks for a refused machine again and again, whatever other kinds there are.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

_NO_SPOT = ("InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow")
_MARKET = "InstanceMarketOptions"


class SpotThenOnDemand(AWSNodeProvider):
    """Ray's own provider for AWS, which starts on demand what the spot market refuses."""

    def _create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        try:
            return dict(super()._create_node(node_config, tags, count))
        except NodeLaunchException as error:
            if _MARKET not in node_config or error.category not in _NO_SPOT:
                raise
            logging.getLogger(__name__).warning("%s: on demand then.", error)
        on_demand = {key: value for key, value in node_config.items() if key != _MARKET}
        return dict(super()._create_node(on_demand, tags, count))
