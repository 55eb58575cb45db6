"""Make ONNX models smaller and faster by low-rank factorization, proved in onnxruntime.

>>> import onnxdecomp
>>> report = onnxdecomp.convert("in.onnx", "out.onnx", rank="auto")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxdecomp.comparison import bench, verify
    from onnxdecomp.config import Config, LayerRule, load_recipe
    from onnxdecomp.errors import BudgetError, ModelError, OnnxdecompError, UsageError, VerificationError
    from onnxdecomp.expansion import expand
    from onnxdecomp.finetuning import finetune
    from onnxdecomp.inspection import inspect
    from onnxdecomp.packing import pack, unpack
    from onnxdecomp.pipeline import convert
    from onnxdecomp.report.outcome import Report

__version__ = "0.1.0.dev0"

_HOMES = {
    "Config": "config",
    "LayerRule": "config",
    "load_recipe": "config",
    "BudgetError": "errors",
    "ModelError": "errors",
    "OnnxdecompError": "errors",
    "UsageError": "errors",
    "VerificationError": "errors",
    "bench": "comparison",
    "convert": "pipeline",
    "expand": "expansion",
    "finetune": "finetuning",
    "inspect": "inspection",
    "pack": "packing",
    "unpack": "packing",
    "verify": "comparison",
    "Report": "report.outcome",
}

__all__ = [
    "BudgetError",
    "Config",
    "LayerRule",
    "ModelError",
    "OnnxdecompError",
    "Report",
    "UsageError",
    "VerificationError",
    "__version__",
    "bench",
    "convert",
    "expand",
    "finetune",
    "inspect",
    "load_recipe",
    "pack",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxdecomp' has no attribute '{name}'")
    return getattr(import_module(f"onnxdecomp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
