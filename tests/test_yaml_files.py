import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from dsn_ray.errors import UserError
from dsn_ray.yaml_files import as_number, explain, load_yaml

TEXT = """\
loss:
  lambda1: 0.1

steps:
  - 1
  - {name: two}
"""


def test_every_key_has_its_line(tmp_path):
    (tmp_path / "a.yaml").write_text(TEXT)
    tree, place = load_yaml(tmp_path / "a.yaml")
    assert tree == {"loss": {"lambda1": 0.1}, "steps": [1, {"name": "two"}]}
    name = str(tmp_path / "a.yaml")
    assert place.at() == place.at("nowhere") == name
    assert place.at("loss") == f"{name}, line 1"
    assert place.at("loss", "lambda1") == place.below("loss").at("lambda1") == f"{name}, line 2"
    assert place.at("steps", 1, "name") == f"{name}, line 6"
    assert place.at("steps", 0, "what is not there") == f"{name}, line 5"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"a: 1\nb: {c: 2,\n  c: 3}\n", "line 3: b.c stands on line 2 already"),
        (b"a: [1", "line 1: this is not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read: it is not a text file"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, contents, message):
    (tmp_path / "bad.yaml").write_bytes(contents)
    with pytest.raises(UserError) as caught:
        load_yaml(tmp_path / "bad.yaml")
    assert str(caught.value).startswith(str(tmp_path / "bad.yaml"))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml")


def test_an_unknown_key_is_told_before_what_is_missing(tmp_path):
    class Schema(BaseModel):
        model_config = ConfigDict(extra="forbid")
        needed: int

    (tmp_path / "a.yaml").write_text("neded: 1\n")
    tree, place = load_yaml(tmp_path / "a.yaml")
    with pytest.raises(ValidationError) as caught:
        Schema.model_validate(tree)
    told = explain(caught.value, place, Schema)
    assert told == f"{tmp_path}/a.yaml, line 1: neded is not a known key; allowed are needed."


@pytest.mark.parametrize(
    ("value", "number"), [("1e-4", 1e-4), (" 3 ", 3.0), ("adam", "adam"), (True, True), (2, 2)]
)
def test_text_that_people_mean_as_a_number_is_one(value, number):
    assert as_number(value) == number
