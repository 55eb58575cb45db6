"""Train the MNIST network of Song et al. (Journal of Software 32(11), 2021, p. 3468) and write it as ONNX.

    python -m models.train.song_mnist

Two convolutions 5x5 (1 -> 32 -> 64, each followed by a 2x2 pooling) and two fully connected layers. The paper
has 1,024 units between the latter; by default there are 384 here, so that the file stays below 6 MB
(3136 x 1024 weights alone have 12.8 MB). The convolutions, which the paper decomposes, are the paper's.
``--hidden 1024`` trains the paper's network.
"""

import sys
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.command import exit_code
from models.train import training
from models.train.training import RawConv2d

NAME = "song_mnist"
EPOCHS = 6
HIDDEN = 384

MAX_TURN = 0.15
"""Largest rotation of a training image, in radians."""

MAX_STRETCH = 0.1
"""Largest relative change of its size."""

MAX_SHIFT = 0.12
"""Largest shift, in half image widths."""


def network(hidden: int) -> nn.Sequential:
    """Return the network, untrained."""
    layers = OrderedDict(
        conv1=RawConv2d(1, 32, 5, padding=2, shift=0.0, scale=80.0),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 64, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        drop1=nn.Dropout(0.25),
        fc1=nn.Linear(7 * 7 * 64, hidden),
        relu3=nn.ReLU(),
        drop2=nn.Dropout(0.5),
        fc2=nn.Linear(hidden, 10),
    )
    return nn.Sequential(layers)


def distort(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Turn, stretch and shift every image a little, at random; without a generator leave them."""
    if generator is None:
        return images
    random = 2 * torch.rand(6, len(images), generator=generator) - 1  # (6, n), -1..1
    turn = MAX_TURN * random[0]
    across, down = 1 + MAX_STRETCH * random[1], 1 + MAX_STRETCH * random[2]
    x, y = MAX_SHIFT * random[3], MAX_SHIFT * random[4]
    rows = (
        torch.stack([across * turn.cos(), -down * turn.sin(), x]),
        torch.stack([across * turn.sin(), down * turn.cos(), y]),
    )
    maps = torch.stack(rows).permute(2, 0, 1)  # (n, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the samples that are committed beside the default network."""
    parser = training.options(NAME, EPOCHS)
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="units of the first fully connected layer")
    options = parser.parse_args(arguments)
    training.begin(options.seed, options.threads)
    training.run(NAME, network(options.hidden), training.recipe(options), options.output, distort)


if __name__ == "__main__":
    sys.exit(exit_code(main))
