"""What the commands share, without Ray."""

import shlex

import pytest

from dsn_ray.cli import Interrupted, find_run, resumable
from dsn_ray.runtime import Shape


@pytest.mark.parametrize(
    ("name", "storage", "shape", "command"),
    [
        ("first", None, Shape(), "python -m dsn_ray.tune --resume --name first"),
        (
            "my run",
            None,
            Shape(workers=1, cpus_per_worker=0.5),
            "python -m dsn_ray.tune --resume --name 'my run' --workers 1 --cpus-per-worker 0.5",
        ),
        (
            "first",
            "s3://bucket/runs",
            Shape(wait=60),
            "python -m dsn_ray.tune --resume --name first --storage s3://bucket/runs --wait 60",
        ),
    ],
)
def test_ctrl_c_names_the_command_that_goes_on(name, storage, shape, command):
    with (
        pytest.raises(Interrupted) as stopped,
        resumable("dsn_ray.tune", find_run(name, storage), shape),
    ):
        raise KeyboardInterrupt
    assert str(stopped.value) == f"Go on with: {command}"
    assert shlex.split(command)[5] == name
