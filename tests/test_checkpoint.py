import shutil

import pytest

from dsn_ray.checkpoint import open_checkpoint
from dsn_ray.errors import UserError


def test_the_folder_of_a_training_stands_for_the_checkpoint_that_it_kept(tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "checkpoint_1")
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    assert opened.directory == tmp_path / "checkpoint_1"
    assert opened.digest() == open_checkpoint(checkpoint).digest()


def test_of_several_checkpoints_one_must_be_chosen(tmp_path, checkpoint):
    for name in ("checkpoint_1", "checkpoint_2"):
        shutil.copytree(checkpoint, tmp_path / name)
    with pytest.raises(UserError, match=r"choose one of checkpoint_1, checkpoint_2\.$"):
        open_checkpoint(tmp_path)


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="this is not a checkpoint folder"):
        open_checkpoint(tmp_path)
