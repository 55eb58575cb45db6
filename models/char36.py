"""Render the characters 0-9 and A-Z, one to an image, distorted and on cluttered backgrounds.

Each image is cut from an imagined line of text: a character in the middle, parts of neighbours of the same
font beside it, turned, sheared and stretched together; on a background of soft blotches and strokes,
lighter or darker than the text; blurred and noisy.

The task is that of Jaderberg, Vedaldi and Zisserman, "Deep Features for Text Spotting" (2014), which
Lebedev et al. decompose; the images are our own.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import ImageFont

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIDE = 24
"""Height and width of an image."""

TEST_FONTS = ("DejaVuSerif", "FreeSans", "LiberationMono")
"""Families whose fonts are used for test images alone: one with serifs, one without, one of fixed width."""

VERSION = 1
"""To be raised with every change that makes other images of the same arguments."""

FINE = 2 * SIDE
"""Side of the image before it is averaged to half its size, against jagged edges."""

GLYPH = 44
"""Font size on the fine image."""

MAX_TURN = 0.2
"""Largest rotation, in radians."""

MAX_SHEAR = 0.25
MAX_STRETCH = 0.25
"""Largest change of a size, in its logarithm."""

MAX_SHIFT = 4.0
"""Largest shift, in pixels of the fine image."""

MIN_CONTRAST = 50.0
"""Least difference between text and mean background, in grey levels."""

MAX_BLUR = 1.2
"""Largest radius of blur, in pixels of the fine image."""

MAX_NOISE = 12.0
"""Largest standard deviation of noise, in grey levels."""


def split(
    fonts: Mapping[str, NDArray[np.generic]],
) -> tuple[list[NDArray[np.generic]], list[NDArray[np.generic]]]:
    """Return the fonts for training and those for test images: font files by name, as bytes."""
    names = sorted(fonts)
    unseen = [name for name in names if _family(name) in TEST_FONTS]
    return [fonts[name] for name in names if name not in unseen], [fonts[name] for name in unseen]


def render(
    fonts: Sequence[NDArray[np.generic]], n_images: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images ``(n, 1, 24, 24)`` uint8 and labels ``(n,)``, as many of each class as of any other.

    Args:
        fonts: Font files, as bytes.
        n_images: How many images.
        rng: Decides everything that is random.

    Raises:
        ModuleNotFoundError: Pillow is missing; it comes with the extra ``data``.
    """
    from PIL import ImageFont

    basic = ImageFont.Layout.BASIC  # the same wherever Pillow was built
    faces = [ImageFont.truetype(io.BytesIO(font.tobytes()), GLYPH, layout_engine=basic) for font in fonts]
    labels = rng.permutation(np.arange(n_images) % len(CLASSES))
    images = np.empty((n_images, 1, SIDE, SIDE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        face = faces[rng.integers(len(faces))]
        text = _text(face, CLASSES[label], rng)  # (SIDE, SIDE), 0..1
        image[0] = _photographed(text, rng)
    return images, labels.astype(np.int64)


def _family(file_name: str) -> str:
    """Return the part of a font's file name that its weights and slants share.

    >>> _family("LiberationMono-BoldItalic.ttf"), _family("FreeSansOblique.ttf")
    ('LiberationMono', 'FreeSans')
    """
    stem = file_name.removesuffix(".ttf").partition("-")[0]
    for style in ("Italic", "Oblique", "Bold"):
        stem = stem.removesuffix(style)
    return stem


def _text(face: "ImageFont.FreeTypeFont", character: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how much of each pixel a distorted character and its neighbours cover, (SIDE, SIDE)."""
    from PIL import Image, ImageDraw

    line = Image.new("L", (2 * FINE, 2 * FINE))
    draw = ImageDraw.Draw(line)
    left, top, right, bottom = draw.textbbox((0, 0), character, face)
    x, y = FINE - (left + right) / 2, FINE - (top + bottom) / 2
    draw.text((x, y), character, 255, face)
    gap = rng.uniform(0, 6)
    before, after = (CLASSES[number] for number in rng.integers(len(CLASSES), size=2))
    draw.text((x - gap - draw.textlength(before, face), y), before, 255, face)
    draw.text((x + gap + draw.textlength(character, face), y), after, 255, face)
    fine = line.transform((FINE, FINE), Image.Transform.AFFINE, _distortion(rng), Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(2), np.float64) / 255


def _distortion(rng: np.random.Generator) -> tuple[float, ...]:
    """Return the affine map from pixels of the fine image to those of the drawn line."""
    turn, shear = rng.uniform(-1, 1, 2) * (MAX_TURN, MAX_SHEAR)
    stretch = np.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2))
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(stretch)  # (2, 2)
    shift = FINE + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) - matrix @ (FINE / 2, FINE / 2)  # (2,)
    (a, b), (d, e) = matrix.tolist()
    return a, b, float(shift[0]), d, e, float(shift[1])


def _photographed(text: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return text on a background, blurred and noisy, (SIDE, SIDE)."""
    from PIL import Image, ImageFilter

    background = _background(rng)
    mean = float(background.mean())
    darker = rng.random() < mean / 255
    room = mean if darker else 255 - mean
    contrast = rng.uniform(MIN_CONTRAST, max(room, MIN_CONTRAST + 1))
    ink = mean - contrast if darker else mean + contrast
    pixels = background * (1 - text) + ink * text
    blurred = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, MAX_BLUR / 2))
    )
    noise = rng.normal(0, rng.uniform(0, MAX_NOISE), text.shape)
    return np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return soft blotches crossed by up to three strokes, (SIDE, SIDE), 0..255."""
    from PIL import Image, ImageDraw

    level, spread = rng.uniform(30, 225), rng.uniform(0, 60)
    blotches = np.clip(level + rng.uniform(-spread, spread, (4, 4)), 0, 255).astype(np.uint8)
    image: Image.Image = Image.fromarray(blotches).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4)):
        ends = rng.uniform(-4, SIDE + 4, 4).tolist()
        grey = int(np.clip(level + rng.uniform(-70, 70), 0, 255))
        draw.line(ends, fill=grey, width=int(rng.integers(1, 4)))
    return np.asarray(image, np.float64)
