"""Fine-tuning inside a conversion: train what was decomposed, and see whether that keeps the budget.

Training wins accuracy back, so a decomposition may lose more than the budget before it. The strongest one is
tried first; where training does not bring it back, the next one has less to win.
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from onnxdecomp.config import Config
from onnxdecomp.finetuning import Finetuning, finetune, require_torch
from onnxdecomp.graph.io import Model, ModelWriter, load
from onnxdecomp.put_back import Staged
from onnxdecomp.report.outcome import BeforeAfter, Tuning
from onnxdecomp.runtime.samples import LABELS
from onnxdecomp.search.parts import Samples
from onnxdecomp.search.track import Track
from onnxdecomp.search.trial import Trials
from onnxdecomp.tune.settings import Settings

SHARES = (3.0, 2.0, 1.4, 1.0)
"""Drops before training, over what may be lost after it, in the order they are tried."""


def check_trainable(model: Model) -> None:
    """Refuse what cannot be trained before any work is done.

    Raises:
        UsageError: torch is not installed.
        ModelError: torch cannot evaluate some operators, all of which are named.
    """
    require_torch()
    from onnxdecomp.tune.network import Network  # torch takes a second to import

    Network(model)


def shares(config: Config) -> tuple[float, ...]:
    """Return how many times the accuracy budget decompositions may lose before they are trained."""
    searched = config.finetune is not None and config.rank == "auto" and not config.has_target
    return SHARES if searched else (1.0,)


def tuned(
    model: Model,
    staged: Staged,
    output: str | Path | None,
    trials: Trials,
    stack: ExitStack,
    config: Config,
    track: Track,
) -> tuple[Staged, Tuning]:
    """Return a decomposed model with its new numbers trained against the original, staged anew.

    It trains on the samples that it was fitted to and stops by those that choices are made on.

    Args:
        model: The original.
        staged: The decomposed model.
        output: Path of the result; None for a result in memory.
        trials: The samples.
        stack: Keeps the files of the result until the end of the conversion.
        config: Steps and threads.
        track: Shows how far training is.

    Raises:
        UsageError: torch is not installed.
        ModelError: torch cannot evaluate the model as onnxruntime does.
    """
    folder = Path(stack.enter_context(TemporaryDirectory()))
    files = [
        _written(folder / f"{name}.npz", samples)
        for name, samples in (("fit", trials.parts.fit), ("choose", trials.parts.choose))
    ]
    settings = Settings(
        calibration=files[0],
        held_out=files[1],
        steps=config.finetune or 1,
        threads=config.threads,
        seed=config.seed,
    )
    out = folder / "tuned.onnx" if isinstance(staged.model, Path) else None
    teacher = model.path or model.proto
    found = finetune(staged.model, out, teacher=teacher, settings=settings, track=track)
    made = load(out) if out else Model(found.proto, model.base_dir)
    writer = stack.enter_context(ModelWriter(made, output))
    return Staged(writer, writer.stage(made.proto)), _told(found)


def _written(path: Path, samples: Samples) -> str:
    """Write samples without their labels, and return the path."""
    arrays: dict[str, Any] = {name: array for name, array in samples.items() if name != LABELS}
    np.savez(path, **arrays)
    return str(path)


def _told(found: Finetuning) -> Tuning:
    return Tuning(
        len(found.names),
        found.n_values,
        found.loss,
        BeforeAfter(found.held_out.before, found.held_out.after),
        found.n_steps,
        found.best_step,
        found.notes,
    )
