"""The Omniglot dataset: 1,623 handwritten characters of 50 alphabets, 20 drawings each."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metalearn.errors import UsageError
from metalearn.system.files import with_home
from metalearn.tasks.cache import Splits, cache_folder, cached, is_cached
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.pixels import read_image

BUILDABLE = ("omniglot", "omniglot_background")
"""The functions that a config may name."""
CACHED = True
"""The splits are kept in the cache as arrays, so that the files are read once."""
INK_IS_HIGH = True
"""The images are light on dark, unlike scans of a page."""
LISTED = Path(__file__).with_name("omniglot_characters.csv")
"""The list of each split's characters by name, for `omniglot()` with its default options."""

SETS = ("images_background", "images_evaluation")
_SIDE = 105
_DRAWING = re.compile(r"(?P<character>[^/]+/character\d+)/[^/]+\.png")
_LARGEST_SIZE = 1024
LARGEST = 1 << 20  # bytes; the maximum size of one drawing; real drawings have a few hundred
_LAYOUT = "images_background and images_evaluation, each as a folder or a .zip"
_MEMBERS = 100_000  # the maximum number of members of an archive; Omniglot's have some 20,000
_TIMEOUT_S = 30.0


def omniglot(
    source: str | Path | None = None,
    size: int = 28,
    seed: int = 0,
    splits: tuple[int, int, int] = (1100, 100, 423),
    drawings: int = 20,
) -> dict[str, LabelledImages]:
    """Return Omniglot's splits "train", "validation" and "test", with disjoint characters.

    Images have the shape (N, 1, size, size) and high values for ink. A class has the name
    "Alphabet/characterNN". With seed 0 and the default numbers, `LISTED` names the characters of
    each split.

    Args:
        source: a folder with images_background and images_evaluation, each unpacked or as a .zip.
            None: `$METALEARN_DATA/omniglot` if it exists, else a download. A source is read only if
            the cache does not have the dataset with these options, even if it is given.
        size: the side of the images in pixels, 1 to 1,024.
        seed: shuffles the characters of all alphabets and of both sets before the split.
        splits: the number of characters of each split; their sum is the number in the source.
        drawings: the number of drawings of each character.

    Raises:
        UsageError: the size is out of its range; the source is missing, incomplete or damaged; its
            characters are not those of the release; or the download failed.
    """
    if not 1 <= size <= _LARGEST_SIZE:
        raise UsageError(f"size={size} is no side of an image; give 1 to {_LARGEST_SIZE} pixels")

    def build() -> Splits:
        folder = _default_source() if source is None else with_home(source)
        return _split(_read(folder, size, sum(splits), drawings), seed, splits)

    found = cached(_cache_name(size, seed, splits, drawings), build)
    listed = listed_characters()
    if seed == 0 and splits == tuple(map(len, listed.values())):
        for name, classes in listed.items():
            if found[name].classes != classes:
                odd = sorted(set(found[name].classes) ^ set(classes))[0]
                raise UsageError(
                    f"the {name} split of this Omniglot is not the one that {LISTED.name} lists "
                    f"(see {odd}); fetch the release again, or empty {cache_folder()}"
                )
    return found


def at_hand() -> bool:
    """Return True if `omniglot()` with its default options needs no download."""
    data = os.environ.get("METALEARN_DATA")
    if is_cached(_cache_name(28, 0, (1100, 100, 423), 20)):
        return True
    if data and (with_home(data) / "omniglot").is_dir():
        return True
    return all((cache_folder() / "omniglot" / f"{name}.zip").is_file() for name in SETS)


def _cache_name(size: int, seed: int, splits: tuple[int, int, int], drawings: int) -> str:
    return f"omniglot-v1-size{size}-seed{seed}-{'-'.join(map(str, splits))}x{drawings}"


def omniglot_background(
    source: str | Path | None = None,
    size: int = 28,
    validation: int = 5,
    characters: int = 1623,
    drawings: int = 20,
) -> dict[str, LabelledImages]:
    """Return Omniglot split by the sets of its release, for the one-shot test of the release.

    The test split is images_evaluation. The validation split has `validation` whole alphabets of
    images_background, the first by a hash of their names. All other alphabets of images_background
    are the training split. Images and class names are those of `omniglot`.

    Args:
        source, size, drawings: as in `omniglot`.
        validation: the number of alphabets in the validation split.
        characters: the number of characters in the source.

    Raises:
        UsageError: the cases of `omniglot`, or `validation` leaves no alphabet for training or is
            below 1.
    """
    if not 1 <= size <= _LARGEST_SIZE:
        raise UsageError(f"size={size} is no side of an image; give 1 to {_LARGEST_SIZE} pixels")

    def build() -> Splits:
        folder = _default_source() if source is None else with_home(source)
        images = _read(folder, size, characters, drawings)
        shown = {character for character, _, _ in _drawings_of(folder, SETS[0])}
        alphabets = sorted({_alphabet(c) for c in shown}, key=lambda a: _rank(0, a))
        if not 0 < validation < len(alphabets):
            raise UsageError(
                f"validation={validation}; expected from 1 to {len(alphabets) - 1} of the "
                f"{len(alphabets)} alphabets of {SETS[0]}"
            )
        held = set(alphabets[:validation])
        return {
            "train": _stacked(images, [c for c in shown if _alphabet(c) not in held]),
            "validation": _stacked(images, [c for c in shown if _alphabet(c) in held]),
            "test": _stacked(images, [c for c in images if c not in shown]),
        }

    return cached(f"omniglot-background-v1-size{size}-{validation}-{characters}x{drawings}", build)


