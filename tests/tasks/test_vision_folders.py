"""Image datasets from folders and tables in the layouts that their users have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from vision_files import CLASSES, DATASETS, EACH, SHORT, by_folders, pixels, save, write_cifar_fs

from metalearn.errors import UsageError
from metalearn.tasks.vision import cifar_fs, mini_imagenet

SIDES = {"mini_imagenet": 84, "tiered_imagenet": 84, "cifar_fs": 32, "fc100": 32}


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
