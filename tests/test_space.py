from pathlib import Path

import pytest
import yaml

from dsn_ray.errors import UserError
from dsn_ray.space import describe, load_space

SPACES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))
GOOD = {
    "parameters": {
        "loss.lambda1": {"distribution": "loguniform", "low": 0.01, "high": 1.0},
        "memory.k": {"distribution": "int", "low": 1, "high": 30},
    },
    "budget": {"trials": 4},
}


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_load_and_their_headers_name_the_command(path):
    load_space(path)
    assert f"python -m dsn_ray.tune --space search_spaces/{path.name}" in path.read_text()


def test_lambdas_sweeps_the_four_and_starts_with_the_papers_setting():
    space = load_space(next(path for path in SPACES if path.stem == "lambdas"))
    assert set(space.parameters) == {"loss.lambda1", "loss.lambda2", "loss.tau", "memory.k"}
    assert space.first[0] == {
        "loss.lambda1": 0.1,
        "loss.lambda2": 1.0,
        "loss.tau": 0.07,
        "memory.k": 10,
    }
    assert (space.sampler.name, space.scheduler.name) == ("tpe", "asha")


def changed(key, value):
    tree = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = key.split("/")
    place = tree
    for parent in parents:
        place = place[parent]
    place[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parameters/loss.lamda1", {"distribution": "uniform", "low": 0, "high": 1},
         "loss.lamda1 is not a setting"),
        ("parameters/loss.lambda1/distribution", "normal", "'uniform', 'loguniform'"),
        ("parameters/loss.lambda1/low", 0, "low must be above 0 on a log scale"),
        ("parameters/loss.lambda1/low", 2.0, "low must be below high, not 2 and 1"),
        ("parameters/loss.lambda1/low", 1.0, "low must be below high"),
        ("parameters/memory.k/low", 0, "memory.k: input should be greater than or equal to 1"),
        ("parameters/memory.k/high", 2.5, "low and high must be whole numbers"),
        ("parameters/memory.k", {"distribution": "categorical", "low": 1, "high": 2},
         "a categorical distribution takes choices"),
        ("parameters/memory.k", {"distribution": "categorical", "choices": []}, "choices"),
        ("parameters/memory.k", {"distribution": "categorical", "choices": [5, 0]},
         "memory.k: input should be greater than or equal to 1"),
        ("parameters/memory.k", {"distribution": "int", "choices": [1]}, "takes low and high"),
        ("parameters", {}, "parameters"),
        ("sampler", {"name": "gibbs"}, "sampler.name: input should be 'tpe', 'gp', 'cmaes', "),
        ("scheduler", {"name": "asha", "grace": 2}, "scheduler.grace is not a known key"),
        ("budget", {}, "budget: trials is missing"),
        ("budget/trials", 0, "budget.trials: input should be greater than or equal to 1"),
        ("trails", 3, "trails is not a known key; allowed are parameters, variants, first"),
        ("first", [{"loss.lambda1": 0.1}], "each setting must name loss.lambda1, memory.k"),
        ("first", [{"loss.lambda1": 5.0, "memory.k": 3}], "lies outside its own distribution"),
        ("set", {"loss.alpha": 1}, "set: loss.alpha is not a setting"),
        ("set", {"memory.k": 1}, "memory.k varies, and cannot be fixed here too"),
        ("variants", {"a": {}}, "either parameters to search or variants to compare"),
        ("metric", "loss", "metric is not a known key"),
        ("parameters/data.px", {"choices": [64, 96]}, "or compare variants"),
        ("parameters/train.seed", {"choices": [0, 1]}, "budget.seeds is the number of seeds"),
        ("parameters/memory.k/when", {"loss.tau": 1}, "loss.tau is no earlier parameter; "),
        ("parameters/memory.k/when", {"loss.lambda1": 7}, "loss.lambda1 is never 7"),
        ("sampler", {"name": "grid"}, "a grid takes choices, not a range"),
        ("budget", {"trials": 2, "seeds": 3}, "with several seeds of a setting no scheduler"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_key(tmp_path, key, value, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(changed(key, value)))
    with pytest.raises(UserError) as caught:
        load_space(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "parameters: 3", "a: [b"])
