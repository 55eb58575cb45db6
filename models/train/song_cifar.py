"""Train the CIFAR-10 network of Song et al. (Journal of Software 32(11), 2021, p. 3468) and write it as ONNX.

    python -m models.train.song_cifar

Two convolutions 5x5 (3 -> 64 -> 64, each followed by a 2x2 pooling) on crops of 24x24, and fully connected
layers of 384, 192 and 10 units. It is trained on random crops, mirrored at random, and tested on the centre.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from models import data
from models.evaluate import Samples, centre
from models.train import training
from models.train.training import RawConv2d, Recipe

NAME = "song_cifar"
EPOCHS = 20
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


def crop(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Cut SIDE x SIDE out of every image at a random place, and mirror half of them.

    Without a generator the centre is cut out.
    """
    room = images.shape[2] - SIDE
    if generator is None:
        return images[:, :, room // 2 : room // 2 + SIDE, room // 2 : room // 2 + SIDE]
    top, left = torch.randint(room + 1, (2, len(images)), generator=generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    places = torch.arange(SIDE)
    rows = top[:, None] + places  # (n, SIDE)
    columns = left[:, None] + torch.where(mirrored[:, None], places.flip(0), places)  # (n, SIDE)
    one = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[one, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def main(arguments: list[str] | None = None) -> int:
    """Train, export, and write the samples that are committed beside the network."""
    options = training.options(NAME, EPOCHS).parse_args(arguments)
    training.begin(options.seed, options.threads)
    photos = data.cifar10()
    test = Samples(centre(photos.test_images, SIDE), photos.test_labels)
    trained = network()
    folder: Path = options.output
    recipe = Recipe(options.epochs, peak_rate=1.5e-3, seed=options.seed, bfloat16=options.bfloat16)
    log = folder / "train" / f"{NAME}.csv"
    training.train(trained, photos.train_images, photos.train_labels, recipe, crop, log)
    training.export(trained, folder / f"{NAME}.onnx", test.images.shape[1:])
    training.write_samples(folder, NAME, centre(photos.train_images, SIDE), test, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
