"""The colour datasets, each on a tiny copy in every format that it is read from."""

from __future__ import annotations

import functools
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.tasks import vision
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
    with pytest.raises(UsageError, match="nothing_of_the_kind"):
        import_learn2learn("learn2learn.nothing_of_the_kind")


# --- folders of images, archives of them, and pickles that are none ---

SIDES = {"mini_imagenet": 84, "tiered_imagenet": 84, "cifar_fs": 32, "fc100": 32}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def by_folders(root: Path, side: int) -> None:
    for s, mode in enumerate(SHORT):
        for i in range(CLASSES[s] * EACH):
            save(root / mode / f"{mode}-{i // EACH}" / f"{i}.png", pixels(s, i, side))
            (root / mode / "notes.txt").touch()


def by_tables(root: Path, side: int) -> None:
    for s, mode in enumerate(SHORT):
        lines = ["filename,label"]
        for i in range(CLASSES[s] * EACH):
            save(root / "images" / f"{mode}{i}.png", pixels(s, i, side))
            lines.append(f"{mode}{i}.png,n{s}{i // EACH}")
        (root / f"{mode}.csv").write_text("\n".join(lines) + "\n")


def by_class_lists(root: Path, side: int) -> None:
    write_cifar_fs(root, side)
    for below in (root / "cifarfs" / "cifar100").iterdir():
        below.rename(root / below.name)
    shutil.rmtree(root / "cifarfs")


WRITERS = [by_folders, by_tables, by_class_lists]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", SIDES)
def test_images_of_every_layout(name: str, write: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "only" / "folder", SIDES[name])  # as archives have it
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    splits = DATASETS[name][0](tmp_path, classes=CLASSES)
    for s, data in enumerate(splits.values()):
        assert data.images.shape == (EACH * CLASSES[s], 3, SIDES[name], SIDES[name])
        assert (data.images[:, 0] == 100 * s).all()
        assert (data.images[:, 1, 0, 0].long() // 20 // EACH).tolist() == data.labels.tolist()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def table(root: Path, text: str) -> None:
    (root / "test.csv").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda r: table(r, "filename,label\n../train0.png,x\n"), "no plain name"),
        (lambda r: table(r, "filename,label\n/etc/hostname,x\n"), "no plain name"),
        (lambda r: table(r, "a,b\n1,2\n"), "lacks the columns filename and label"),
        (lambda r: table(r, "filename,label\nnowhere.png,x\n"), "No such file"),
        (lambda r: (r / "images" / "test0.png").write_bytes(b"text"), "cannot identify image"),
        (lambda r: save(r / "images" / "test0.png", pixels(0, 0, 8)), r"of shape \(8, 8, 3\)"),
        (lambda r: (r / "test.csv").unlink(), r"lacks .*; place mini_imagenet there whole"),
    ],
)
def test_bad_folders(spoil: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    by_tables(tmp_path, 84)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=sentence) as caught:
        mini_imagenet(tmp_path, classes=CLASSES)
    assert "\n" not in str(caught.value)


def listed(root: Path, **tables: str) -> None:
    for mode, lines in tables.items():
        (root / f"{mode}.csv").write_text("filename,label\n" + lines)


