"""Train ResNet-20 on CIFAR-10 and write it as ONNX.

    python -m models.train.resnet20_cifar

He et al., "Deep residual learning for image recognition" (2016), section 4.2: a convolution 3x3 and nine
blocks of two, with 16, 32 and 64 channels; where the size changes the shortcut is a 1x1 convolution.
"""

import sys
from collections import OrderedDict

from torch import Tensor, nn

from models.command import exit_code
from models.train import training
from models.train.augment import padded_crop
from models.train.training import RawConv2d

NAME = "resnet20_cifar"
EPOCHS = 30
WIDTHS = (16, 32, 64)
N_BLOCKS = 3
"""Blocks of each width."""


class Block(nn.Module):
    """Two convolutions 3x3 and a shortcut around them."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or n_inputs != n_outputs:
            self.shortcut.append(nn.Conv2d(n_inputs, n_outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(n_outputs))
        self.relu2 = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (n, n_outputs, height / stride, width / stride)."""
        inside = self.relu1(self.norm1(self.conv1(images)))
        return self.relu2(self.norm2(self.conv2(inside)) + self.shortcut(images))


def network() -> nn.Sequential:
    """Return the network, untrained."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=RawConv2d(3, WIDTHS[0], 3, padding=1, shift=120.0, scale=64.0),
        norm=nn.BatchNorm2d(WIDTHS[0]),
        relu=nn.ReLU(),
    )
    n_channels = WIDTHS[0]
    for group, width in enumerate(WIDTHS, start=1):
        for number in range(1, N_BLOCKS + 1):
            stride = 2 if number == 1 and group > 1 else 1
            layers[f"block{group}_{number}"] = Block(n_channels, width, stride)
            n_channels = width
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(n_channels, 10)}
    return nn.Sequential(layers)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the samples that are committed beside the network."""
    training.main(
        NAME, EPOCHS, network, arguments, padded_crop, peak_rate=0.15, weight_decay=5e-4, momentum=0.9
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
