"""The glyphs dataset: letters of many scripts from matplotlib's fonts, without a download.

By design it is as hard as Omniglot: nearest neighbours on pixels reach about the same accuracy on
both. A method can thus be developed and tested without the real drawings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from fontTools import unicodedata as scripts
from fontTools.ttLib import TTFont
from PIL import ImageFont
from torch import Tensor
from torch.nn import functional as F

from metalearn.errors import UsageError
from metalearn.tasks.cache import Splits, cached
from metalearn.tasks.images import LabelledImages

# Whole scripts are held out, so that test tasks have new scripts, not only new letters.
# The training split has all other scripts: Latin, Greek, Cyrillic, Arabic, Canadian syllabics.
TEST_SCRIPTS = ("Armn", "Geor", "Hebr", "Laoo", "Nkoo")
VALIDATION_SCRIPTS = ("Tfng", "Lisu", "Ital", "Ogam", "Copt")

# The order matters: shapes of letters are compared in the first face that has them. Other font
# files of matplotlib have no letters, boxes for all of Unicode, or symbols in place of letters.
_FAMILIES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")

_EM = 64  # pixels; the size of the renders from which drawings are sampled
_CANVAS = 128
_MIN_INK = 8  # pixels, of the 64 of an em; anything smaller is a dot or a tick

# Two letters count as equal if the correlation of their blurred shapes is above the first number
# and their largest difference is at most the second.
_SAME_CORRELATION = 0.90
_SAME_DIFFERENCE = 0.30
# Between splits the correlation alone decides: an accent does not make a new shape.
_SAME_ACROSS = 0.93

# The strengths of the distortions: a standard deviation or half a range each.
_ROTATION = 0.16  # radians
_SHEAR = 0.16
_STRETCH = 0.11  # of the log of the scale, along each axis
_SHIFT = 0.09  # of the half side
_ELASTIC = 0.075  # of the half side, at each of _KNOTS x _KNOTS points
_KNOTS = 5
_MOST_DRAWINGS, _LARGEST_SIZE = 1000, 1024
_FILL = 0.72  # of the image's side; the longer side of an undistorted letter's box

BUILDABLE = ("glyphs",)
"""The functions that a config may name."""
CACHED = True
"""The splits are kept in the cache as arrays."""
INK_IS_HIGH = True
"""The images are light on dark, unlike scans of a page."""


@dataclass(frozen=True)
class _Face:
    font: ImageFont.FreeTypeFont
    letters: frozenset[int]


def glyphs(seed: int = 0, drawings: int = 20, size: int = 28) -> dict[str, LabelledImages]:
    """Return the splits "train", "validation" and "test", with letters of disjoint scripts.

    Images have the shape (N, 1, size, size) and high values for ink. A class has a name such as
    "Georgian/U+10D0". Letters that look alike (Latin A, Greek Alpha) occur once over all splits: in
    the test split, else in the validation split. Within a split, the lowest code point is kept. The
    dataset is built once and then read from the cache.

    Args:
        seed: of faces and distortions; the letters and their splits do not depend on it.
        drawings: the number of drawings of each letter, 1 to 1,000.
        size: the side of the images in pixels, 1 to 1,024.

    Raises:
        UsageError: `drawings` or `size` is out of its range, or matplotlib's fonts are missing.
    """
    if not (1 <= drawings <= _MOST_DRAWINGS and 1 <= size <= _LARGEST_SIZE):
        raise UsageError(
            f"drawings={drawings} and size={size}; expected 1 to {_MOST_DRAWINGS} drawings of 1 to "
            f"{_LARGEST_SIZE} pixels a side"
        )
    return cached(
        f"glyphs-v1-seed{seed}-drawings{drawings}-size{size}",
        lambda: _build(seed, drawings, size),
    )


def sample_letters(count: int, drawings: int, seed: int, size: int) -> LabelledImages:
    """Return drawings of random letters of the test scripts, without building the dataset.

    The letters do not look alike, and their faces are not bold. Drawings of a letter follow each
    other.

    Args:
        count: the number of letters, 1 to 20.
        drawings: the number of drawings of each letter.
        seed: of the letters and of their drawings.
        size: the side of the images in pixels.
    """
    random = np.random.default_rng(seed)
    faces = [face for face in _faces() if "Bold" not in (face.font.getname()[1] or "")]
    letters = sorted(set().union(*(face.letters for face in faces)))
    known = [code for code in letters if _split_of(code) == "test"]
    pool = set(random.choice(known, min(len(known), 6 * count), replace=False).tolist())
    codes = random.permutation(_distinct(faces, pool))[:count].tolist()
    images = [_draw(code, faces, seed, drawings, size) for code in codes]
    labels = torch.arange(len(codes)).repeat_interleave(drawings)
    return LabelledImages(torch.cat(images), labels, tuple(map(_name, codes)))


def _build(seed: int, drawings: int, size: int) -> Splits:
    threads = torch.get_num_threads()
    # A letter is too small for several threads; on a busy machine they take 5 times as long.
    torch.set_num_threads(1)
    try:
        faces = _faces()
        chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for code in _distinct(faces):
            chosen[_split_of(code)].append(code)
        result: Splits = {}
        for split, codes in chosen.items():
            images = [_draw(code, faces, seed, drawings, size) for code in codes]
            labels = torch.arange(len(codes)).repeat_interleave(drawings)
            result[split] = LabelledImages(torch.cat(images), labels, tuple(map(_name, codes)))
        return result
    finally:
        torch.set_num_threads(threads)


@cache
def _faces() -> list[_Face]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = []
    for family in _FAMILIES:
        # "DejaVuSans.ttf" before "DejaVuSans-Bold.ttf", in any locale
        for path in sorted(
            [
                *folder.glob(f"{family}.ttf"),
                *folder.glob(f"{family}-*.ttf"),
                *folder.glob(f"{family}[BI]*.ttf"),
            ],
            key=lambda p: (len(p.stem), p.stem),
        ):
            with TTFont(path, lazy=True) as font:
                codes = font.getBestCmap()
            letters = frozenset(c for c in codes if _is_letter(c))
            # The basic layout draws an Arabic letter alone, with every build of Pillow.
            pillow = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
            faces.append(_Face(pillow, letters))
    if not faces:
        raise UsageError(f"{folder} has none of matplotlib's fonts; install matplotlib again")
    return faces


def _is_letter(code: int) -> bool:
    """Return True for a letter of one script that is not a bold, raised or positional variant."""
    character = chr(code)
    return (
        unicodedata.category(character).startswith("L")
        and not unicodedata.decomposition(character).startswith("<")
        and scripts.script(character) not in ("Zyyy", "Zinh", "Zzzz")
    )


def _split_of(code: int) -> str:
    script = scripts.script(chr(code))
    if script in TEST_SCRIPTS:
        return "test"
    return "validation" if script in VALIDATION_SCRIPTS else "train"


def _name(code: int) -> str:
    return f"{scripts.script_name(scripts.script(chr(code)))}/U+{code:04X}"


def _render(code: int, face: _Face) -> tuple[np.ndarray, float] | None:
    """Return the centred letter, (canvas, canvas) uint8, and its relative longer side.

    The side is relative to that of the canvas. None: the face has no ink for the letter, or the
    letter is smaller than `_MIN_INK`.
    """
    mask, _ = face.font.getmask2(chr(code), mode="L")
    box = mask.getbbox()
    if box is None:
        return None
    ink = np.asarray(mask, dtype=np.uint8).reshape(mask.size[::-1])[
        box[1] : box[3], box[0] : box[2]
    ]
    ink = ink[:_CANVAS, :_CANVAS]
    height, width = ink.shape
    if max(height, width) < _MIN_INK:
        return None
    canvas = np.zeros((_CANVAS, _CANVAS), dtype=np.uint8)
    top, left = (_CANVAS - height) // 2, (_CANVAS - width) // 2
    canvas[top : top + height, left : left + width] = ink
    return canvas, max(height, width) / _CANVAS


def _distinct(faces: list[_Face], letters: Collection[int] | None = None) -> list[int]:
    """Return the sorted code points of `letters`, or of all, such that no two look alike."""
    order = {"test": 0, "validation": 1, "train": 2}  # the priority of the splits
    if letters is None:
        letters = frozenset().union(*(f.letters for f in faces))
    codes, renders = [], []
    for code in sorted(letters):
        face = next(face for face in faces if code in face.letters)
        if (render := _render(code, face)) is not None:
            codes.append(code)
            renders.append(render)
    rank = sorted(range(len(codes)), key=lambda i: (order[_split_of(codes[i])], codes[i]))
    canvases = torch.from_numpy(np.stack([renders[i][0] for i in rank]))
    scale = torch.tensor([renders[i][1] for i in rank])
    upright = torch.eye(2).expand(len(rank), 2, 2) * scale[:, None, None]
    grids = F.affine_grid(F.pad(upright, (0, 1)), [len(rank), 1, 48, 48], align_corners=False)
    shapes = _blur(_sample(canvases, grids, size=24)).flatten(1)
    unit = F.normalize(shapes, dim=1)
    kept: set[int] = set()
    alike = (unit @ unit.T).numpy()
    split = np.array([order[_split_of(codes[i])] for i in rank])
    for i, row in enumerate(alike):
        close = [k for k in np.flatnonzero(row[:i] > _SAME_CORRELATION).tolist() if k in kept]
        if any(split[k] != split[i] and row[k] > _SAME_ACROSS for k in close):
            continue
        if not close or (shapes[close] - shapes[i]).abs().amax(1).min() > _SAME_DIFFERENCE:
            kept.add(i)
    return sorted(codes[rank[i]] for i in kept)


def _blur(images: Tensor) -> Tensor:
    """Smooth (N, 1, h, w) images by a binomial kernel with a standard deviation of 1 pixel."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return F.conv2d(images, (line[:, None] * line)[None, None], padding=2)


