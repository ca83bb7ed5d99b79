"""The splits of real images: what they hold, and files that are not what they should be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import image_splits as module
from metalearn.tasks.image_splits import image_splits
from metalearn.tasks.images import LabelledImages


@pytest.fixture(autouse=True)
def nothing_remembered():
    module._images.cache_clear()
    yield
    module._images.cache_clear()


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format by its description: two zeros, the type (8: bytes), the axes, their lengths."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path):
    for part, n in (("train", 100), ("t10k", 20)):
        labels = np.arange(n) % 10
        images = np.zeros((n, 28, 28)) + 20 * labels[:, None, None]
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


def test_digits_are_parted_and_normalised():
    splits = image_splits("digits", None, 0, 0.25, 0.2, 5000)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1077, 270, 450]
    assert abs(float(splits.train.x.mean())) < 1e-5
    assert float(splits.train.x.std()) == pytest.approx(1, abs=1e-5)
    for part in parts:
        assert part.x.shape[1:] == (1, 8, 8)
        shares = torch.bincount(part.y) / len(part)
        assert shares.min() > 0.09 and shares.max() < 0.11
    # No image is in two parts; scikit-learn's digits hold no two that are equal.
    assert len(torch.cat([part.x for part in parts]).flatten(1).unique(dim=0)) == 1797


def test_the_seed_draws_the_split():
    first, again, other = (image_splits("digits", None, seed, 0.5, 0.5, 50) for seed in (0, 0, 1))
    assert torch.equal(first.test.x, again.test.x) and torch.equal(first.train.x, again.train.x)
    assert len(first.train) == 50
    assert not torch.equal(first.train.y, other.train.y)


def test_mnist_keeps_its_own_test_set(mnist):
    splits = image_splits("mnist", str(mnist), 0, 0.25, 0.2, 5000)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [80, 20, 20]
    assert splits.train.x.shape == (80, 1, 28, 28)
    # Each of these images is one grey, 20 times its label.
    greys = splits.test.x[:, 0, 0, 0]
    assert torch.allclose(greys[1] - greys[0], greys[2] - greys[1], rtol=1e-4)
    assert torch.equal(splits.test.y, torch.arange(20) % 10)


def test_mnist_is_found_where_torchvision_puts_it(mnist, tmp_path, monkeypatch):
    raw = tmp_path / "data" / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist.glob("*ubyte"):
        file.rename(raw / file.name)
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    assert len(image_splits("mnist", None, 0, 0.25, 0.2, 5000).test) == 20


@pytest.mark.parametrize("damage", ["cut", "empty", "no magic", "absent", "fewer labels"])
def test_a_damaged_mnist_is_refused_in_a_sentence(mnist, damage):
    file = mnist / "train-labels-idx1-ubyte"
    whole = file.read_bytes()
    if damage == "absent":
        file.unlink()
    elif damage == "fewer labels":
        write_idx(file, np.arange(50) % 10)
    else:
        file.write_bytes({"cut": whole[:40], "empty": b"", "no magic": b"\1" * 60}[damage])
    with pytest.raises(UsageError, match=r"MNIST|labels") as error:
        image_splits("mnist", str(mnist), 0, 0.25, 0.2, 5000)
    assert "\n" not in str(error.value)


def test_omniglot_is_ten_characters_of_one_alphabet(monkeypatch):
    names = tuple(f"Greek/character{i:02}" for i in range(1, 13))
    labels = torch.arange(12).repeat_interleave(20)
    images = torch.randint(0, 256, (240, 1, 28, 28), dtype=torch.uint8)
    data = {"train": LabelledImages(images, labels, names)}
    monkeypatch.setattr(module, "omniglot", lambda source: data)
    splits = image_splits("omniglot", None, 0, 0.25, 0.2, 5000)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [120, 30, 50]
    assert torch.equal(torch.bincount(splits.test.y), torch.full((10,), 5))


@pytest.mark.slow
def test_the_real_omniglot(monkeypatch):
    if not Path(os.environ.get("METALEARN_DATA", "/nowhere"), "omniglot").is_dir():
        pytest.skip("no Omniglot: set METALEARN_DATA to a folder that holds omniglot/")
    assert len(image_splits("omniglot", None, 0, 0.25, 0.2, 5000).train) == 120


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("digit", None, 0, 0.25, 0.2, 50), "did you mean 'digits'"),
        (("digits", "/x", 0, 0.25, 0.2, 50), "leave source out"),
        (("digits", None, 0, 0.25, 1.0, 50), "between 0 and 1"),
        (("digits", None, 0, 0.25, 0.2, 9), "at least 10 images"),
        (("digits", None, 0, 0.001, 0.2, 50), "cannot be split"),
        (("mnist", "/nowhere", 0, 0.25, 0.2, 50), "four idx files"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments, part):
    with pytest.raises(UsageError, match=part):
        image_splits(*arguments)
