"""The colour datasets, each on a tiny copy in the format that learn2learn reads."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.errors import UsageError
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.l2l import import_learn2learn
from metalearn.tasks.vision import cifar_fs, fc100, mini_imagenet, tiered_imagenet

CLASSES = (3, 2, 2)
SHORT = ("train", "val", "test")
EACH = 2  # images a class


def pixels(split: int, index: int, side: int) -> np.ndarray:
    """One flat colour, by which a test knows the image again."""
    image = np.zeros((side, side, 3), np.uint8)
    image[:] = (100 * split, 20 * index, 7)
    return image


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
every_dataset = pytest.mark.parametrize("name", DATASETS)


@every_dataset
def test_splits_shapes_and_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, write, side, _ = DATASETS[name]
    root = tmp_path / name
    root.mkdir()
    write(root)
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    for source in (root, None):
        splits = load(source, classes=CLASSES)
        assert list(splits) == ["train", "validation", "test"]
        for s, data in enumerate(splits.values()):
            assert data.images.shape == (EACH * CLASSES[s], 3, side, side)
            assert (data.images[:, 0] == 100 * s).all()
            # the second channel tells the image's number, and so its class
            assert (data.images[:, 1, 0, 0].long() // 20 // EACH).tolist() == data.labels.tolist()
        names = [c for data in splits.values() for c in data.classes]
        assert len(set(names)) == sum(CLASSES)


@every_dataset
def test_truncated_file(name: str, tmp_path: Path) -> None:
    load, write, _, file = DATASETS[name]
    write(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UsageError, match=f"test split of {name} .* cannot be read") as caught:
        load(tmp_path, classes=CLASSES)
    assert "\n" not in str(caught.value)


@every_dataset
def test_wrong_shape(name: str, tmp_path: Path) -> None:
    load, write, side, _ = DATASETS[name]
    write(tmp_path, side=16)
    with pytest.raises(UsageError, match=rf"of shape \(16, 16, 3\), not \({side}, {side}, 3\)"):
        load(tmp_path, classes=CLASSES)


@every_dataset
def test_wrong_number_of_classes(name: str, tmp_path: Path) -> None:
    load, write, _, _ = DATASETS[name]
    write(tmp_path)
    with pytest.raises(UsageError, match=r"train split of .* has 3 classes instead of"):
        load(tmp_path)


@every_dataset
def test_absent_dataset_says_what_goes_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = DATASETS[name][0]
    with pytest.raises(UsageError, match="METALEARN_DATA"):
        load()
    with pytest.raises(UsageError, match="is not a folder; make it and place there"):
        load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    monkeypatch.setattr("learn2learn.data.utils.download_file", None)
    with pytest.raises(UsageError, match=r"lacks .*; place"):
        load(tmp_path)


def test_a_class_in_two_splits(tmp_path: Path) -> None:
    write_mini(tmp_path)
    train = tmp_path / "mini-imagenet-cache-train.pkl"
    (tmp_path / "mini-imagenet-cache-test.pkl").write_bytes(train.read_bytes())
    with pytest.raises(UsageError, match="share a class"):
        mini_imagenet(tmp_path, classes=(3, 2, 3))


def test_importing_learn2learn_is_silent() -> None:
    code = "from metalearn.tasks.l2l import import_learn2learn as i; i()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == ""


def test_a_missing_package_is_still_reported() -> None:
    with pytest.raises(ImportError, match="nothing_of_the_kind"):
        import_learn2learn("learn2learn.nothing_of_the_kind")