def _sample(canvases: Tensor, grids: Tensor, size: int) -> Tensor:
    """Sample renders at `grids` (N, k size, k size, 2); average to (N, 1, size, size) in [0, 1]."""
    fine = F.grid_sample(canvases.float()[:, None] / 255, grids, align_corners=False)
    return F.avg_pool2d(fine, grids.shape[1] // size)


def _draw(code: int, faces: list[_Face], seed: int, drawings: int, size: int) -> Tensor:
    """Draw one letter, (drawings, 1, size, size) uint8, independently of all other letters."""
    random = np.random.Generator(np.random.PCG64([seed, code]))
    renders = [r for f in faces if code in f.letters and (r := _render(code, f)) is not None]
    picks = random.integers(len(renders), size=drawings)
    angle = random.normal(0, _ROTATION, drawings)
    shear = random.normal(0, _SHEAR, drawings)
    stretch = np.exp(random.normal(0, _STRETCH, (drawings, 2)))
    shift = random.uniform(-_SHIFT, _SHIFT, (drawings, 2))
    knots = random.normal(0, _ELASTIC, (drawings, 2, _KNOTS, _KNOTS))

    # The grid maps pixels of the drawing to pixels of the render: the inverse of the distortion.
    scale = np.array([renders[p][1] for p in picks]) / _FILL
    cos, sin, one, nil = np.cos(angle), np.sin(angle), np.ones(drawings), np.zeros(drawings)
    turn = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    slant = np.stack([one, shear, nil, one], -1).reshape(-1, 2, 2)
    linear = (scale[:, None] * stretch)[:, :, None] * (slant @ turn)
    fine = 2 * size
    line = torch.linspace(-1, 1, 2 * fine + 1)[1::2]
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    bend = F.interpolate(
        torch.from_numpy(knots).float(), (fine, fine), mode="bicubic", align_corners=True
    )
    points = points + bend.permute(0, 2, 3, 1) + torch.from_numpy(shift).float()[:, None, None]
    grids = points @ torch.from_numpy(linear).float().transpose(1, 2)[:, None]

    canvases = torch.from_numpy(np.stack([renders[p][0] for p in picks]))
    ink = _sample(canvases, grids, size)
    return (ink * 255).round().clamp(0, 255).to(torch.uint8)
