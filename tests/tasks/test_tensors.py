"""Tasks of a user's own arrays and datasets: what is drawn, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.metagrad import Unrolled
from metalearn.problem import FewShot
from metalearn.tasks import DatasetTasks, Sampler, Tasks, TensorTasks

SHAPES = [(), (4,), (5, 3), (3, 8, 8)]


def coded(classes: int, each: int, shape: tuple[int, ...] = (2,)) -> tuple[np.ndarray, np.ndarray]:
    """Examples whose every value is 100 times the class and the number of the example in it."""
    y = np.repeat(np.arange(classes), each)
    x = 100.0 * y + np.tile(np.arange(each), classes)
    return np.broadcast_to(x.reshape(-1, *(1,) * len(shape)), (len(x), *shape)).copy(), y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_task_has_the_examples_of_its_classes(shape: tuple[int, ...], kind: str) -> None:
    x, y = coded(10, 6, shape)
    given = (torch.from_numpy(x), torch.from_numpy(y)) if kind == "tensor" else (x, y)
    tasks: Tasks = TensorTasks(*given, ways=2, shots=2, queries=3)
    for split in ("train", "validation", "test"):
        sampler: Sampler = tasks.sampler(split, 0, "cpu")
        batch = sampler.sample(5)
        assert (
            batch.support_x.shape == (5, 4, *(shape or (1,)))
            and batch.support_x.dtype == torch.float32
        )
        assert batch.query_y.tolist() == [[0, 0, 0, 1, 1, 1]] * 5
        code = torch.cat([batch.support_x, batch.query_x], 1).flatten(2)[..., 0].long()
        label = torch.cat([batch.support_y, batch.query_y], 1)
        for t in range(5):
            assert len(set(code[t].tolist())) == 10  # no example is there twice
            pairs = {(int(k), int(c) // 100) for k, c in zip(label[t], code[t], strict=True)}
            assert len(pairs) == 2 and len({c for _, c in pairs}) == 2
            assert {str(c) for _, c in pairs} <= set(tasks.classes(split))
    every = [name for split in ("train", "validation", "test") for name in tasks.classes(split)]
    assert sorted(every) == sorted(map(str, range(10)))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=4))
def test_each_label_has_its_own_numbers_of_examples(sizes: list[tuple[int, int]]) -> None:
    x, y = coded(12, 8)
    shots, queries = ([pair[side] for pair in sizes] for side in (0, 1))
    tasks = TensorTasks(x, y, ways=len(sizes), shots=shots, queries=queries, splits=(0.4, 0.3, 0.3))
    batch = tasks.sampler("train").sample(3)
    for y_of, counts in ((batch.support_y, shots), (batch.query_y, queries)):
        assert [torch.bincount(row).tolist() for row in y_of] == [counts] * 3


def test_a_regressions_task_is_one_group() -> None:
    x = np.linspace(0, 1, 60)
    groups = np.repeat(np.arange(6), 10)
    y = np.stack([groups + x, -x], axis=1)
    tasks = TensorTasks(x, y, groups=groups, shots=3, queries=2, test_queries=4)
    assert tasks.classes("train") == ()
    for split, queries in (("train", 2), ("test", 4)):
        batch = tasks.sampler(split).sample(4)
        assert batch.support_y.shape == (4, 3, 2) and batch.query_y.shape == (4, queries, 2)
        inputs, targets = (
            torch.cat(p, 1)
            for p in ((batch.support_x, batch.query_x), (batch.support_y, batch.query_y))
        )
        group = targets[..., :1] - inputs
        assert torch.allclose(group, group[:, :1].round().expand_as(group), atol=1e-5)
        assert torch.allclose(targets[..., 1:], -inputs)


def test_a_sequence_depends_on_the_seed_and_goes_on_from_its_state() -> None:
    tasks = TensorTasks(*coded(10, 6), ways=2)
    one, other, third = (tasks.sampler("train", seed) for seed in (1, 1, 2))
    assert torch.equal(one.sample(3).query_x, other.sample(3).query_x)
    assert not torch.equal(other.sample(3).query_x, third.sample(3).query_x)
    one.sample(3)
    third.load_state_dict(one.state_dict())
    assert torch.equal(one.sample(3).query_x, third.sample(3).query_x)


def test_splits_are_given_by_names_or_by_examples() -> None:
    x, y = coded(6, 4)
    names = {"train": [0, 1, 2], "val": ["3"], "test": [4, 5]}
    tasks = TensorTasks(x, y, ways=1, queries=1, splits=names)
    assert [tasks.classes(s) for s in ("train", "validation", "test")] == [
        ("0", "1", "2"),
        ("3",),
        ("4", "5"),
    ]
    each = TensorTasks(x, y, ways=2, queries=1, splits=["train", "train", "val", "test"] * 6)
    assert all(each.classes(s) == tuple("012345") for s in ("train", "validation", "test"))
    with pytest.raises(UsageError, match=r"expected 2 examples .* and '0' has 1"):
        each.sampler("test")
    assert set(each.sampler("train").sample(9).query_x.flatten().int().remainder(100).tolist()) == {
        0,
        1,
    }


def test_bytes_are_scaled_and_other_whole_numbers_are_kept() -> None:
    y = np.repeat(np.arange(3), 4)
    each = {"splits": ["train"] * 12, "ways": 3, "queries": 3}
    bytes_ = TensorTasks(np.full((12, 1, 2, 2), 51, np.uint8), y, **each).sampler("train").sample(1)
    assert torch.allclose(bytes_.query_x, torch.tensor(0.2))
    tokens = TensorTasks(np.full((12, 7), 9, np.int32), y, **each).sampler("train").sample(1)
    assert tokens.query_x.dtype == torch.int64 and (tokens.query_x == 9).all()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for c in "abcdef":
            for _ in range(4):
                yield Image.new("L", (3, 2), ord(c)), c


def test_a_dataset_gives_the_tasks_of_its_arrays() -> None:
    x, y = coded(10, 6, (3, 4))
    own = TensorTasks(x, y, ways=2).sampler("train").sample(4)
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    assert torch.equal(
        DatasetTasks(dataset, ways=2).sampler("train").sample(4).query_x, own.query_x
    )
    images = DatasetTasks(Stream(), ways=1, queries=2)
    batch = images.sampler("train").sample(3)
    assert batch.query_x.shape == (3, 2, 2, 3)
    code = int((255 * batch.query_x[0, 0, 0, 0]).round())
    assert chr(code) in images.classes("train")


def test_a_table_of_features_is_read(tmp_path: Path) -> None:
    path = tmp_path / "features.csv"
    x, y = coded(6, 4)
    rows = [f"{a},{c},{b}" for (a, b), c in zip(x.tolist(), y, strict=True)]
    path.write_text("\ufeffwidth,label,height\n" + "\n".join(rows))
    read = TensorTasks.from_csv(path, ways=2, queries=2, splits=(0.4, 0.3, 0.3))
    own = TensorTasks(x, y, ways=2, queries=2, splits=(0.4, 0.3, 0.3))
    assert torch.equal(
        read.sampler("train").sample(3).query_x, own.sampler("train").sample(3).query_x
    )
    regression = TensorTasks.from_csv(path, ["height"], group="label", queries=2)
    batch = regression.sampler("train").sample(3)
    assert torch.equal(batch.query_x, batch.query_y)  # the width is the height here
    for text, sentence in (
        ("a,label\nx,1\n", "column 'a' has a value that is no number"),
        ("a,b\n1,1\n", "lacks the column label"),
        ("label\n1\n", "expected a column of features"),
        ("a,label\n1\n", "has the row"),
        ("a,label\n,1\n", "column 'a' has a value that is no number"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=sentence):
            TensorTasks.from_csv(path)


X, Y = coded(10, 6)


@pytest.mark.parametrize(
    ("x", "y", "options", "sentence"),
    [
        (X[:-1], Y, {}, "expected 59 whole numbers or texts"),
        (X, Y[:, None], {}, r"not int64 of shape \(60, 1\)"),
        (X, Y.astype(float), {}, "give whole numbers or texts as y"),
        (X, Y, {"groups": Y}, "groups: expected None for classes"),
        (X, Y + 0.5, {"groups": Y[:-1]}, "groups: expected 60 whole numbers"),
        (X, Y[:-1] + 0.5, {"groups": Y}, "y has 59 rows and x 60"),
        (np.where(X == 203, np.nan, X), Y, {}, "row 15 of x or y has a value that is not finite"),
        (X, np.where(Y == 3, np.inf, Y), {"groups": Y}, "row 18 of x or y"),
        (X.astype(complex), Y, {}, "expected real numbers"),
        (X.astype(object), Y, {}, "expected real numbers"),
        (np.zeros((0, 3)), Y[:0], {}, "expected real numbers"),
        (X, Y, {"shots": 0}, "shots=0, ways=5: expected a whole number of at least 1"),
        (X, Y, {"queries": [1, 2]}, r"queries=\[1, 2\], ways=5"),
        (X, Y, {"ways": 0}, "ways=0"),
        (X, Y, {"splits": (0.5, 0.5, 0.5)}, "whose sum is 1"),
        (X, Y, {"splits": {"dev": [1]}}, "splits has 'dev'"),
        (X, Y, {"splits": {"train": [1], "test": [1]}}, "splits has '1' in test"),
        (X, Y, {"splits": {"train": [11]}}, "splits has '11' in train"),
        (X, Y, {"splits": ["train"] * 59}, "splits: expected 60 texts"),
        (X, Y, {"splits": ["dev"] * 60}, "each of them train, validation, test"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x: Any, y: Any, options: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        TensorTasks(x, y, **options)


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "no items"),
        (None, "dataset=None: expected a torch"),
        ([1], r"dataset\[0\]: expected a pair"),
        ([(1,)], "not tuple of length 1"),
        ([(np.ones(2), 0), (np.ones(3), 0)], r"dataset\[1\]: expected the shapes of dataset\[0\]"),
    ],
)
def test_a_dataset_of_other_items_is_refused(items: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        DatasetTasks(items)


def test_a_split_that_is_too_small_for_a_task_is_refused() -> None:
    with pytest.raises(
        UsageError, match="ways=5: expected up to 2, the number of classes of the test"
    ):
        TensorTasks(X, Y).sampler("test")
    with pytest.raises(UsageError, match="split has 'dev'; expected one of test, train, valid"):
        TensorTasks(X, Y, ways=2).sampler("dev")
    with pytest.raises(UsageError, match="num_tasks=0: expected at least 1"):
        TensorTasks(X, Y, ways=2).sampler("train").sample(0)
    with pytest.raises(UsageError, match="expected 8 examples in each of the classes"):
        TensorTasks(X, Y, ways=2, queries=7).sampler("train")


def test_a_meta_gradient_takes_series_of_unequal_classes() -> None:
    """Well separated classes are told apart after a few inner steps, whatever their numbers."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat_interleave(8)
    centres = torch.randn(10, 4, 3, generator=generator)
    x = centres[y] + 0.1 * torch.randn(80, 4, 3, generator=generator)
    sampler = TensorTasks(x, y, ways=2, shots=(1, 4), queries=(3, 2)).sampler("train")
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    meta = dict(model.named_parameters())
    gradient = Unrolled(GradientDescent(5, 0.2), backend="batched")
    result = gradient(FewShot(model), meta, sampler.sample(4))
    assert result.outer_loss.mean() < 0.5 * math.log(2)
    assert all(grad.isfinite().all() and grad.any() for grad in result.grads.values())
