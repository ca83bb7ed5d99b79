"""Omniglot: its splits are fixed, it is complete, and bad sources are named in a sentence."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from metalearn.errors import UsageError
from metalearn.tasks import omniglot as module
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.omniglot import (
    LISTED,
    SETS,
    listed_characters,
    omniglot,
    omniglot_background,
)

Splits = dict[str, LabelledImages]
SPLITS = (4, 1, 3)  # of the small source: 2 alphabets of 4 characters, 2 drawings each


def png(number: int, size: tuple[int, int] = (105, 105)) -> bytes:
    """White paper with a black square, whose place depends on `number`."""
    image = Image.new("1", size, 1)
    image.paste(0, (10, 8 * number + 5, 40, 8 * number + 35))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A source in Omniglot's layout, unpacked."""
    for part, alphabet in zip(SETS, ("Greek", "Tengwar"), strict=True):
        for c in range(4):
            folder = tmp_path / "source" / part / alphabet / f"character{c + 1:02}"
            folder.mkdir(parents=True)
            for drawer in range(2):
                (folder / f"{c:04}_{drawer + 1:02}.png").write_bytes(png(2 * c + drawer))
    return tmp_path / "source"


def pack(source: Path, part: str) -> Path:
    archive = shutil.make_archive(str(source / part), "zip", source, part)
    shutil.rmtree(source / part)
    return Path(archive)


def load(source: Path | None, **options: int) -> dict[str, LabelledImages]:
    return omniglot(source, splits=SPLITS, drawings=2, **options)


