"""Standard data sets as numpy arrays, fetched by pin from packages and kept as arrays in the cache.

Images are uint8 in the order ONNX convolutions take, ``(n, channels, height, width)``; labels are int64
``(n,)``. The first load of a data set needs the network, a later one reads one ``.npz``.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from models import char36 as characters
from models.data_pins import DATA_PINS
from models.fetch import FetchError
from models.packages import data_folder, unpacked

__all__ = ["DataSet", "char36", "cifar10", "fashion_mnist", "mnist", "photos"]

Arrays = dict[str, NDArray[np.generic]]
Files = Mapping[str, Path]


@dataclass(frozen=True)
class DataSet:
    """Labelled images.

    Args:
        train_images: ``(n, channels, height, width)`` uint8.
        train_labels: ``(n,)`` int64.
        test_images: As `train_images`.
        test_labels: As `train_labels`.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def mnist() -> DataSet:
    """Return MNIST: 60,000 + 10,000 digits, (1, 28, 28).

    Raises:
        FetchError: It is not in the cache and cannot be fetched, or the cached file is spoilt.
    """
    return _data_set(_fetched("mnist", lambda files: _idx(files, "", Path.read_bytes)))


def fashion_mnist() -> DataSet:
    """Return Fashion-MNIST: 60,000 + 10,000 pieces of clothing, (1, 28, 28).

    Raises:
        FetchError: It is not in the cache and cannot be fetched, or the cached file is spoilt.
    """
    return _data_set(
        _fetched("fashion_mnist", lambda files: _idx(files, ".gz", lambda p: gzip.decompress(p.read_bytes())))
    )


def cifar10() -> DataSet:
    """Return CIFAR-10: 50,000 + 10,000 RGB photos, (3, 32, 32).

    Raises:
        FetchError: It is not in the cache and cannot be fetched or decoded, or the cached file is spoilt.
    """
    return _data_set(_fetched("cifar10", _cifar10))


def char36(n_train: int = 57_600, n_test: int = 7_200, seed: int = 0) -> DataSet:
    """Return rendered characters 0-9 and A-Z on cluttered backgrounds, (1, 24, 24); see `models.char36`.

    The fonts of the test images are those of `models.char36.TEST_FONTS`; no training image uses them. The
    same arguments and the same Pillow give the same images.

    Raises:
        FetchError: The fonts are not in the cache and cannot be fetched or drawn, or a cached file is spoilt.
    """

    def render() -> Arrays:
        _need_pillow()
        fonts = _fetched("fonts", _raw)
        seen, unseen = characters.split(fonts)
        train_rng, test_rng = np.random.default_rng(seed).spawn(2)
        train_images, train_labels = characters.render(seen, n_train, train_rng)
        test_images, test_labels = characters.render(unseen, n_test, test_rng)
        return vars(DataSet(train_images, train_labels, test_images, test_labels))

    key = (DATA_PINS["fonts"], n_train, n_test, seed, characters.VERSION)
    return _data_set(cached("char36", key, render))


def photos() -> dict[str, NDArray[np.uint8]]:
    """Return the photos that scikit-image carries, by name: RGB as (3, height, width), grey as (1, ...).

    Raises:
        FetchError: They are not in the cache and cannot be fetched or decoded, or the cached file is spoilt.
    """
    return {name: np.asarray(image, np.uint8) for name, image in _fetched("photos", _photos).items()}


def _data_set(arrays: Arrays) -> DataSet:
    return DataSet(**arrays)  # type: ignore[arg-type]  # written by this module with these types


def _fetched(name: str, unpack: Callable[[Files], Arrays]) -> Arrays:
    """Return the arrays that `unpack` makes of the pinned files of a data set."""

    def make() -> Arrays:
        with unpacked(DATA_PINS[name]) as files:
            return unpack(files)

    return cached(name, DATA_PINS[name], make)


def cached(name: str, key: object, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays kept under a name and all they depend on, made now when they are not there."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    path = data_folder() / f"{name}-{digest}.npz"
    if not path.is_file():
        made = make()
        data_folder().mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=data_folder(), prefix=".write-") as scratch:
            fresh = Path(scratch, path.name)
            np.savez(fresh, **made)  # type: ignore[arg-type]  # no array is called allow_pickle
            fresh.replace(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)  # the zip's own checksums are compared here
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise FetchError(f"{path} is spoilt ({error}): delete it, and it is fetched again.") from error


def _idx(files: Files, suffix: str, read: Callable[[Path], bytes]) -> Arrays:
    """Read the four files of the MNIST family."""
    arrays: Arrays = {}
    for ours, theirs in (("train", "train"), ("test", "t10k")):
        pixels = np.frombuffer(read(files[f"{theirs}-images-idx3-ubyte{suffix}"]), np.uint8, offset=16)
        labels = np.frombuffer(read(files[f"{theirs}-labels-idx1-ubyte{suffix}"]), np.uint8, offset=8)
        arrays[f"{ours}_images"] = pixels.reshape(-1, 1, 28, 28)
        arrays[f"{ours}_labels"] = labels.astype(np.int64)
    return arrays


def _cifar10(files: Files) -> Arrays:
    """Read five PNG files of training images and one of test images: every line is an image (H W C)."""

    def images(name: str) -> NDArray[np.uint8]:
        return _pixels(files[name], "RGB").reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)

    def labels(name: str) -> NDArray[np.int64]:
        return np.array(json.loads(files[name].read_text()), np.int64)

    train = [images(f"data_batch_{number}.png") for number in range(1, 6)]
    return vars(
        DataSet(
            np.concatenate(train),
            labels("train_lables.json"),
            images("test_batch.png"),
            labels("test_lables.json"),
        )
    )


def _photos(files: Files) -> Arrays:
    photos: Arrays = {}
    for file_name, path in files.items():
        pixels = _pixels(path)
        photos[file_name.removesuffix(".png")] = (
            pixels[np.newaxis] if pixels.ndim == 2 else pixels[:, :, :3].transpose(2, 0, 1)
        )
    return photos


def _raw(files: Files) -> Arrays:
    return {name: np.frombuffer(path.read_bytes(), np.uint8) for name, path in files.items()}


def _pixels(path: Path, mode: str | None = None) -> NDArray[np.uint8]:
    """Return the pixels of an image file, (height, width) or (height, width, channels)."""
    _need_pillow()
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert(mode) if mode else image)


def _need_pillow() -> None:
    if find_spec("PIL") is None:
        raise FetchError("Pillow, which decodes and draws images, is missing: pip install pillow==13.0.0.")