def test_a_file_that_is_no_space(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_space(path)


def test_a_misspelt_key_is_named_before_the_one_that_is_missing(tmp_path):
    tree = changed("budgets", {"trials": 3})
    del tree["budget"]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="budgets is not a known key; allowed are"):
        load_space(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first: [{optimizer.lr: [1], memory.k: 1}]", "line 6: first: 0: optimizer.lr=[1] lies"),
        ("first: [{optimizer.lr: yes, memory.k: 1}]", "optimizer.lr=True lies outside"),
        ("first: [{optimizer.lr: fast, memory.k: 1}]", "optimizer.lr=fast lies outside"),
        ("first: [{optimizer.lr: 1e-3, memory.k: 1.5}]", "memory.k=1.5 lies outside"),
        ("first: [{1: 2}]", "line 6: first.0.1.[key]: input should be a valid string"),
        ("first: 3", "line 6: first: input should be a valid list"),
        ("scheduler: {name: none, grace_epochs: 2}", "line 6: scheduler.grace_epochs has no"),
        ("scheduler: {name: median, reduction_factor: 3}", "reduction_factor has no effect"),
        ("sampler: {name: qmc, startup_trials: 3}", "sampler.startup_trials has no effect"),
        ("budget: {trials: 5}", "line 6: budget stands on line 5 already"),
        ("set: {loss.tau: 0.1, loss.lambda1: 1, loss.tau: 0.2}", "set.loss.tau stands on line 6"),
    ],
)  # fmt: skip
def test_a_malformed_key_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "parameters:\n"
        "  optimizer.lr: {distribution: loguniform, low: 1e-4, high: 1e-2}\n"
        "  memory.k: {distribution: int, low: 1, high: 30}\n"
        "final: {seeds: 1}\n"
        "budget: {trials: 4}\n" + text
    )
    with pytest.raises(UserError) as caught:
        load_space(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "parameters: {memory.k: {distribution: int, low: 1, high: 9}, loss.tau: {choices: [0.1], "
        "when: {memory.k: [1]}}}\nbudget: {trials: 1}",
        "variants: {a: {recipe: [1]}}",
        "variants: {a: {loss.tau: {b: 1}}}",
        "variants: {a: 1}",
        "variants: {a: {}}\nbudget: {trials: 3}",
        "variants: {a: {}}\nsampler: {name: tpe}",
        "variants: {a: {}}\nscheduler: {}",
        "variants: {a: {}}\nfirst: []",
        "variants: {a: {}}\nfinal: {settings: all}",
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^\S+bad\.yaml, line \d: .+\.$"):
        load_space(path)


def test_a_number_that_yaml_takes_for_text_is_a_number(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "parameters:\n"
        "  optimizer.lr: {choices: [1e-4, 1e-3]}\n"
        "  loss.tau: {distribution: uniform, low: 1e-2, high: 1, when: {optimizer.lr: 1e-3}}\n"
        "first: [{optimizer.lr: 1e-3, loss.tau: 1e-1}]\n"
        "set: {optimizer.lr_end: 1e-6}\n"
        "budget: {trials: 2}\n"
    )
    space = load_space(path)
    assert space.parameters["optimizer.lr"].choices == [1e-4, 1e-3]
    assert space.parameters["loss.tau"].when == {"optimizer.lr": 1e-3}
    assert space.first == [{"optimizer.lr": 1e-3, "loss.tau": 0.1}]
    assert space.set == {"optimizer.lr_end": 1e-6}
    path.write_text("variants: {a: {optimizer.lr: 1e-3}}")
    assert load_space(path).variants == {"a": {"optimizer.lr": 1e-3}}


def test_describe_is_short():
    assert describe({"loss.lambda1": 0.123456, "memory.k": 7}) == "lambda1=0.123 k=7"


def test_the_line_of_what_is_wrong_is_named(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "parameters:\n  loss.lambda1:\n    distribution: uniform\n    low: 2\n    high: 1\n"
        "budget: {trials: 3}\n"
    )
    with pytest.raises(UserError, match=r"bad\.yaml, line 2: parameters\.loss\.lambda1: low must"):
        load_space(path)
    path.write_text("variants:\n  a: {}\n  b:\n    loss.tua: 1\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line 3: variants: b: loss\.tua is not"):
        load_space(path)


def test_cma_es_takes_ranges_only(tmp_path):
    tree = changed("sampler", {"name": "cmaes"})
    tree["parameters"]["memory.k"] = {"choices": [1, 2]}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="CMA-ES takes ranges, without conditions"):
        load_space(tmp_path / "bad.yaml")


def test_variants_are_checked(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("variants: {a: {recipe: papier}}")
    with pytest.raises(UserError, match="recipe papier is none of paper, release"):
        load_space(path)