def linked(root: Path, to: str) -> None:
    (root / "images" / "link.png").symlink_to(to)
    listed(root, test="link.png,a")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda r: listed(r, test="test0.png,a\ntest0.png,a\n"), "is there twice"),
        (lambda r: listed(r, test="test0.png,a\ntest0.png,b\n"), "'a' of .* and in class 'b'"),
        (lambda r: listed(r, test="train0.png,a\ntest0.png,b\n"), "train split and .* test split"),
        (
            lambda r: (r / "images/t.png").symlink_to("train0.png") or listed(r, test="t.png,a"),
            "twi",
        ),
        (lambda r: listed(r, test="test0.png,\n"), "has the row"),
        (lambda r: listed(r, test="test0.png\n"), "has the row"),
        (lambda r: listed(r, test="test0.png,a,b\n"), "has the row"),
        (lambda r: listed(r, test=""), "or rows below them"),
        (lambda r: (r / "test.csv").write_bytes(b"filename,label\nx\xff,a\n"), "not in UTF-8"),
        (lambda r: (r / "valid.csv").touch(), "are the same split"),
    ],
)
def test_a_list_of_images_that_contradicts_itself_is_refused(
    spoil: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    by_tables(tmp_path, 84)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        mini_imagenet(tmp_path, classes=CLASSES)


def test_a_byte_order_mark_and_spaces_do_not_count(tmp_path: Path) -> None:
    by_tables(tmp_path, 84)
    by_class_lists(tmp_path / "other", 32)
    before = mini_imagenet(tmp_path, classes=CLASSES), cifar_fs(tmp_path / "other", classes=CLASSES)
    for path in [*tmp_path.rglob("*.csv"), *tmp_path.rglob("*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b",", b" , "))
    after = mini_imagenet(tmp_path, classes=CLASSES), cifar_fs(tmp_path / "other", classes=CLASSES)
    for one, other in zip(before, after, strict=True):
        for split, data in one.items():
            assert other[split].classes == data.classes
            assert torch.equal(other[split].images, data.images)


def rewrite(path: Path, **changed: Any) -> None:
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | changed))


IMAGES = np.stack([pixels(0, i, 32) for i in range(6)])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"data": IMAGES / 255}, "an image is of float64; expected uint8"),
        ({"data": np.full(IMAGES.shape, np.nan)}, "expected uint8"),
        ({"data": IMAGES > 3}, "an image is of bool"),
        ({"data": IMAGES.astype(np.int64)}, "an image is of int64"),
        ({"labels": [0.5] * 6}, "whole numbers"),
        ({"labels": np.array([True, False] * 3)}, "whole numbers"),
        ({"labels": [[0, 1], [2, 0], [1, 2]] * 2}, "whole numbers"),
    ],
)
def test_values_of_another_type_in_a_pickle_are_refused(
    changed: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_fc100(tmp_path)
    rewrite(tmp_path / "FC100_train.pickle", **changed)
    with pytest.raises(UsageError, match=sentence):
        fc100(tmp_path, classes=CLASSES)


@pytest.mark.parametrize("rows", [[4, 3], [-1, 5], [4.0, 5.0], [4, 600]])
def test_a_class_of_mini_imagenet_has_its_own_images(rows: list[Any], tmp_path: Path) -> None:
    write_mini(tmp_path)
    classes = {"n00": [0, 1], "n01": [2, 3], "n02": rows}
    rewrite(tmp_path / "mini-imagenet-cache-train.pkl", class_dict=classes)
    with pytest.raises(UsageError, match=r"train split of mini_imagenet .* cannot be read"):
        mini_imagenet(tmp_path, classes=CLASSES)


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["mini_imagenet", "tiered_imagenet", "fc100"])
def test_nothing_in_a_pickle_is_executed(name: str, tmp_path: Path) -> None:
    load, write, _, _ = DATASETS[name]
    write(tmp_path)
    target = tmp_path / "executed"
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        content = pickle.loads(whole)
        for evil in (Malice(target), [content, Malice(target)]):
            path.write_bytes(pickle.dumps(evil))
            with pytest.raises(UsageError, match=r"asks for posix\.system") as caught:
                load(tmp_path, classes=CLASSES)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    assert not target.exists()
    load(tmp_path, classes=CLASSES)


@pytest.fixture
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (load, *_) in DATASETS.items():
        monkeypatch.setattr(vision, name, functools.partial(load, classes=CLASSES))


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_prepare_unpacks_an_archive_where_runs_find_it(
    kind: str,
    tmp_path: Path,
    few_classes: None,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_folders(tmp_path / "set", 84)
    path = shutil.make_archive(str(tmp_path / "set"), kind, tmp_path, "set")
    shutil.rmtree(tmp_path / "set")
    assert main(["data", "prepare", "mini_imagenet", f"source={path}"]) == 0
    said = capsys.readouterr().out
    assert "mini_imagenet test: 2 classes, 4 images of 3x84x84" in said
    assert f"unpacked into {own_cache / 'mini_imagenet'}" in said
    assert [p.name for p in own_cache.iterdir()] == ["mini_imagenet"]
    assert len(mini_imagenet(classes=CLASSES)["train"].classes) == 3
    with pytest.raises(UsageError, match="is not unpacked; `metalearn data prepare"):
        mini_imagenet(path, classes=CLASSES)


def test_prepare_keeps_nothing_of_an_archive_that_is_refused(
    tmp_path: Path, few_classes: None, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_folders(tmp_path / "set", 32)
    good = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    escaping = tmp_path / "escaping.zip"
    with zipfile.ZipFile(escaping, "w") as opened:
        opened.writestr("../../escaped", b"x")
    for name, path, sentence in [
        ("mini_imagenet", good, "(32, 32, 3), not (84, 84, 3)"),
        ("mini_imagenet", escaping, "would not lie in its folder"),
        ("omniglot", good, "has no images_background"),
        ("omniglot", tmp_path / "nowhere.zip", "is not there"),
    ]:
        before = {p for p in tmp_path.rglob("*") if p != own_cache}
        assert main(["data", "prepare", name, f"source={path}"]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1 and ".part" not in said
        assert {p for p in tmp_path.rglob("*") if p != own_cache} == before
