import io

import numpy as np
import pytest
from PIL import ImageFont

from models import char36, data
from models.data_pins import DATA_PINS

N = 72


@pytest.fixture(scope="module")
def fonts() -> list[np.ndarray]:
    """The one font that Pillow carries."""
    builtin = ImageFont.load_default(20)
    assert isinstance(builtin.path, io.BytesIO)
    return [np.frombuffer(builtin.path.getvalue(), np.uint8)]


def rendered(fonts, seed: int = 0, n: int = N):
    return char36.render(fonts, n, np.random.default_rng(seed))


def test_images_are_small_and_grey_and_labels_balanced(fonts):
    images, labels = rendered(fonts)
    assert (images.shape, images.dtype) == ((N, 1, 24, 24), np.uint8)
    assert np.bincount(labels).tolist() == [2] * 36


def test_the_same_seed_gives_the_same_images(fonts):
    first, again, other = (rendered(fonts, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_no_two_images_of_a_class_are_equal(fonts):
    images, _ = rendered(fonts)
    assert len(np.unique(images.reshape(N, -1), axis=0)) == N


def test_the_middle_shows_its_character(fonts, monkeypatch):
    """Without distortion, clutter or noise two images of a class agree in the middle, two classes do not."""
    for name in ("MAX_TURN", "MAX_SHEAR", "MAX_STRETCH", "MAX_SHIFT"):
        monkeypatch.setattr(char36, name, 0.0)
    (face,) = [ImageFont.truetype(io.BytesIO(font.tobytes()), char36.GLYPH) for font in fonts]
    rng = np.random.default_rng(0)
    first, again, other = (char36._text(face, character, rng)[:, 9:15] for character in "HHX")
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1


def test_no_font_of_the_test_images_is_seen_in_training():
    fonts = {pin.file_name: np.frombuffer(pin.file_name.encode(), np.uint8) for pin in DATA_PINS["fonts"]}
    seen, unseen = ({font.tobytes().decode() for font in part} for part in char36.split(fonts))
    assert (len(seen), len(unseen)) == (24, 10)
    assert {char36._family(name) for name in unseen} == set(char36.TEST_FONTS)
    assert not {char36._family(name) for name in seen} & set(char36.TEST_FONTS)


def test_the_data_set_renders_each_part_with_its_own_fonts(fonts, monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "_fetched", lambda name, unpack: {"A.ttf": fonts[0], "FreeSans.ttf": fonts[0]})
    used = []
    render = char36.render
    monkeypatch.setattr(char36, "render", lambda f, n, rng: (used.append((len(f), n)), render(f, n, rng))[1])
    found = data.char36(40, 36)
    assert used == [(1, 40), (1, 36)]
    assert (len(found.train_images), len(found.test_labels)) == (40, 36)
    np.testing.assert_array_equal(data.char36(40, 36).train_images, found.train_images)
    assert len(used) == 2
