"""Every mode of an image becomes the bytes that the rule of its mode says, or is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metalearn.tasks.pixels import check_bytes, read_image

BOTH = ("PNG", "TIFF")


def read(image: Image.Image, form: str, channels: int = 3, **options: Any) -> list[Any]:
    """The pixels of the image after it is saved: grey values, or RGB triples, of its one row."""
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    pixels = read_image(file, channels)
    assert pixels.dtype == np.uint8 and pixels.shape == (image.height, image.width, channels)
    return pixels[0, :, 0].tolist() if channels == 1 else pixels[0].tolist()


def row(*values: Any, dtype: Any = np.uint8) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


@pytest.mark.parametrize("form", BOTH)
def test_sixteen_bits_of_grey_are_scaled(form: str) -> None:
    values = np.arange(256) * 257  # each 8-bit value has one 16-bit value in the same place
    assert read(row(*values, dtype=np.uint16), form, 1) == list(range(256))
    assert read(row(128, 129, 65407, 65535, dtype=np.uint16), form, 1) == [0, 1, 255, 255]


@pytest.mark.parametrize("form", [*BOTH, "WEBP"])
def test_transparency_is_composited_on_white(form: str) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    ink = [(0, 0, 0, alpha) for alpha in (0, 51, 255)] + [(200, 100, 0, 0)]
    grey = [[255] * 3, [204] * 3, [0] * 3, [255] * 3]
    assert read(row(*ink), form, **options) == grey
    assert read(row(*ink), form, 1, **options) == [255, 204, 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_with_alpha_and_transparent_colours_are_composited(channels: int) -> None:
    white = 255 if channels == 1 else [255] * 3
    black = 0 if channels == 1 else [0] * 3
    alpha = Image.merge("LA", (row(0, 0), row(0, 255)))
    assert read(alpha, "PNG", channels) == [white, black]
    assert read(row(0, 7), "PNG", channels, transparency=7) == [black, white]
    wide = row(0, 300, dtype=np.uint16)
    assert read(wide, "PNG", channels, transparency=300) == [black, white]
    colours = row((0, 0, 0), (1, 2, 3))
    assert read(colours, "PNG", channels, transparency=(1, 2, 3)) == [black, white]


def test_palettes_with_and_without_transparency() -> None:
    image = row(0, 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert read(image, "PNG") == [[255, 0, 0], [0, 255, 0]]
    assert read(image, "PNG", transparency=0) == [[255, 255, 255], [0, 255, 0]]
    assert read(image, "PNG", transparency=bytes([255, 0])) == [[255, 0, 0], [255, 255, 255]]


def test_other_colours_become_rgb_and_luma() -> None:
    cyan = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert read(cyan, "TIFF") == [[0, 255, 255]]
    assert np.allclose(
        read(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), [0, 255, 255], atol=3
    )
    assert read(row(False, True, dtype=bool), "PNG", 1) == [0, 255]
    assert read(row((255, 0, 0), (0, 0, 255)), "BMP", 1) == [76, 29]  # 0.299 and 0.114 of 255
    assert read(row(9, 8), "PNG") == [[9] * 3, [8] * 3]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotation_is_applied(orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {  # how a camera stores it, by the EXIF standard
        **{1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]},
        **{5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, 3)},
    }[orientation]
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(file, 1)[..., 0], upright)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_a_mode_without_a_range_is_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.tiff"
    Image.new(mode, (2, 2)).save(path)
    with pytest.raises(ValueError, match=rf"image.tiff cannot be read: mode {mode}"):
        read_image(path, 3)


def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:60] + b"\0" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.png cannot be read: .+"):
            read_image(path, 3)


def test_resizing_takes_any_shape_and_the_same_size_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(read_image(path, 3, 8, resize=True), pixels)
    Image.new("RGB", (31, 7), (1, 2, 3)).save(path)
    assert (read_image(path, 3, 5, resize=True) == [[[1, 2, 3]]]).all()
    with pytest.raises(ValueError, match=r"of shape \(7, 31, 3\), not \(5, 5, 3\)"):
        read_image(path, 3, 5)


@pytest.mark.parametrize(
    "pixels",
    [np.array([0.5, np.nan]), np.array([True]), np.array([3], np.int64), np.array([1.0]), [1, 2]],
    ids=["NaN", "bool", "int64", "float", "list"],
)
def test_pixels_of_another_type_are_refused(pixels: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels from 0 to 255"):
        check_bytes(pixels)
