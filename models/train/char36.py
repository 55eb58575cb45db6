"""Train the 36-class character network of Jaderberg et al. and write it as ONNX.

    python -m models.train.char36

The network that Lebedev et al. ("Speeding-up convolutional neural networks using fine-tuned
CP-decomposition", 2015) decompose: on 24x24 grey images, convolutions 9x9 (1 -> 96), 9x9 (48 -> 128), 8x8
(64 -> 512) and 1x1 (128 -> 144), each followed by a maximum over 2, 2, 4 and 4 of its channels (maxout).
Weights are stored in 16 bits (5.3 MB instead of 10.5), each with a Cast to the float32 that is computed in.
"""

import sys
from collections import OrderedDict
from functools import reduce

import torch
from torch import Tensor, nn

from models.command import exit_code
from models.train import training
from models.train.training import RawConv2d

NAME = "char36"
EPOCHS = 12


class Maxout(nn.Module):
    """The maximum over groups of `width` channels: (n, pieces * width, h, w) -> (n, width, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        """Return the maximum; in ONNX a Split and Max nodes."""
        return reduce(torch.maximum, features.split(self.width, 1))


def network() -> nn.Sequential:
    """Return the network, untrained."""
    layers = OrderedDict(
        conv1=RawConv2d(1, 96, 9, padding=0, shift=128.0, scale=64.0),
        max1=Maxout(48),
        conv2=nn.Conv2d(48, 128, 9),
        max2=Maxout(64),
        drop2=nn.Dropout(0.2),
        conv3=nn.Conv2d(64, 512, 8),
        max3=Maxout(128),
        drop3=nn.Dropout(0.5),
        conv4=nn.Conv2d(128, 144, 1),
        max4=Maxout(36),
        flatten=nn.Flatten(),
    )
    return nn.Sequential(layers)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the samples that are committed beside the network."""
    training.main(NAME, EPOCHS, network, arguments, half=True, peak_rate=1e-3)


if __name__ == "__main__":
    sys.exit(exit_code(main))
