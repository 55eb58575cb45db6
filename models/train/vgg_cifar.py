"""Train a plain 3x3 network with BatchNormalization on CIFAR-10 and write it as ONNX.

    python -m models.train.vgg_cifar

Seven convolutions in the style of Simonyan and Zisserman, "Very deep convolutional networks" (2015): 64, 64 |
128, 128 | 128, 128, 128 channels, each followed by BatchNormalization and ReLU, 2x2 pooling between the
groups, the mean over the image and one fully connected layer. 124 million MACs.
"""

import sys
from collections import OrderedDict

from torch import nn

from models.command import exit_code
from models.train import training
from models.train.augment import padded_crop
from models.train.training import RawConv2d

NAME = "vgg_cifar"
EPOCHS = 20
GROUPS = ((64, 64), (128, 128), (128, 128, 128))
"""Channels of the convolutions between two poolings."""


def network() -> nn.Sequential:
    """Return the network, untrained."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    n_channels = 3
    for group, widths in enumerate(GROUPS, start=1):
        if group > 1:
            layers[f"pool{group - 1}"] = nn.MaxPool2d(2)
        for number, width in enumerate(widths, start=1):
            layers[f"conv{group}_{number}"] = (
                nn.Conv2d(n_channels, width, 3, padding=1, bias=False)
                if layers
                else RawConv2d(n_channels, width, 3, padding=1, shift=120.0, scale=64.0)
            )
            layers[f"norm{group}_{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{group}_{number}"] = nn.ReLU()
            n_channels = width
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(n_channels, 10)}
    return nn.Sequential(layers)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the samples that are committed beside the network."""
    training.main(
        NAME,
        EPOCHS,
        network,
        arguments,
        padded_crop,
        peak_rate=0.15,
        weight_decay=5e-4,
        momentum=0.9,
        label_smoothing=0.1,
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
