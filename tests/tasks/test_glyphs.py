"""Glyphs: whole scripts held out, no shape in two splits, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks.glyphs import glyphs, sample_letters
from metalearn.tasks.images import LabelledImages

Glyphs = dict[str, LabelledImages]


def test_splits_are_large_and_complete(built_glyphs: Glyphs) -> None:
    counts = {split: len(data.classes) for split, data in built_glyphs.items()}
    assert counts["train"] >= 1000 and counts["validation"] >= 100 and counts["test"] >= 300
    for data in built_glyphs.values():
        assert data.images.shape == (4 * len(data.classes), 1, 28, 28)
        assert (torch.bincount(data.labels) == 4).all()


def test_no_script_and_no_look_alike_in_two_splits(built_glyphs: Glyphs) -> None:
    scripts = [{c.split("/")[0] for c in data.classes} for data in built_glyphs.values()]
    assert set.isdisjoint(*scripts[:2]) and set.isdisjoint(*scripts[1:])
    assert set.isdisjoint(scripts[0], scripts[2])
    names = {c for data in built_glyphs.values() for c in data.classes}
    for twins in [
        {"Latin/U+0041", "Greek/U+0391", "Cyrillic/U+0410", "Lisu/U+A4EE"},  # A
        {"Latin/U+0048", "Greek/U+0397", "Cyrillic/U+041D", "Lisu/U+A4E7"},  # H
        {"Latin/U+006F", "Greek/U+03BF", "Cyrillic/U+043E", "Armenian/U+0585", "Latin/U+004F"},  # o
    ]:
        assert len(twins & names) == 1, twins & names


def test_drawings_are_of_ink_and_of_their_letter(built_glyphs: Glyphs) -> None:
    for data in built_glyphs.values():
        ink = data.images.flatten(1).float().mean(1) / 255
        assert ink.min() > 0.005 and ink.max() < 0.7
        assert data.images.amax() == 255 and data.images.amin() == 0
    test = built_glyphs["test"]
    shapes = torch.nn.functional.normalize(test.images.flatten(1).float(), dim=1)
    alike = shapes @ shapes.T
    own = test.labels[:, None] == test.labels
    drawings = torch.eye(len(shapes), dtype=torch.bool)
    # alike enough to be learnt from, different enough to have something to learn
    assert alike[own & ~drawings].mean() > alike[~own].mean() + 0.1
    assert alike[own & ~drawings].mean() < 0.8


def some(data: LabelledImages, drawings: int) -> tuple[tuple[str, ...], torch.Tensor]:
    """Every fortieth letter, and its first drawings, (letters, drawings, 1, 28, 28)."""
    images = data.images.unflatten(0, (-1, 4))[::40, :drawings]
    return data.classes[::40], images


@pytest.fixture
def few_letters(built_glyphs: Glyphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws every fortieth letter alone."""
    names = [name for data in built_glyphs.values() for name in some(data, 1)[0]]
    codes = [int(name.partition("U+")[2], 16) for name in names]
    monkeypatch.setattr("metalearn.tasks.glyphs._distinct", lambda faces: codes)


@pytest.mark.usefixtures("few_letters")
def test_glyphs_of_a_seed_depend_on_nothing_else(built_glyphs: Glyphs) -> None:
    torch.manual_seed(123)  # no global random state may matter, nor which other letters there are
    for split, data in glyphs(seed=0, drawings=4).items():  # this test's cache is empty
        classes, images = some(built_glyphs[split], 4)
        assert data.classes == classes and torch.equal(data.images, images.flatten(0, 1))


@pytest.mark.usefixtures("few_letters")
def test_glyphs_of_another_seed_are_other_drawings_of_the_same_letters(
    built_glyphs: Glyphs,
) -> None:
    for split, data in glyphs(seed=1, drawings=1).items():
        classes, images = some(built_glyphs[split], 1)
        assert data.classes == classes
        assert not (data.images == images[:, 0]).flatten(1).all(1).any()


@pytest.mark.parametrize("bad", [{"drawings": 0}, {"size": 0}])
def test_counts_below_one_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected 1 to 1000 drawings"):
        glyphs(**bad)


def test_sampled_letters_are_different_ones_of_the_test_scripts() -> None:
    found = sample_letters(10, 3, seed=4, size=28)
    assert found.images.shape == (30, 1, 28, 28)
    assert found.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert len(set(found.classes)) == 10
    scripts = {name.split("/")[0] for name in found.classes}
    assert scripts <= {"Armenian", "Georgian", "Hebrew", "Lao", "Nko"}
    again = sample_letters(10, 3, seed=4, size=28)
    assert again.classes == found.classes and torch.equal(again.images, found.images)
    assert len({image.numpy().tobytes() for image in found.images}) == 30
