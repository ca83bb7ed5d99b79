"""The pixels of images: every mode of Pillow and every type of array by one rule, or refused.

- A rotation in the EXIF data is applied.
- Transparency (RGBA, LA, a palette or a colour that is transparent) is composited on white.
- 16 bits of grey are scaled to 8 bits: 0 to 0 and 65,535 to 255. Of 16 bits of a colour Pillow
  keeps the upper 8.
- CMYK, YCbCr, HSV and palettes become RGB by Pillow's conversion. Grey is luma (ITU-R 601).
- Bilevel images become 0 and 255. Of several frames the first is taken.
- 32-bit integers and floats have no fixed range and are refused, as is LAB.
- Arrays have to be uint8.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}


def check_bytes(pixels: Any) -> np.ndarray:
    """Return an array of pixels as it is.

    Raises:
        ValueError: the values are not uint8. No other type has a range that is the same everywhere:
            floats may end at 1 or at 255.
    """
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        kind = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"an image is of {kind}; expected uint8 pixels from 0 to 255")
    return pixels


def read_image(
    file: Path | IO[bytes], channels: int, size: int | None = None, resize: bool = False
) -> np.ndarray:
    """Read an image file to (height, width, channels) uint8, by the rules of this module.

    Args:
        file: the path, or a binary file.
        channels: 1 for grey, 3 for RGB.
        size: the side of the result in pixels; None: the image's own sides.
        resize: True: the image is resized to `size`, whatever its shape. False: another size is an
            error.

    Raises:
        ValueError: the file is not an image, is damaged, is too large for its pixels to be read, or
            has another size or a mode without a rule.
    """
    name = f"{file}" if isinstance(file, Path) else "an image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata; errors remain
            with Image.open(file) as image:
                if size is not None and not resize and image.size != (size, size):
                    shape = (image.size[1], image.size[0], channels)  # before any pixel is read
                    raise ValueError(f"it is of shape {shape}, not {(size, size, channels)}")
                plain = _plain(image, channels)
                if size is not None and resize:
                    plain = plain.resize((size, size), Image.Resampling.LANCZOS)
    except Exception as fault:  # the decoders' errors on a damaged file share no class
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise ValueError(f"{name} cannot be read: {reason}") from fault
    return np.asarray(plain).reshape(plain.height, plain.width, channels)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Return the image as L or RGB, upright and opaque."""
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode in ("F", "LAB") or (upright.mode == "I" and image.format != "PNG"):
        raise ValueError(f"mode {upright.mode} has no fixed range; save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        upright = _eight_bits(upright, image.info.get("transparency"))
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, colours).convert("RGB")
    return upright.convert(_MODES[channels])


def _eight_bits(image: Image.Image, clear: int | None) -> Image.Image:
    """Scale 16 bits of grey to 8; pixels of the value `clear` are transparent."""
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("mode I has values beyond 16 bits; save it with 8 or 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if clear is None:
        return grey
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))
