"""Letters as small images that resemble handwriting: what the demo's base network is pretrained on.

Every letter comes from a font that ships with matplotlib or Pillow. It is warped, thinned or thickened, blurred and
coarsened at random. No digit is drawn, and neither are the letters O, o, I, l and i: 0 and 1 are drawn like them, and
the demo claims that what was learned on other shapes carries over to digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

IMAGE_SIZE = 32
CANVAS_SIZE = 64
"""Side of the square, in pixels, that a letter is first drawn to fill, before it is warped and made small."""
FONT_SIZE = 48
"""Size, in pixels, that the fonts are asked for."""
STROKES_PX = (0, 1, 2, 3)
"""By how much, at that size, the outline of a letter is moved outwards: pens from thin to thick."""

CLASSES: tuple[str, ...] = (
    *("Cc", "Kk", "Mm", "Pp", "Ss", "Uu", "Vv", "Ww", "Xx", "Zz", "Jj", "Yy"),
    *"ABDEFGHLNQRT",
    *"abdefghnqrt",
)
"""Letters of each class. Upper and lower case are one class where only their size tells them apart."""

_CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_LETTERS = "".join(sorted(character for letters in CLASSES for character in letters))


@dataclass(frozen=True)
class Face:
    """One alphabet of one font. `offset` leads from an ASCII letter to the font's character."""

    file: str | None
    """Name of the file among matplotlib's fonts; None is Pillow's own font."""
    letters: str = _LETTERS
    capital_offset: int = 0
    small_offset: int = 0

    def character(self, letter: str) -> str:
        """The font's character for an ASCII letter."""
        return chr(ord(letter) + (self.capital_offset if letter.isupper() else self.small_offset))


def _faces() -> tuple[Face, ...]:
    dejavu = [
        f"DejaVu{family}{style}.ttf"
        for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
        for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
    ]
    stix = [f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")]
    computer_modern = [f"{name}10.ttf" for name in ("cmr", "cmb", "cmss", "cmti", "cmtt", "cmmi")]
    plain = [Face(file) for file in (*dejavu, *stix, *computer_modern, None)]
    # Characters U+1D4D0 and U+1D4EA onwards: a pen's script, the nearest thing to handwriting among these fonts.
    script = [
        Face(file, capital_offset=0x1D4D0 - ord("A"), small_offset=0x1D4EA - ord("a"))
        for file in ("STIXGeneral.ttf", "STIXGeneralBolIta.ttf")
    ]
    # Computer Modern's symbols hold calligraphic capitals, and other symbols in place of small letters.
    return (*plain, *script, Face("cmsy10.ttf", letters=_CAPITALS))


FACES = _faces()


@cache
def _font(file: str | None) -> ImageFont.FreeTypeFont:
    if file is not None:
        return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / file), FONT_SIZE)
    font = ImageFont.load_default(FONT_SIZE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError(f"Pillow's default font is a {type(font).__name__}: this Pillow was built without FreeType")
    return font


@cache
def draw_letter(face: Face, letter: str, *, stroke_px: int) -> np.ndarray:
    """A letter with its outline moved outwards, cropped and enlarged until it touches two sides of the canvas.

    float32 [CANVAS_SIZE, CANVAS_SIZE], ink 1 on 0.
    """
    sheet = Image.new("L", (3 * FONT_SIZE, 3 * FONT_SIZE))
    draw = ImageDraw.Draw(sheet)
    corner = (FONT_SIZE, FONT_SIZE)
    draw.text(corner, face.character(letter), fill=255, font=_font(face.file), stroke_width=stroke_px)
    box = sheet.getbbox()
    if box is None:
        raise ValueError(f"{face} draws nothing for {letter!r}")
    ink = sheet.crop(box)
    scale = CANVAS_SIZE / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (CANVAS_SIZE, CANVAS_SIZE))
    canvas.paste(ink, ((CANVAS_SIZE - ink.width) // 2, (CANVAS_SIZE - ink.height) // 2))
    return np.asarray(canvas, np.float32) / 255


def render(letter: str, face: Face, random: np.random.Generator) -> np.ndarray:
    """One random drawing of a letter. uint8 [IMAGE_SIZE, IMAGE_SIZE]; mostly white on black, sometimes the reverse."""
    ink = draw_letter(face, letter, stroke_px=int(random.choice(STROKES_PX)))
    ink = ndimage.map_coordinates(ink, _warp(random), order=1, mode="constant")
    ink = _coarsen(ink, random)
    low = random.uniform(0, 40)
    high = random.uniform(low + 120, 255)
    pixels = low + (high - low) * ink + random.normal(0, random.uniform(0, 8), ink.shape)
    if random.random() < 0.25:
        pixels = 255 - pixels
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _warp(random: np.random.Generator) -> np.ndarray:
    """Where each pixel of an image takes its ink from: float64 [2, 2 × IMAGE_SIZE, 2 × IMAGE_SIZE], in canvas pixels.

    A rotation, a shear, a stretch and a shift, and on top a smooth random bending like that of an unsteady hand.
    """
    side = 2 * IMAGE_SIZE
    angle = np.deg2rad(random.uniform(-18, 18))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, 0], [random.uniform(-0.35, 0.35), 1]])
    fill = random.uniform((0.75, 0.5), 1.05)  # share of the image that the letter fills, down and across
    matrix = rotation @ shear @ np.diag(1 / fill)

    centered = np.indices((side, side)) - (side - 1) / 2
    shift = random.uniform(-0.07, 0.07, size=(2, 1, 1)) * side
    straight = np.tensordot(matrix, (centered + shift) * (CANVAS_SIZE / side), axes=1) + (CANVAS_SIZE - 1) / 2
    knots = random.normal(0, random.uniform(0, 0.055) * CANVAS_SIZE, size=(2, 4, 4))
    bending = np.stack([ndimage.zoom(axis, side / 4, order=3, mode="nearest") for axis in knots])
    return np.asarray(straight + bending)


def _coarsen(ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blur, reduce to a random resolution and enlarge smoothly again: images come from scanners of every quality."""
    image = Image.fromarray(ndimage.gaussian_filter(ink, random.uniform(0, 1.2)).astype(np.float32))
    coarse = int(random.integers(8, IMAGE_SIZE, endpoint=True)) if random.random() < 0.5 else 8
    image = image.resize((coarse, coarse), Image.Resampling.BOX)
    smooth = Image.Resampling.BICUBIC if random.random() < 0.5 else Image.Resampling.BILINEAR
    enlarged: np.ndarray = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), smooth))
    return enlarged.clip(0, 1)


def render_many(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random drawings, classes in equal shares and in random order.

    Returns uint8 [count, IMAGE_SIZE, IMAGE_SIZE, 3] and their classes, int32 [count], indices into CLASSES. The same
    seed gives the same pixels wherever the same versions of Pillow, SciPy and the fonts are installed.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(CLASSES)).astype(np.int32)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for index, label in enumerate(labels):
        letter = CLASSES[label][random.integers(len(CLASSES[label]))]
        faces = [face for face in FACES if letter in face.letters]
        images[index] = render(letter, faces[random.integers(len(faces))], random)
    return np.repeat(images[..., np.newaxis], 3, axis=-1), labels
