"""What the tests of prepared data share."""

import pytest

from dsn_ray.data import parts
from dsn_ray.data.catalog import open_source
from dsn_ray.data.parts import parts_of
from dsn_ray.data.preparing import prepare_shards
from dsn_ray.data.storage import Folder


@pytest.fixture(scope="module")
def shards(ray_address, drawings, tmp_path_factory):
    """The drawings in shards of several parts; this process is a driver of the shared cluster."""
    import ray

    ray.init(address=ray_address, log_to_driver=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_MOST_ROWS", 7)
        out = Folder.at(tmp_path_factory.mktemp("prepared") / "shards")
        made = prepare_shards(open_source("folder:toy", drawings), out)
    yield made
    ray.shutdown()


def sizes_of(source):
    return [size for size, _ in source.states()]


def cut_up(source):
    return parts_of(source, sizes_of(source))
