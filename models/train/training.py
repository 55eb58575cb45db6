"""What every training script shares: the loop, the log, the export and the committed samples.

Networks take raw pixels 0..255 as (n, channels, height, width), like everything in `models.evaluate`; the
first convolution scales them (`RawConv2d`), and the export holds its scaled weights.

The same seed, torch and number of threads on the same kind of processor give the same network. On another
machine sums are rounded otherwise, and the accuracy differs by the noise of training.
"""

import argparse
import csv
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.evaluate import TASKS, Samples

OPSET = 17
MODELS = Path(__file__).parents[1]
"""Where the trained networks lie."""

N_HELD_OUT = 2_000
"""Training images kept out of training, whose accuracy is logged."""

N_CALIBRATION = 512
"""Unlabelled training images that are committed beside a network."""

N_EVALUATION = 1_000
"""Labelled test images that are committed beside a network."""

FLOAT = onnx.TensorProto.FLOAT

MIN_HALVED = 1024
"""Weights with fewer numbers stay float32 in a file that stores 16 bits."""

ROWS = ("epoch", "loss", "train_accuracy", "held_out_accuracy", "seconds")

RISE = 0.2
"""Share of the steps in which the learning rate rises to its peak, before it falls to nearly 0."""

Augment = Callable[[Tensor, torch.Generator | None], Tensor]
"""What the network sees of a batch of images: distorted at random, or without a generator undistorted."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        epochs: Passes over the training images.
        batch: Images in one step.
        peak_rate: Highest learning rate of a cycle that rises from nearly 0 and falls back.
        weight_decay: Of the optimizer.
        momentum: That of stochastic gradient descent (Nesterov's); without one AdamW is used.
        label_smoothing: Share of the target that is spread over all classes.
        seed: Decides the first weights, the order, the distortions and the dropout.
        bfloat16: Multiply in bfloat16, which is faster on processors that have it. Weights and what is
            exported stay float32.
    """

    epochs: int
    batch: int = 128
    peak_rate: float = 2e-3
    weight_decay: float = 1e-2
    momentum: float | None = None
    label_smoothing: float = 0.0
    seed: int = 0
    bfloat16: bool = False


class RawConv2d(nn.Conv2d):
    """A convolution of raw pixels that learns as if they were ``(pixel - shift) / scale``.

    What lies beyond the border is a raw 0, so that `folded` is one plain convolution.
    """

    def __init__(self, *arguments: int, padding: int, shift: float, scale: float) -> None:
        super().__init__(*arguments, padding=padding)
        self.shift, self.scale = shift, scale

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight (O, I, kh, kw) and bias (O,) of the same convolution of raw pixels."""
        weight = self.weight / self.scale
        return weight, self.bias - self.shift * weight.sum((1, 2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Convolve raw pixels."""
        return functional.conv2d(image, *self.folded(), self.stride, self.padding)


def main(
    name: str,
    epochs: int,
    network: Callable[[], nn.Sequential],
    arguments: list[str] | None,
    augment: Augment = lambda images, _: images,
    *,
    half: bool = False,
    **settings: Any,
) -> None:
    """Do what a script that trains one network does: read its options, and `run`.

    Args:
        name: Of the network, in `models.evaluate.TASKS`.
        epochs: Passes over the training images by default.
        network: Makes it, untrained.
        arguments: Of the command line.
        augment: As in `run`.
        half: As in `export`.
        **settings: Of the `Recipe`, beside those that are options.
    """
    chosen = options(name, epochs).parse_args(arguments)
    begin(chosen.seed, chosen.threads)
    run(name, network(), recipe(chosen, **settings), chosen.output, augment, half=half)


def recipe(chosen: argparse.Namespace, **settings: Any) -> Recipe:
    """Return the recipe that the options of a script and its own settings make."""
    return Recipe(chosen.epochs, seed=chosen.seed, bfloat16=chosen.bfloat16, **settings)


def run(
    name: str,
    network: nn.Sequential,
    recipe: Recipe,
    folder: Path,
    augment: Augment = lambda images, _: images,
    *,
    half: bool = False,
) -> None:
    """Train a network on its task, and write it with its log, its calibration and its evaluation samples.

    A network with BatchNormalization is written twice: folded as NAME.onnx, kept as NAME_bn.onnx.

    Args:
        name: Of the network, in `models.evaluate.TASKS`.
        network: Untrained; its weights must have been drawn after `begin`.
        recipe: How to train.
        folder: Where to write.
        augment: What the network sees of a batch of images in training.
        half: As in `export`.
    """
    task = TASKS[name]
    images, test = task.images(), task.test()
    log = folder / "train" / f"{name}.csv"
    train(network, images.train_images, images.train_labels, recipe, augment, log)
    export(network, folder / f"{name}.onnx", test.images.shape[1:], half=half)
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        export(network, folder / f"{name}_bn.onnx", test.images.shape[1:], keep_batchnorm=True)
    write_samples(folder, task.samples, task.seen(images.train_images), test, recipe.seed)


