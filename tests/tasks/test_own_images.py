"""A user's own images, in every layout, and the splits that are drawn of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.tasks import drawn_splits
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.own_images import images

SUFFIXES = ("png", "jpg", "bmp", "webp", "tiff", "JPEG")
MODES = ("train", "validation", "test")


def photo(path: Path, colour: tuple[int, int, int], number: int = 0) -> None:
    """One flat colour, of a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9 + number, 12), colour).save(path)


def photos(root: Path, classes: int = 6, each: int = 4) -> Path:
    """A folder for each class, whose number is the red channel of its images."""
    for c in range(classes):
        for i in range(each):
            photo(root / f"class{c}" / f"{i}.{SUFFIXES[i % len(SUFFIXES)]}", (20 * c, 99, 50), i)
    return root


def colours(data: LabelledImages) -> set[tuple[str, int]]:
    """The name of each image's class, and the number in its red channel."""
    reds = (data.images[:, 0].float().mean((1, 2)) / 20).round().long()
    names = (data.classes[label] for label in data.labels)
    return set(zip(names, reds.tolist(), strict=True))


def test_folders_of_classes_are_split_by_classes(tmp_path: Path) -> None:
    root = photos(tmp_path / "wrapped" / "photos")
    (root / "class1" / "notes.txt").touch()
    (root / "class1" / ".hidden.png").touch()
    splits = images(root.parent, image_size=8)
    assert [len(splits[mode].classes) for mode in MODES] == [4, 1, 1]
    assert sum(len(data.images) for data in splits.values()) == 24
    for data in splits.values():
        assert data.images.shape[1:] == (3, 8, 8)
        assert colours(data) == {(c, int(c[5:])) for c in data.classes}
        assert (data.images[:, 1].float() - 99).abs().max() <= 3  # JPEG and WebP are lossy
    assert len({c for data in splits.values() for c in data.classes}) == 6
    assert images(root, image_size=5, channels=1)["test"].images.shape[1:] == (1, 5, 5)


def test_folders_of_splits_keep_their_splits(tmp_path: Path) -> None:
    for name, c in (("train", 0), ("train", 1), ("valid", 2), ("test", 3)):
        photo(tmp_path / name / f"class{c}" / "x.png", (20 * c, 99, 50))
    splits = images(tmp_path, image_size=8)
    assert [data.classes for data in splits.values()] == [
        ("class0", "class1"),
        ("class2",),
        ("class3",),
    ]
    assert all(colours(data) == {(c, int(c[5:])) for c in data.classes} for data in splits.values())


@pytest.mark.parametrize("split", [True, False])
def test_a_table_lists_paths_and_labels(split: bool, tmp_path: Path) -> None:
    lines = ["path,label" + ",split" * split]
    for c in range(6):
        for i in range(3):
            photo(tmp_path / "all" / f"{c}{i}.png", (20 * c, 99, 50))
            mode = ("train", "train", "train", "val", "val", "test")[c]
            lines.append(f"all/{c}{i}.png,class{c}" + f",{mode}" * split)
    table = tmp_path / "list.csv"
    table.write_text("\ufeff" + "\n".join(lines) + "\n")
    splits = images(table, image_size=8)
    assert sum(len(data.images) for data in splits.values()) == 18
    assert all(colours(data) == {(c, int(c[5:])) for c in data.classes} for data in splits.values())
    if split:
        assert [len(splits[mode].classes) for mode in MODES] == [3, 2, 1]


