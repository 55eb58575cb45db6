"""Train the CIFAR-10 network of Song et al. (Journal of Software 32(11), 2021, p. 3468) and write it as ONNX.

    python -m models.train.song_cifar

Two convolutions 5x5 (3 -> 64 -> 64, each followed by a 2x2 pooling) on crops of 24x24, and fully connected
layers of 384, 192 and 10 units. It is trained on random crops, mirrored at random, and tested on the centre.
"""

import sys
from collections import OrderedDict
from functools import partial

from torch import nn

from models.command import exit_code
from models.train import training
from models.train.augment import mirrored_crop
from models.train.training import RawConv2d

NAME = "song_cifar"
EPOCHS = 10
SIDE = 24


def network() -> nn.Sequential:
    """Return the network, untrained."""
    layers = OrderedDict(
        conv1=RawConv2d(3, 64, 5, padding=2, shift=120.0, scale=64.0),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(64, 64, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(6 * 6 * 64, 384),
        relu3=nn.ReLU(),
        drop=nn.Dropout(0.2),
        fc2=nn.Linear(384, 192),
        relu4=nn.ReLU(),
        fc3=nn.Linear(192, 10),
    )
    return nn.Sequential(layers)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the samples that are committed beside the network."""
    crop = partial(mirrored_crop, side=SIDE)
    training.main(NAME, EPOCHS, network, arguments, crop, peak_rate=1.5e-3)


if __name__ == "__main__":
    sys.exit(exit_code(main))
