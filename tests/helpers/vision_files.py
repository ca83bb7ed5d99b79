"""Small files of image datasets, each image of one flat colour."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from metalearn.tasks.images import LabelledImages
from metalearn.tasks.vision import cifar_fs, fc100, mini_imagenet, tiered_imagenet

CLASSES = (3, 2, 2)
SHORT = ("train", "val", "test")
EACH = 2  # images a class


def pixels(split: int, index: int, side: int) -> np.ndarray:
    """One flat colour, by which a test knows the image again."""
    image = np.zeros((side, side, 3), np.uint8)
    image[:] = (100 * split, 20 * index, 7)
    return image


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def by_folders(root: Path, side: int) -> None:
    for s, mode in enumerate(SHORT):
        for i in range(CLASSES[s] * EACH):
            save(root / mode / f"{mode}-{i // EACH}" / f"{i}.png", pixels(s, i, side))
            (root / mode / "notes.txt").touch()


def write_mini(root: Path, side: int = 84) -> None:
    for s, mode in enumerate(("train", "validation", "test")):
        count = CLASSES[s] * EACH
        content = {
            "image_data": np.stack([pixels(s, i, side) for i in range(count)]),
            "class_dict": {f"n{s}{c}": [EACH * c, EACH * c + 1] for c in range(CLASSES[s])},
        }
        (root / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(content))


def write_tiered(root: Path, side: int = 84) -> None:
    folder = root / "tiered-imagenet"
    folder.mkdir()
    for s, mode in enumerate(SHORT):
        images = []
        for i in range(CLASSES[s] * EACH):
            buffer = io.BytesIO()
            Image.fromarray(pixels(s, i, side)).save(buffer, "PNG")
            images.append(np.frombuffer(buffer.getvalue(), np.uint8))
        labels = {"label_specific": np.repeat(np.arange(CLASSES[s]), EACH)}
        (folder / f"{mode}_images_png.pkl").write_bytes(pickle.dumps(images))
        (folder / f"{mode}_labels.pkl").write_bytes(pickle.dumps(labels))


def write_cifar_fs(root: Path, side: int = 32) -> None:
    base = root / "cifarfs" / "cifar100"
    (base / "splits" / "bertinetto").mkdir(parents=True)
    for s, mode in enumerate(SHORT):
        names = [f"{mode}-{c}" for c in range(CLASSES[s])]
        (base / "splits" / "bertinetto" / f"{mode}.txt").write_text("\n".join(names) + "\n")
        for i in range(CLASSES[s] * EACH):
            folder = base / "data" / names[i // EACH]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(s, i, side)).save(folder / f"{i}.png")


def write_fc100(root: Path, side: int = 32) -> None:
    for s, mode in enumerate(SHORT):
        count = CLASSES[s] * EACH
        content = {
            "data": np.stack([pixels(s, i, side) for i in range(count)]),
            "labels": [10 * s + 3 * (i // EACH) for i in range(count)],  # with gaps
        }
        (root / f"FC100_{mode}.pickle").write_bytes(pickle.dumps(content))


Loader = Callable[..., dict[str, LabelledImages]]
DATASETS: dict[str, tuple[Loader, Callable[..., None], int, str]] = {
    "mini_imagenet": (mini_imagenet, write_mini, 84, "mini-imagenet-cache-test.pkl"),
    "tiered_imagenet": (tiered_imagenet, write_tiered, 84, "tiered-imagenet/test_images_png.pkl"),
    "cifar_fs": (cifar_fs, write_cifar_fs, 32, "cifarfs/cifar100/data/test-0/0.png"),
    "fc100": (fc100, write_fc100, 32, "FC100_test.pickle"),
}
