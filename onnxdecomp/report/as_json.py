"""A report as JSON, by the field names that other tools rely on."""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

from onnxdecomp.report.outcome import SCHEMA_VERSION, Report


def report_json(report: Report) -> str:
    """Return the report as JSON text with sorted, stable fields; numbers that are not finite become null."""
    figures = ("model", "latency", "footprint", "accuracy", "output_error")
    steps = ("recovered", "finetuned", "int8")
    names = ("command", "environment", *figures, *steps, "layers", "weights", "notes", "stages")
    entries = {name: plain(getattr(report, name)) for name in names}
    return json.dumps({"schema_version": SCHEMA_VERSION, **entries}, indent=2) + "\n"


def as_text(value: Any) -> str:
    """Return any of our value types as JSON text."""
    return json.dumps(plain(value), indent=2)


def plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what `json` writes."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