def train(
    network: nn.Sequential,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    recipe: Recipe,
    augment: Augment,
    log: Path,
) -> None:
    """Train on all images but the last `N_HELD_OUT` of a seeded order; print and write a log.

    Args:
        network: Is changed. Its weights must have been drawn after `torch.manual_seed`.
        images: ``(n, channels, height, width)``.
        labels: ``(n,)``.
        recipe: How to train.
        augment: What the network sees of a batch of images, float32.
        log: CSV to write: epoch, loss, accuracy on what is trained on (distorted), held out, seconds.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(images), generator=generator)
    seen, held_out = order[:-N_HELD_OUT], order[-N_HELD_OUT:]
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    network.to(memory_format=torch.channels_last)  # a fifth faster
    n_steps = recipe.epochs * -(-len(seen) // recipe.batch)
    optimizer = _optimizer(network, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_rate, n_steps, pct_start=RISE, cycle_momentum=recipe.momentum is None
    )
    rows: list[tuple[float, ...]] = []
    start = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        total_loss, n_right = 0.0, 0
        for chosen in seen[torch.randperm(len(seen), generator=generator)].split(recipe.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                scores = network(augment(inputs[chosen].float(), generator)).float()
            loss = functional.cross_entropy(scores, targets[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(chosen)
            schedule.step()
            n_right += int((scores.argmax(1) == targets[chosen]).sum())
        held_out_accuracy = accuracy(network, augment(inputs[held_out].float(), None), targets[held_out])
        shares = (total_loss / len(seen), n_right / len(seen), held_out_accuracy)
        rows.append((epoch, *(round(share, 5) for share in shares), round(time.perf_counter() - start, 1)))
        print(*(f"{name} {value}" for name, value in zip(ROWS, rows[-1], strict=True)), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([ROWS, *rows])


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters, rate, decay = network.parameters(), recipe.peak_rate, recipe.weight_decay
    if recipe.momentum is None:
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    return torch.optim.SGD(parameters, rate, recipe.momentum, nesterov=True, weight_decay=decay)


def accuracy(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the share of images, raw pixels in float32, that a network classifies correctly."""
    network.eval()
    with torch.inference_mode():
        chosen = [network(part).argmax(1) for part in inputs.split(500)]
    return float((torch.cat(chosen) == targets).float().mean())


def export(
    network: nn.Sequential,
    path: Path,
    image_shape: tuple[int, ...],
    *,
    keep_batchnorm: bool = False,
    half: bool = False,
) -> None:
    """Write a network as ONNX: ``image`` (N, *image_shape) -> ``scores`` (N, classes), raw pixels.

    BatchNormalization is folded into the convolution before it, unless it is to be kept. With `half` large
    weights are stored in 16 bits; what is computed stays float32.
    """
    network.eval()
    kept = {n: m for n, m in network.named_children() if not isinstance(m, nn.Dropout)}
    plain = nn.Sequential(OrderedDict((name, as_deployed(module)) for name, module in kept.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        plain.eval().to(memory_format=torch.contiguous_format),
        (torch.zeros(2, *image_shape),),
        path,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}},
        opset_version=OPSET,
        training=mode.PRESERVE if keep_batchnorm else mode.EVAL,  # of a network that evaluates: fold or not
        dynamo=False,  # the other exporter needs a further package
    )
    model = onnx.load(path)
    model.graph.name = path.stem
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")  # paths of the machine it was trained on
    if half:
        _store_half(model.graph)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _store_half(graph: onnx.GraphProto) -> None:
    """Store large weights as float16, each with a Cast back to the float32 that is computed in."""
    casts = []
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size >= MIN_HALVED:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), f"{name}.float16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}/Cast", to=FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)


def write_samples(folder: Path, name: str, train_images: NDArray[np.uint8], test: Samples, seed: int) -> None:
    """Write what is committed beside a network: unlabelled training images, some labelled test images."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(train_images), N_CALIBRATION, replace=False))
    _write_npz(folder / "calibration" / f"{name}.npz", image=train_images[chosen])
    chosen = np.sort(rng.choice(len(test.images), N_EVALUATION, replace=False))
    labels = test.labels[chosen].astype(np.uint8)
    _write_npz(folder / "evaluation" / f"{name}.npz", image=test.images[chosen], labels=labels)


def options(name: str, epochs: int) -> argparse.ArgumentParser:
    """Return the parser of a script that trains the network `name`."""
    parser = argparse.ArgumentParser(prog=f"python -m models.train.{name}", description=f"Train {name}.")
    parser.add_argument("--output", type=Path, default=MODELS, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=epochs, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--bfloat16", action="store_true", help="faster on processors that have it")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    return parser


def begin(seed: int, threads: int) -> None:
    """Make torch repeat itself, before a network is made."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def as_deployed(module: nn.Module) -> nn.Module:
    """Return a module as onnxruntime is to run it."""
    if not isinstance(module, RawConv2d):
        return module
    plain = nn.Conv2d(
        module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding
    )
    weight, bias = module.folded()
    plain.weight.data, plain.bias.data = weight.detach(), bias.detach()
    return plain


def _write_npz(path: Path, **arrays: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
