"""Train a small transformer encoder on Fashion-MNIST and write it as ONNX.

    python -m models.train.vit_fashion

Dosovitskiy et al., "An image is worth 16x16 words" (2021), in small: 49 patches of 4x4 pixels, each mapped to
64 numbers and given its place; two encoder layers (LayerNormalization first, attention with four heads, a
feed-forward part of 128 units); the mean over the patches and one fully connected layer.
"""

import sys
from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.command import exit_code
from models.train import training
from models.train.augment import padded_crop
from models.train.training import RawConv2d

NAME = "vit_fashion"
EPOCHS = 12
PATCH = 4
N_PATCHES = (28 // PATCH) ** 2
WIDTH = 64
N_HEADS = 4
N_HIDDEN = 128
N_LAYERS = 2


class Tokens(nn.Module):
    """Patches as a sequence, each with a learned place: (n, WIDTH, h, w) -> (n, h w, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(N_PATCHES, WIDTH))

    def forward(self, features: Tensor) -> Tensor:
        """Return the sequence."""
        return features.flatten(2).transpose(1, 2) + self.place


class Attention(nn.Module):
    """Attention of a sequence (n, tokens, WIDTH) to itself, in N_HEADS heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the sequence (n, tokens, WIDTH)."""
        query, key, value = (
            part(tokens).reshape(-1, N_PATCHES, N_HEADS, WIDTH // N_HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )  # (n, heads, tokens, WIDTH / heads)
        scores = query @ key.transpose(2, 3) * (WIDTH // N_HEADS) ** -0.5  # (n, heads, tokens, tokens)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)  # (n, tokens, heads, WIDTH / heads)
        return self.output(mixed.reshape(-1, N_PATCHES, WIDTH))


class Encoder(nn.Module):
    """Attention and a feed-forward part, each added to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention(), nn.Dropout(0.1))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, N_HIDDEN),
            nn.ReLU(),
            nn.Linear(N_HIDDEN, WIDTH),
            nn.Dropout(0.1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the sequence (n, tokens, WIDTH)."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.feed_forward(tokens)


class Mean(nn.Module):
    """The mean over a sequence: (n, tokens, WIDTH) -> (n, WIDTH)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean."""
        return tokens.mean(1)


def network() -> nn.Sequential:
    """Return the network, untrained."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        patches=RawConv2d(1, WIDTH, PATCH, PATCH, padding=0, shift=73.0, scale=90.0), tokens=Tokens()
    )
    layers |= {f"encoder{number}": Encoder() for number in range(1, N_LAYERS + 1)}
    layers |= {"norm": nn.LayerNorm(WIDTH), "mean": Mean(), "fc": nn.Linear(WIDTH, 10)}
    return nn.Sequential(layers)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, and write the samples that are committed beside the network."""
    training.main(NAME, EPOCHS, network, arguments, padded_crop, weight_decay=0.05)


if __name__ == "__main__":
    sys.exit(exit_code(main))