def test_two_classes_are_split_by_images(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", classes=2, each=10)
    with pytest.raises(UsageError, match=r"2 classes, and none is left .*split_by=images"):
        images(root, image_size=8)
    splits = images(root, image_size=8, split_by="images")
    for mode, number in zip(MODES, (6, 2, 2), strict=True):
        assert splits[mode].classes == ("class0", "class1")
        assert torch.bincount(splits[mode].labels).tolist() == [number] * 2


def test_images_are_read_once_and_the_cache_follows_a_move_and_a_change(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos")
    first = images(root, image_size=8)
    (arrays,) = own_cache.glob("*.npz")
    assert "train 16 images of 4 classes" in (said := capsys.readouterr().err)
    assert str(arrays.with_suffix(".csv")) in said
    moved = root.rename(tmp_path / "moved")
    again = images(moved, image_size=8)
    assert capsys.readouterr().err == "" and len(list(own_cache.glob("*.npz"))) == 1
    for mode in MODES:
        assert torch.equal(first[mode].images, again[mode].images)
    photo(moved / "class0" / "0.png", (20, 99, 50), 30)
    images(moved, image_size=8)
    assert "read the images" in capsys.readouterr().err


@pytest.mark.parametrize("split_by", ["classes", "images"])
def test_drawn_splits_can_be_given_back(split_by: Any, tmp_path: Path, own_cache: Path) -> None:
    root = photos(tmp_path / "photos")
    drawn = images(root, image_size=8, split_by=split_by, seed=3)
    (table,) = own_cache.glob("*.csv")
    fixed = images(root, image_size=8, split_by=split_by, splits=table)
    for mode in MODES:
        assert drawn[mode].classes == fixed[mode].classes
        assert torch.equal(drawn[mode].images, fixed[mode].images)
    photos(root, classes=7)
    with pytest.raises(UsageError, match="for 'class6"):
        images(root, image_size=8, split_by=split_by, splits=table)


def test_small_classes_are_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos")
    photo(root / "rare" / "x.png", (0, 0, 0))
    assert sum(len(data.classes) for data in images(root, image_size=8).values()) == 7
    found = images(root, image_size=8, min_images=2)
    assert sum(len(data.classes) for data in found.values()) == 6
    assert "left out the classes rare (1 image)" in capsys.readouterr().err


def test_what_is_not_read_in_the_folders_of_classes_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos")
    images(root, image_size=8)
    assert "left out" not in capsys.readouterr().err
    photo(root / "class0" / "more" / "1.png", (0, 0, 0))
    (root / "class2" / "moving.gif").touch()
    (root / "class2" / ".hidden").touch()
    (root / "class2" / "Thumbs.db").touch()
    (root / "class2" / "0.png").touch()  # another time: the cache is another
    images(root, image_size=8)
    assert (
        "left out 2 of the files and folders in those of classes, such as class0/more: "
        in capsys.readouterr().err
    )


def listed(root: Path, *lines: str, head: str = "path,label") -> Path:
    (root / "list.csv").write_text("\n".join([head, *lines]))
    return root / "list.csv"


BAD: dict[str, tuple[Callable[[Path], Path | None], dict[str, Any], str]] = {
    "absent": (lambda r: r / "nowhere", {}, "nowhere is not there"),
    "empty name": (lambda r: "", {}, "source= is not there"),  # type: ignore[dict-item,return-value]
    "no source": (lambda r: None, {}, r"source=null.* Give data=PATH"),
    "no layout": (lambda r: r.parent, {}, "none of the layouts"),
    "an archive": (lambda r: r / "class0" / "0.png", {}, "metalearn data prepare images"),
    "no images": (lambda r: (r / "new").mkdir() or r, {}, "the folder new of a class has no"),
    "a text": (lambda r: (r / "class0/x.png").write_text("x") and r, {}, r"x\.png cannot be read"),
    "two splits": (
        lambda r: photos(r / "a" / "val").parent if photos(r / "a" / "test") else r,
        {},
        "the folder test of a split",
    ),
    "one split": (
        lambda r: photos(r / "train") and r,
        {},
        "the folder train of a split.* or give a class of this name another",
    ),
    "twice": (
        lambda r: listed(r, "class0/0.png,a", "class0/0.png,b"),
        {},
        "in class 'a' and in class 'b'",
    ),
    "linked": (
        lambda r: (r / "class0" / "link.png").symlink_to(r / "class1" / "0.png") or r,
        {},
        "is there twice",
    ),
    "lost": (lambda r: listed(r, "gone.png,a"), {}, "lists 'gone.png', which is no file"),
    "no label": (lambda r: listed(r, "class0/0.png,"), {}, "has the row"),
    "a split": (
        lambda r: listed(r, "class0/0.png,a,dev", head="path,label,split"),
        {},
        "split 'dev'; expected train",
    ),
    "fractions": (lambda r: r, {"fractions": (0.6, 0.6, -0.2)}, r"fractions=\[0.6, 0.6, -0.2\]"),
    "not a sum": (lambda r: r, {"fractions": (0.5, 0.2, 0.2)}, "whose sum is 1"),
    "size": (lambda r: r, {"image_size": 0}, "image_size=0"),
    "channels": (lambda r: r, {"channels": 4}, "channels=4"),
    "too few": (lambda r: r, {"min_images": 9}, "min_images=9: expected at most 4"),
    "one class": (lambda r: listed(r, "class0/0.png,a", "class1/0.png,a"), {}, "has 1 class: "),
    "no test": (
        lambda r: listed(r, "class0/0.png,a,train", "class1/0.png,b,val", head="path,label,split"),
        {},
        "none of test: expected images of train, val and test",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused(case: str, tmp_path: Path, own_cache: Path) -> None:
    spoil, options, sentence = BAD[case]
    root = photos(tmp_path / "photos")
    (tmp_path / "more").mkdir()
    with pytest.raises(UsageError, match=sentence) as caught:
        images(spoil(root), **{"image_size": 8, **options})
    assert "\n" not in str(caught.value) and not own_cache.exists()


def test_a_class_in_two_splits_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    for mode in ("train", "val", "test"):
        photos(tmp_path / mode, classes=2)
    with pytest.raises(UsageError, match="'class0' is in train and in validation"):
        images(tmp_path, image_size=8)
    splits = images(tmp_path, image_size=8, split_by="images")
    assert {data.classes for data in splits.values()} == {("class0", "class1")}
    shutil.rmtree(tmp_path / "val" / "class1")
    with pytest.raises(UsageError, match="class 'class1' in each split"):
        images(tmp_path, image_size=8, split_by="images")


@settings(deadline=None)  # a busy machine may stop it for long
@given(st.integers(3, 60), st.tuples(*[st.floats(0.05, 1)] * 3), st.integers(0, 99))
def test_a_draw_has_every_name_once_and_no_empty_split(
    count: int, shares: tuple[float, float, float], seed: int
) -> None:
    fractions = [share / sum(shares) for share in shares]
    names = [f"n{i}" for i in range(count)]
    split_of = drawn_splits.draw(names, fractions, seed)
    assert sorted(split_of) == sorted(names) and set(split_of.values()) == set(MODES)
    assert split_of == drawn_splits.draw(names[::-1], fractions, seed)
    sizes = np.array([list(split_of.values()).count(mode) for mode in MODES])
    assert np.abs(sizes - count * np.array(fractions)).max() <= 2


@pytest.mark.parametrize("form", ["folder", "zip", "csv"])
def test_prepare_reads_a_folder_a_table_or_an_archive(
    form: str, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photos(tmp_path / "photos")
    if form == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "p"), "zip", tmp_path, "photos"))
    if form == "csv":
        lines = [f"class{c}/{i}.png,class{c}" for c in range(6) for i in (0,)]
        source = listed(source, *lines)
    assert main(["data", "prepare", "images", f"source={source}"]) == 0
    said = capsys.readouterr()
    assert "images train: 4 classes" in said.out and "of 3x84x84" in said.out
    assert "read the images" in said.err and ".part" not in said.err  # no name that passes
    if form == "zip":
        assert images()["train"].images.shape[1:] == (3, 84, 84)
        assert capsys.readouterr().err == ""  # it was not read again
