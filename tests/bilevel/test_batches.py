"""The streams of batches: resumed within a pass, whatever the loader draws its order from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from metalearn.bilevel import FixedBatches
from metalearn.bilevel.batches import BatchStream
from metalearn.errors import UsageError

CPU = torch.device("cpu")


def data(count: int = 10) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Noisy(TensorDataset):
    """A dataset with a random transform."""

    def __getitem__(self, index):
        return (self.tensors[0][index] + torch.rand(()),)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randperm(7).tolist())


LOADERS = {
    "in order": lambda: DataLoader(data(), 3),
    "shuffled by the global state": lambda: DataLoader(data(), 3, shuffle=True),
    "by a generator": lambda: DataLoader(data(), 3, shuffle=True, generator=seeded()),
    "weighted": lambda: DataLoader(
        data(), 3, sampler=WeightedRandomSampler(range(1, 11), 10, generator=seeded())
    ),
    "nested samplers": lambda: DataLoader(
        data(),
        batch_sampler=BatchSampler(RandomSampler(data(), generator=seeded()), 4, drop_last=True),
    ),
    "fixed batches": lambda: DataLoader(data(), batch_sampler=FixedBatches(10, 3)),
    "random transforms": lambda: DataLoader(Noisy(torch.arange(10)), 3, shuffle=True),
    "iterable": lambda: DataLoader(Stream(), 2),
}


def values(stream: BatchStream, count: int) -> list[list[float]]:
    found = []
    for _ in range(count):
        batch = stream.next().data
        found.append((batch[0] if isinstance(batch, list | tuple) else batch).tolist())
        torch.rand(2)  # training draws from the same state
    return found


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("drawn", [0, 2, 6])
def test_a_stream_goes_on_where_it_was(make, drawn):
    torch.manual_seed(0)
    stream = BatchStream("inner_loader", make(), CPU)
    values(stream, drawn)
    state, random = copy.deepcopy(stream.state_dict()), torch.get_rng_state()
    rest = values(stream, 7)
    torch.manual_seed(1)
    again = BatchStream("inner_loader", make(), CPU)
    again.load_state_dict(state)
    torch.set_rng_state(random)
    assert values(again, 7) == rest


def test_workers_change_nothing():
    torch.manual_seed(0)
    stream = BatchStream("inner_loader", DataLoader(data(), 3, shuffle=True, num_workers=1), CPU)
    values(stream, 2)
    state = copy.deepcopy(stream.state_dict())
    rest = values(stream, 2)
    again = BatchStream("inner_loader", DataLoader(data(), 3, shuffle=True, num_workers=1), CPU)
    again.load_state_dict(state)
    assert values(again, 2) == rest


def test_other_data_at_a_resumption_is_noticed():
    stream = BatchStream("inner_loader", DataLoader(data(), 3), CPU)
    values(stream, 2)
    other = BatchStream("inner_loader", DataLoader(data(5), 3), CPU)
    with pytest.raises(UsageError, match="inner_loader yields another batch than before"):
        other.load_state_dict(stream.state_dict())


def test_every_example_comes_once_and_the_stream_stays():
    for make in (LOADERS["in order"], LOADERS["fixed batches"]):
        stream = BatchStream("inner_loader", make(), CPU)
        first = values(stream, 1)
        found = [x for batch in stream.every() for x in batch[0].tolist()]
        assert sorted(found) == list(range(10))
        again = BatchStream("inner_loader", make(), CPU)
        assert first + values(stream, 4) == values(again, 5)
    whole = BatchStream("inner_loader", DataLoader([(torch.arange(4),)], batch_size=None), CPU)
    assert [x[0].tolist() for x in whole.every()] == [[0, 1, 2, 3]]


def test_fixed_batches_are_a_division_drawn_uniformly():
    batches = FixedBatches(10, 3, seed=1)
    assert sorted(i for batch in batches.batches for i in batch) == list(range(10))
    assert sum(map(batches.weight, range(4))) == pytest.approx(4)
    drawn = [tuple(b) for _ in range(500) for b in batches]
    shares = [drawn.count(tuple(b)) / 2000 for b in batches.batches]
    # 0.05: five standard deviations of 2000 draws.
    assert shares == pytest.approx([0.25] * 4, abs=0.05)
    once = FixedBatches(10, 3, replacement=False)
    assert sorted(map(tuple, once)) == sorted(map(tuple, once.batches))


def test_independent_batches_are_uniform_draws_and_leave_the_stream():
    stream = BatchStream("inner_loader", DataLoader(data(), 5, shuffle=True), CPU)
    drawn = torch.cat([stream.independent()[0] for _ in range(400)])
    shares = torch.bincount(drawn, minlength=10) / len(drawn)
    assert (shares - 0.1).abs().max() < 0.04  # six standard deviations of 2000 draws
    assert stream.state_dict()["position"] == 0


@pytest.mark.parametrize(
    ("loader", "sentence"),
    [
        ([1, 2], "inner_loader=list: expected a torch.utils.data.DataLoader"),
        (DataLoader(data(2), 3, drop_last=True), "inner_loader is empty: expected at least one"),
    ],
)
def test_bad_loaders_are_one_sentence(loader, sentence):
    with pytest.raises(UsageError, match=sentence):
        BatchStream("inner_loader", loader, CPU).next()


def test_bad_numbers_are_one_sentence():
    with pytest.raises(UsageError, match="batch_size=0: expected a whole number from 1 on"):
        FixedBatches(10, 0)
    with pytest.raises(UsageError, match="expected a dataset with a length"):
        list(BatchStream("inner_loader", DataLoader(Stream(), 2), CPU).every())
