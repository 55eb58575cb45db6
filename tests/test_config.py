import pytest

from onnxdecomp.config import Config, LayerRule, load_recipe, parse_shapes
from onnxdecomp.errors import UsageError

RECIPE = """
rank = "ratio:0.5"
max_error = 0.1
include = ["/features/*", "fc*"]
[shapes]
x = "1x3x32x32"
[op_type.Gemm]
rank = "energy:0.9"
[layer."fc6*"]
method = "svd"
rank = 256
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return load_recipe(path)


def test_a_recipe_builds_the_same_object_as_the_options(recipe):
    assert recipe == Config(
        rank="ratio:0.5",
        max_error=0.1,
        include=("/features/*", "fc*"),
        shapes={"x": (1, 3, 32, 32)},
        op_types={"Gemm": LayerRule(rank="energy:0.9")},
        layers={"fc6*": LayerRule(rank="256", method="svd")},
    )


@pytest.mark.parametrize(
    ("key", "op_type", "rule"),
    [
        ("conv1", "Conv", ("ratio:0.5", "auto")),
        ("fc7_out", "Gemm", ("energy:0.9", "auto")),
        ("fc6_out", "Gemm", ("256", "svd")),
    ],
)
def test_the_most_special_rule_wins(recipe, key, op_type, rule):
    assert recipe.rule_for(key, "", op_type) == rule


def test_a_pattern_names_output_or_node():
    config = Config(include=("conv*",), exclude=("*2",))
    assert config.selects("y", "conv1")
    assert config.selects("conv1_out", "")
    assert not config.selects("y", "conv2")
    assert not config.selects("y", "fc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnk = 'auto'", "did you mean 'rank'"),
        ("rank = ", "not valid TOML"),
        ("threads = 'two'", "wrong type"),
        ("threads = true", "wrong type"),
        ("[layer.fc]\nrnk = 1", "did you mean 'rank'"),
        ("[layer]\nfc = 3", "must be a table"),
        ("seed = -1", "0 or more"),
        ("verify = 'modle'", "did you mean 'model'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(path)


def test_a_missing_recipe_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("text", ["x", "=1x2", "x=1x0", "x=axb", "x="])
def test_a_shape_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match="--shape"):
        parse_shapes([text])


def test_an_input_name_may_hold_an_equals_sign():
    assert parse_shapes(["a=b=1x2"]) == {"a=b": (1, 2)}


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"jobs": 0}, {"max_error": 0.0}, {"max_error": 1.0}, {"rank_multiple": 0}]
)
def test_a_value_out_of_range_is_refused(options):
    with pytest.raises(UsageError):
        Config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify": False}, "verify level 'False'"),
        ({"max_drop": "0.5"}, "max_drop is '0.5': give a number"),
        ({"max_error": None}, "max_error is None: give a number"),
        ({"threads": 2.5}, "threads is 2.5: give a whole number"),
        ({"seed": True}, "seed is True: give a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Config(**options)
