"""Training on disk: stopped at any time, the same command goes on where it stood."""

import hashlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.external import all_tensors, is_external
from onnxdecomp.graph.io import Model
from onnxdecomp.tune.settings import Settings

_FORMAT = 2

_NOT_OF_THE_COURSE = ("checkpoint", "evaluation", "metric", "threads")
"""Settings that change nothing about the numbers."""


class Checkpoint:
    """A file that holds how far training came.

    Args:
        path: The file.
        student: The model that is trained.
        teacher: The original, if there is one.
        settings: How; a file made under other settings is refused.
    """

    def __init__(self, path: str | Path, student: Model, teacher: Model | None, settings: Settings) -> None:
        self._path = Path(path)
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise UsageError(f"checkpoint '{path}' cannot be written: name a file in a folder that exists")
        self._models = {"student": digest(student), "teacher": digest(teacher) if teacher else ""}
        self._course = {n: v for n, v in asdict(settings).items() if n not in _NOT_OF_THE_COURSE}

    def load(self) -> dict[str, Any] | None:
        """Return what was saved, or None when there is no file yet.

        Raises:
            UsageError: The file is no checkpoint, or one of another model, or of other settings.
        """
        if not self._path.exists():
            return None
        try:
            found = torch.load(self._path, weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise UsageError(
                f"'{self._path}' cannot be read as a checkpoint: name another file, or delete it"
            ) from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise UsageError(f"'{self._path}' is no checkpoint of this version: name another file")
        for what, digest_now in self._models.items():
            if found["models"][what] != digest_now:
                raise UsageError(
                    f"'{self._path}' is a checkpoint of another {what}: name another file, or delete it to "
                    "start anew"
                )
        for name, value in self._course.items():
            before = found["settings"].get(name)
            if before != value:
                raise UsageError(
                    f"'{self._path}' was made with {name} {before} and not {value}: give the same, or name "
                    "another file"
                )
        state: dict[str, Any] = found["state"]
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the file, complete or not at all.

        Raises:
            ModelError: It cannot be written.
        """
        content = {
            "format": _FORMAT,
            "models": self._models,
            "settings": self._course,
            "state": dict(state),
        }
        staged = self._path.with_name(f".{self._path.name}.tmp")
        try:
            torch.save(content, staged)
            os.replace(staged, self._path)
        except (OSError, RuntimeError) as error:
            staged.unlink(missing_ok=True)
            raise ModelError(f"checkpoint '{self._path}' cannot be written: {error}") from error


def digest(model: Model) -> str:
    """Return a hash of a model and of its external data."""
    found = hashlib.sha256(model.proto.SerializeToString(deterministic=True))
    for tensor in all_tensors(model.proto):
        if is_external(tensor):
            found.update(np.ascontiguousarray(model.array(tensor)).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
