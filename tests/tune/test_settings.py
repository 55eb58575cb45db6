"""Settings that make no sense are refused with the value at hand."""

import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.tune.settings import Settings, Weighted, configured, parse_rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -5}, "steps is -5"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"loss": ("klm",)}, "did you mean 'kl'"),
        ({"loss": ()}, "No loss is named"),
        ({"loss": ("kl:0",)}, "weight 0"),
        ({"loss": ("kl:-1",)}, "weight -1"),
        ({"loss": ("kl", "kl:2")}, "'kl' more than once"),
        ({"match": ("t:nan",)}, "weight nan"),
        ({"step": 3}, "did you mean 'steps'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configured(None, options)


def test_a_weight_stands_behind_the_last_colon() -> None:
    settings = Settings(loss=("kl:0.7", "mse"), match=("a:0:2", "b:name", "c"))
    assert settings.losses == (Weighted("kl", 0.7), Weighted("mse", 1.0))
    assert settings.matches == (Weighted("a:0", 2.0), Weighted("b:name", 1.0), Weighted("c", 1.0))


def test_options_win_over_settings_and_none_leaves_them() -> None:
    assert configured(Settings(steps=5, batch=3), {"steps": 7, "batch": None}) == Settings(steps=7, batch=3)


def test_a_rate_is_a_number_or_auto() -> None:
    assert parse_rate("auto") is None
    assert parse_rate("0.1") == 0.1
    with pytest.raises(UsageError, match="'fast' is no number"):
        parse_rate("fast")
