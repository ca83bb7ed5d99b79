"""The cache gives back what was built, never half of it, and is never in the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks.cache import Splits, cached
from metalearn.tasks.images import LabelledImages


class Builder:
    """A small dataset, and how often it was made."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Splits:
        self.calls += 1
        images = torch.arange(4 * 9, dtype=torch.uint8).reshape(4, 1, 3, 3)
        labels = torch.tensor([0, 0, 1, 1])
        return {
            "train": LabelledImages(images, labels, ("Greek/α", "b")),
            "test": LabelledImages(images + 1, labels, ("c", "d")),
        }


def assert_same(left: Splits, right: Splits) -> None:
    assert list(left) == list(right)
    for name, data in left.items():
        assert torch.equal(data.images, right[name].images)
        assert torch.equal(data.labels, right[name].labels)
        assert data.classes == right[name].classes


def test_second_call_reads_what_the_first_built(own_cache: Path) -> None:
    build = Builder()
    first, second = cached("a", build), cached("a", build)
    assert build.calls == 1
    assert_same(first, second)
    assert [p.name for p in own_cache.iterdir()] == ["a.npz"]


def rewrite(path: Path, **changed: np.ndarray) -> None:
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files}
    np.savez(path, **(arrays | {k.replace("_", "/"): v for k, v in changed.items()}))


def drop_labels(path: Path) -> None:
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files if key != "test/labels"}
    np.savez(path, **arrays)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-40]),
    "empty": lambda p: p.write_bytes(b""),
    "a flipped byte": lambda p: p.write_bytes(
        p.read_bytes().replace(b"\x05\x06\x07", b"\x05\x00\x07")
    ),
    "another file": lambda p: p.write_bytes(b"hello"),
    "images of floats": lambda p: rewrite(p, train_images=np.zeros((4, 1, 3, 3), np.float32)),
    "labels outside": lambda p: rewrite(p, train_labels=np.array([0, 0, 1, 7])),
    "a pickle": lambda p: rewrite(p, train_classes=np.array(["a", None], dtype=object)),
    "a missing array": drop_labels,
    "no arrays": lambda p: np.savez(p),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_rebuilt_with_one_sentence(
    damage: str, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = Builder()
    whole = cached("a", build)
    DAMAGE[damage](own_cache / "a.npz")
    assert_same(cached("a", build), whole)
    said = capsys.readouterr().err
    assert build.calls == 2 and said.count("\n") == 1 and "built again" in said
    assert_same(cached("a", build), whole)
    assert build.calls == 2 and capsys.readouterr().err == ""


def test_unwritable_folder_goes_on_uncached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "file"))
    build = Builder()
    assert_same(cached("a", build), build())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "METALEARN_CACHE" in said


def test_failed_write_leaves_nothing_behind(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(file: object, **arrays: np.ndarray) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    cached("a", Builder())
    assert list(own_cache.iterdir()) == []
    assert "No space left" in capsys.readouterr().err


def test_failing_build_passes_through_and_caches_nothing(own_cache: Path) -> None:
    def build() -> Splits:
        raise UsageError("no source")

    with pytest.raises(UsageError, match="no source"):
        cached("a", build)
    assert not own_cache.exists()


@pytest.mark.parametrize("name", ["", "../a", "a/b"])
def test_name_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(UsageError, match="plain file name"):
        cached(name, Builder())


def test_folder_falls_back_to_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METALEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached("a", Builder())
    assert (tmp_path / "xdg" / "metalearn" / "a.npz").is_file()
