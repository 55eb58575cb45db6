"""Random crops of training images: what a network sees of a batch (n, channels, height, width)."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["mirrored_crop", "padded_crop"]


def mirrored_crop(images: Tensor, generator: torch.Generator | None, side: int) -> Tensor:
    """Cut side x side out of every image at a random place, and mirror half of them.

    Without a generator the middle is cut out, and nothing is mirrored.
    """
    room = images.shape[2] - side
    if generator is None:
        return images[:, :, room // 2 : room // 2 + side, room // 2 : room // 2 + side]
    top, left = torch.randint(room + 1, (2, len(images)), generator=generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    places = torch.arange(side)
    rows = top[:, None] + places  # (n, side)
    columns = left[:, None] + torch.where(mirrored[:, None], places.flip(0), places)  # (n, side)
    one = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[one, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def padded_crop(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Shift every image by up to an eighth of its size, reflected at its border, and mirror half of them.

    Without a generator leave them.
    """
    if generator is None:
        return images
    side = images.shape[2]
    return mirrored_crop(functional.pad(images, (side // 8,) * 4, mode="reflect"), generator, side)