@cache
def listed_characters() -> Mapping[str, tuple[str, ...]]:
    """Return the names of each split's characters, in the order of `LISTED`."""
    with LISTED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    splits = dict.fromkeys(row["split"] for row in rows)
    return {s: tuple(r["character"] for r in rows if r["split"] == s) for s in splits}


def _default_source() -> Path:
    data = os.environ.get("METALEARN_DATA")
    if data and (folder := with_home(data) / "omniglot").is_dir():
        return folder
    return _download()


def _download() -> Path:
    """Download the two archives, which are read without being unpacked; return their folder."""
    from torchvision.datasets import Omniglot, utils  # slow to import, and needed here only

    root = cache_folder() / "omniglot"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # torchvision has no timeout of its own
    try:
        for name in SETS:
            address = f"{Omniglot.download_url_prefix}/{name}.zip"
            utils.download_url(address, str(root), md5=Omniglot.zips_md5[name])
    except (OSError, RuntimeError) as fault:
        raise UsageError(
            f"Omniglot could not be downloaded into {root} ({fault}); fetch {SETS[0]}.zip and "
            f"{SETS[1]}.zip in another way and run `metalearn data prepare omniglot source=FOLDER`"
        ) from fault
    finally:
        socket.setdefaulttimeout(before)
    return root


def _read(folder: Path, size: int, characters: int, drawings: int) -> dict[str, np.ndarray]:
    """Read all drawings: (drawings, size, size) uint8 by the name of the character."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give source= a folder that holds {_LAYOUT}")
    images: dict[str, list[np.ndarray]] = {}
    for name in SETS:
        for character, where, read in _drawings_of(folder, name):
            images.setdefault(character, []).append(decode(read, where, size))
    for character, found in images.items():
        if len(found) != drawings:
            raise UsageError(
                f"{character} in {folder} has {len(found)} drawings instead of {drawings}; "
                "unpack or fetch Omniglot again"
            )
    if len(images) != characters:
        raise UsageError(
            f"{folder} holds {len(images)} characters instead of {characters}; "
            "unpack or fetch Omniglot again"
        )
    return {character: np.stack(found) for character, found in images.items()}


def _drawings_of(folder: Path, name: str) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Yield (character, location, reader) of each drawing of a set, in order of file names.

    An archive has priority over a folder, which may have been unpacked only in part. No member is
    extracted.
    """
    path = folder / f"{name}.zip"
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except Exception as fault:  # zipfile's errors for a damaged archive share no class
            raise UsageError(
                f"{path} is cut short or not a zip archive ({fault}); fetch it again"
            ) from fault
        with archive:
            if len(archive.infolist()) > _MEMBERS:
                raise UsageError(f"{path} has more than {_MEMBERS} members; fetch it again")
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                found = _DRAWING.fullmatch(info.filename.removeprefix(f"{name}/"))
                if found and info.filename.startswith(f"{name}/"):
                    where = f"{info.filename} in {path}"
                    if info.file_size > LARGEST:
                        raise UsageError(
                            f"{where} claims {info.file_size} bytes, which no drawing has; "
                            "fetch Omniglot again"
                        )
                    yield found["character"], where, partial(archive.read, info)
    elif (folder / name).is_dir():
        for file in sorted((folder / name).glob("*/character*/*.png")):
            found = _DRAWING.fullmatch(file.relative_to(folder / name).as_posix())
            if found:
                yield found["character"], str(file), file.read_bytes
    else:
        raise UsageError(f"{folder} has no {name}; put {_LAYOUT} there")


def decode(read: Callable[[], bytes], where: str, size: int) -> np.ndarray:
    """Decode one drawing to (size, size) uint8, with high values for ink.

    Args:
        read: returns the bytes of the image file.
        where: the name of the drawing in error messages.
        size: the side of the result in pixels.

    Raises:
        UsageError: the file is not an image of 105x105 pixels.
    """
    try:
        pixels = read_image(io.BytesIO(read()), 1)[..., 0]
    except Exception as fault:  # zipfile's errors for a damaged archive share no class
        raise UsageError(
            f"{where} is not a readable image ({fault}); fetch Omniglot again"
        ) from fault
    if pixels.shape != (_SIDE, _SIDE):
        raise UsageError(
            f"{where} is {pixels.shape[1]}x{pixels.shape[0]} pixels instead of {_SIDE}x{_SIDE}; "
            "give the original drawings, not resized ones"
        )
    drawing = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
    return 255 - np.asarray(drawing)


def _split(images: dict[str, np.ndarray], seed: int, splits: tuple[int, int, int]) -> Splits:
    ordered = sorted(images, key=lambda character: _rank(seed, character))
    result: Splits = {}
    start = 0
    for name, count in zip(("train", "validation", "test"), splits, strict=True):
        result[name] = _stacked(images, ordered[start : start + count])
        start += count
    return result


def _rank(seed: int, name: str) -> bytes:
    """Return the sort key of a name.

    The key is a hash, so that the order does not depend on the version of any library.
    """
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _alphabet(character: str) -> str:
    return character.partition("/")[0]


def _stacked(images: dict[str, np.ndarray], characters: list[str]) -> LabelledImages:
    classes = sorted(characters)
    stacked = torch.from_numpy(np.stack([images[c] for c in classes]))
    labels = torch.arange(len(classes)).repeat_interleave(stacked.shape[1])
    return LabelledImages(stacked.flatten(0, 1).unsqueeze(1), labels, tuple(classes))