@pytest.fixture(scope="module")
def sets(omniglot_source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Splits]:
    """The real splits and the release's own sets, of drawings that are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(module, "_read", cache(module._read))
        return [omniglot(omniglot_source), omniglot_background(omniglot_source)]


@pytest.fixture(scope="module")
def real(sets: list[Splits]) -> Splits:
    return sets[0]


def test_the_whole_of_omniglot(real: dict[str, LabelledImages]) -> None:
    assert {k: len(v.classes) for k, v in real.items()} == {
        "train": 1100,
        "validation": 100,
        "test": 423,
    }
    assert len({c for data in real.values() for c in data.classes}) == 1623
    for data in real.values():
        assert data.images.shape == (20 * len(data.classes), 1, 28, 28)
        assert (torch.bincount(data.labels) == 20).all()
        assert 0.02 < data.images.float().mean() / 255 < 0.2  # ink is high, paper 0
        assert (data.images.flatten(1).amax(1) > 100).all()


def test_the_split_is_the_published_one_of_seed_0(real: dict[str, LabelledImages]) -> None:
    # Results are compared over machines and years: these names may never change.
    names = {split: "\n".join(data.classes).encode() for split, data in real.items()}
    assert {split: hashlib.sha256(text).hexdigest() for split, text in names.items()} == {
        "train": "953636be194b7a8dd46d0319f0d9f5b5afad281a72b98ddbc57693b6df912ee0",
        "validation": "d06140adec126f77ef653c08cd5623d0427def741408341b7d5ce239a7ca8712",
        "test": "bf77d6a278bba1434e4ea9ccf10532b551146a3072436d07851936ded3b5aeb1",
    }


def test_images_are_of_the_class_that_they_are_labelled_with(small: Path) -> None:
    for data in load(small, size=105).values():
        for image, label in zip(data.images, data.labels, strict=True):
            top = int((image[0] > 0).any(1).nonzero()[0])
            assert data.classes[label].endswith(f"character{(top - 5) // 16 + 1:02}")


def test_archives_and_folders_give_the_same(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = load(small)
    pack(small, SETS[1])
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "another"))
    for split, data in load(small).items():
        assert torch.equal(data.images, unpacked[split].images)
        assert data.classes == unpacked[split].classes


def test_the_cache_needs_no_source_and_knows_size_and_seed(small: Path) -> None:
    first = load(small)
    shuffled, larger = load(small, seed=1), load(small, size=35)
    shutil.rmtree(small)
    for source in (None, small):
        assert torch.equal(load(source)["test"].images, first["test"].images)
    assert shuffled["train"].classes != first["train"].classes
    assert larger["train"].images.shape[-1] == 35
    with pytest.raises(UsageError, match="is not a folder"):
        load(small, seed=2)


def test_source_of_the_environment(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.rename(tmp_path / "omniglot")
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    assert len(load(None)["train"].classes) == 4


def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    with pytest.raises(UsageError, match="metalearn data prepare omniglot source=FOLDER"):
        load(None)


def cut(source: Path) -> None:
    archive = pack(source, SETS[0])
    archive.write_bytes(archive.read_bytes()[:-200])


def corrupt(source: Path) -> None:
    archive = pack(source, SETS[0])
    with zipfile.ZipFile(archive) as opened:
        last = opened.infolist()[-1]
    data = bytearray(archive.read_bytes())
    data[last.header_offset + 30 + len(last.filename) + last.compress_size // 2] ^= 0xFF
    archive.write_bytes(bytes(data))


def bomb(source: Path) -> None:
    with zipfile.ZipFile(pack(source, SETS[0]), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{SETS[0]}/Greek/character01/0000_03.png", bytes(1 << 21))


def first(source: Path) -> Path:
    return source / SETS[0] / "Greek/character01/0000_01.png"


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no set": (lambda s: shutil.rmtree(s / SETS[1]), "has no images_evaluation; put"),
    "truncated zip": (cut, "cut short or not a zip archive"),
    "corrupt member": (corrupt, "not a readable image"),
    "bomb": (bomb, "which no drawing has"),
    "missing drawing": (lambda s: first(s).unlink(), "has 1 drawings instead of 2"),
    "extra drawing": (lambda s: shutil.copy(first(s), first(s).with_name("x.png")), "has 3"),
    "missing character": (lambda s: shutil.rmtree(first(s).parent), "7 characters instead of 8"),
    "wrong shape": (lambda s: first(s).write_bytes(png(0, (28, 28))), "28x28 pixels instead"),
    "no image": (lambda s: first(s).write_bytes(b"text"), "not a readable image"),
    "half an image": (
        lambda s: first(s).write_bytes(first(s).read_bytes()[:60]),
        "not a readable image",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_sources(fault: str, small: Path) -> None:
    spoil, sentence = BAD[fault]
    spoil(small)
    with pytest.raises(UsageError, match=sentence) as caught:
        load(small)
    assert "\n" not in str(caught.value)


def test_the_source_is_only_read(small: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    load(small)
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_the_characters_listed_by_name_are_those_of_the_splits(
    real: dict[str, LabelledImages],
) -> None:
    assert listed_characters() == {split: data.classes for split, data in real.items()}


def test_the_list_of_characters_never_changes() -> None:
    # Results are compared over machines and years; this digest is the file's of the first release.
    digest = "4e8c62acefcb00bcb495b90bc2fc94377709f4cc4e6ce622fee76a7cae1ae5a4"
    assert hashlib.sha256(LISTED.read_bytes()).hexdigest() == digest
    listed = listed_characters()
    assert {k: len(v) for k, v in listed.items()} == {"train": 1100, "validation": 100, "test": 423}
    assert len(set(sum(listed.values(), ()))) == 1623


def test_another_split_than_the_listed_one_is_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"Greek/character{i:02}" for i in range(1, 9))
    other = {"train": names[:4], "validation": names[4:5], "test": names[5:]}
    monkeypatch.setattr("metalearn.tasks.omniglot.listed_characters", lambda: other)
    with pytest.raises(UsageError, match="is not the one that omniglot_characters"):
        load(small)


def test_the_releases_own_sets_share_no_alphabet(small: Path) -> None:
    third = small / SETS[0] / "Latin" / "character01"
    third.mkdir(parents=True)
    for drawer in range(2):
        (third / f"0009_{drawer + 1:02}.png").write_bytes(png(drawer))
    splits = omniglot_background(small, validation=1, characters=9, drawings=2)
    alphabets = {k: {c.partition("/")[0] for c in v.classes} for k, v in splits.items()}
    assert alphabets["test"] == {"Tengwar"}
    assert alphabets["train"] | alphabets["validation"] == {"Greek", "Latin"}
    assert not alphabets["train"] & alphabets["validation"]
    assert sum(len(v.images) for v in splits.values()) == 18
    again = omniglot_background(small, validation=1, characters=9, drawings=2)
    assert all(torch.equal(again[k].images, splits[k].images) for k in splits)


@pytest.mark.parametrize("validation", [0, 1])
def test_validation_leaves_an_alphabet_to_train_on(small: Path, validation: int) -> None:
    with pytest.raises(UsageError, match=f"validation={validation}; expected from 1 to 0"):
        omniglot_background(small, validation=validation, characters=8, drawings=2)


def test_the_whole_background_set(sets: list[Splits]) -> None:
    counts = {k: len(v.classes) for k, v in sets[1].items()}
    assert counts["train"] + counts["validation"] == 964 and counts["test"] == 659
