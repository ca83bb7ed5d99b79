"""The colour datasets, each on a tiny copy in every format that it is read from."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vision_files import (
    CLASSES,
    DATASETS,
    EACH,
    by_folders,
    pixels,
    write_fc100,
    write_mini,
)

from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.tasks import vision
from metalearn.tasks.l2l import import_learn2learn
from metalearn.tasks.vision import fc100, mini_imagenet

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
