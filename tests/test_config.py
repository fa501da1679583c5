import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsn_ray.config import (
    DEMONSTRATION,
    RECIPES,
    RECIPES_ON,
    Config,
    load_settings,
    parse_config,
    parse_settings,
    setting_names,
)
from dsn_ray.errors import UserError


def test_defaults_are_the_papers():
    config = Config()
    assert (config.loss.lambda1, config.loss.lambda2, config.loss.lambda3) == (0.1, 1.0, 1.0)
    assert (config.loss.tau, config.memory.k, config.network.dim) == (0.07, 10, 64)
    assert config.network.backbone == "cse_resnet50"
    assert (config.data.sketches_per_batch, config.data.photos_per_batch) == (32, 64)
    assert (config.optimizer.lr, config.optimizer.lr_end, config.train.epochs) == (1e-4, 1e-7, 10)


def test_the_recipes_differ_where_the_released_code_differs():
    paper, release, tuberlin = (
        Config().with_settings(settings)
        for settings in (
            RECIPES["paper"],
            RECIPES["release"],
            {**RECIPES["release"], **RECIPES_ON["release", "tuberlin"]},
        )
    )
    assert paper == Config()
    assert paper.loss.memory_gradient
    assert not release.loss.memory_gradient
    assert (paper.memory.update, release.memory.update) == ("top_k", "release")
    assert (paper.memory.lifetime, release.memory.lifetime) == ("training", "epoch")
    assert (paper.network.projection_dim, release.network.projection_dim) == (128, None)
    assert (paper.data.teacher_sees, release.data.teacher_sees) == ("stored", "first_view")
    assert (paper.train.epochs, release.train.epochs, tuberlin.train.epochs) == (10, 20, 16)
    assert (paper.optimizer.decay, release.optimizer.decay) == ("step", "epoch")
    assert release.optimizer.lr_end / release.optimizer.lr == pytest.approx(0.001)
    assert paper.optimizer.weight_decay == release.optimizer.weight_decay == 5e-4
    assert (release.data.sketches_per_batch, release.data.photos_per_batch) == (32, 64)
    assert (tuberlin.data.sketches_per_batch, tuberlin.data.photos_per_batch) == (9, 81)
    assert (release.augment.centre, release.augment.fill) == ("corner", "black")
    assert (paper.network.bn_statistics, release.network.bn_statistics) == ("joint", "worker")
    assert (paper.train.keep, release.train.keep, tuberlin.train.keep) == (
        "last",
        "best_seen",
        "last",
    )


def test_the_demonstrations_settings_are_allowed():
    config = Config().with_settings(DEMONSTRATION)
    assert config.network.backbone == "efficientnet_lite0"


def test_every_setting_survives_yaml():
    config = Config().with_settings({"loss.tau": 0.2, "memory.k": 3, "network.weights": "none"})
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert parse_config(yaml.safe_load(text), "x") == config


@given(st.floats(1e-6, 1e6))
def test_a_setting_reaches_its_place(value):
    assert Config().with_settings({"loss.lambda2": value}).loss.lambda2 == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss.lamda1": 1}, "loss.lamda1 is not a setting; section loss has loss.lambda1"),
        ({"los.lambda1": 1}, "los.lambda1 is not a setting; the sections are network, loss"),
        ({"loss": 1}, "loss is not a setting"),
        ({"loss.tau": 0}, "loss.tau: input should be greater than or equal to 0.001"),
        ({"memory.k": 0}, "memory.k: input should be greater than or equal to 1"),
        ({"network.backbone": "vgg"}, "'cse_resnet50' or 'efficientnet_lite0'"),
        ({"train.epochs": "many"}, "train.epochs: input should be a valid integer"),
        ({"loss.lambda1": float("nan")}, "loss.lambda1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(settings, message):
    with pytest.raises(UserError, match="--set: ") as caught:
        Config().with_settings(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_read_as_yaml_with_numbers_as_people_write_them():
    texts = ["optimizer.lr=1e-4", "network.weights=none", "train.epochs=3", "network.weights=null"]
    assert parse_settings(texts[:3]) == {
        "optimizer.lr": 1e-4,
        "network.weights": "none",
        "train.epochs": 3,
    }
    assert parse_settings(texts[3:]) == {"network.weights": None}
    with pytest.raises(UserError, match="write it as section"):
        parse_settings(["loss.lambda1"])


def test_setting_names_are_those_that_set_takes():
    names = setting_names()
    assert {"loss.lambda1", "loss.lambda2", "loss.tau", "memory.k"} <= set(names)
    dumped = Config().model_dump()
    for name in names:
        section, key = name.split(".")
        Config().with_settings({name: dumped[section][key]})


def test_a_file_may_hold_some_sections(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("loss: {lambda1: 0.3}\n")
    assert load_settings(path) == {"loss.lambda1": 0.3}
    path.write_text("")
    assert load_settings(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: {lamda1: 1}", "loss.lamda1 is not a known key; allowed are lambda1, lambda2"),
        ("los: {}", "los is not a known key; allowed are network, loss"),
        ("loss: [1", "line 1: this is not valid YAML"),
        ("- 1", "the whole file"),
        ("augment: {scale_range: [0, 0]}", "scale_range: two numbers above 0 are needed"),
        ("augment: {scale_range: [2, 1]}", "the least first"),
        ("loss: {tau: -1}", "loss.tau: input should be greater than or equal to 0.001 (given: -1)"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
