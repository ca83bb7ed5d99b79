"""The streams of batches: endless passes over a DataLoader that can be resumed within a pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.dataloader import default_collate

from metalearn.errors import UsageError
from metalearn.system import random_state


class FixedBatches(Sampler[list[int]]):
    """A `batch_sampler` that divides the examples into batches once and for all.

    Each pass yields as many batches as there are, each drawn uniformly, as the memory of SAGA asks.
    `SABA` needs these batches: `DataLoader(data, batch_sampler=FixedBatches(len(data), 32))`.

    Args:
        examples: the number of examples.
        batch_size: the size of a batch; the last one may be smaller.
        seed: of the division and of the draws.
        replacement: False: each pass yields every batch once, in a random order.

    Raises:
        UsageError: a number is below 1.
    """

    def __init__(
        self, examples: int, batch_size: int, seed: int = 0, replacement: bool = True
    ) -> None:
        for name, value in (("examples", examples), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name}={value}: expected a whole number from 1 on. Give one.")
        self.examples, self.batch_size, self.replacement = examples, batch_size, replacement
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(examples, generator=self.generator)
        self.batches = [part.tolist() for part in order.split(batch_size)]
        self.order: list[int] = []
        """The places in `batches` of the batches of this pass, in order."""

    def weight(self, place: int) -> float:
        """Return the share of a batch's examples, in units of the share of a mean batch."""
        return len(self.batches[place]) * len(self.batches) / self.examples

    def __iter__(self) -> Iterator[list[int]]:
        count = len(self.batches)
        if self.replacement:
            drawn = torch.randint(count, (count,), generator=self.generator)
        else:
            drawn = torch.randperm(count, generator=self.generator)
        self.order = drawn.tolist()
        return iter([self.batches[place] for place in self.order])

    def __len__(self) -> int:
        return len(self.batches)


class Drawn(NamedTuple):
    """A batch on its device, and its place among `FixedBatches`; None for other loaders."""

    data: Any
    place: int | None


class BatchStream:
    """The batches of a loader, pass after pass.

    A state holds the random states at the start of the pass and the number of batches drawn. To
    resume, the pass is begun again and the batches before are read and dropped. This is exact for
    any loader whose order depends on torch's, NumPy's and Python's random states and on the
    `generator` of the loader and of its samplers. Random transforms in persistent workers are not.

    Args:
        name: the argument's name, for errors.
        loader: yields pytrees of tensors, as `default_collate` does.
        device: where the batches are moved.
        seed: of `independent`.

    Raises:
        UsageError: it is no DataLoader.
    """

    def __init__(self, name: str, loader: Any, device: torch.device, seed: int = 0) -> None:
        if not isinstance(loader, DataLoader):
            raise UsageError(
                f"{name}={type(loader).__name__}: expected a torch.utils.data.DataLoader. Give "
                "DataLoader(dataset, batch_size=32, shuffle=True)."
            )
        self._name, self.loader, self._device = name, loader, device
        self._iterator: Iterator[Any] | None = None
        self._position = 0
        self._order: list[int] = []  # of this pass, for another stream may use the loader too
        self._at_start: dict[str, Any] | None = None
        self._last: Any = None
        self._before_last: dict[str, Any] | None = None
        self._own = torch.Generator().manual_seed(seed)

    @property
    def fixed(self) -> FixedBatches | None:
        """The loader's `FixedBatches`; None: it has other batches in each pass."""
        found = self.loader.batch_sampler
        return found if isinstance(found, FixedBatches) else None

    def next(self) -> Drawn:
        """Return the next batch.

        Raises:
            UsageError: a pass over the loader has no batch.
        """
        data = self._read()
        place = self._order[self._position - 1] if self._order else None
        return Drawn(self._moved(data), place)

    def every(self) -> Iterator[Any]:
        """Yield all data once, in batches on the device: the stream stays where it is.

        Raises:
            UsageError: the loader has no end.
        """
        if isinstance(self.loader.dataset, IterableDataset):
            raise UsageError(
                f"{self._name} iterates over a stream: expected a dataset with a length, whose "
                "examples can be chosen. Use a map-style dataset."
            )
        dataset: Any = self.loader.dataset
        whole = range(len(dataset))
        if self.loader.batch_size is None and self.loader.batch_sampler is None:
            for i in whole:  # the dataset's items are batches
                with random_state.untouched():
                    batch = self._moved(self.loader.collate_fn(dataset[i]))
                yield batch
            return
        fixed, size = self.fixed, self.loader.batch_size or 1
        chosen = fixed.batches if fixed else [whole[i : i + size] for i in whole[::size]]
        for indices in chosen:
            with random_state.untouched():
                batch = self._chosen(indices)
            yield batch

    def independent(self) -> Any:
        """Return a batch that is independent of all others, on the device.

        Where the batches are made of uniform draws, that is a batch of examples drawn with
        replacement, and the stream stays where it is. Else it is the stream's next batch, which is
        independent of the earlier ones as far as the loader's are.
        """
        sampler = getattr(self.loader, "sampler", None)
        uniform = isinstance(sampler, RandomSampler | SequentialSampler) and self.loader.batch_size
        fixed = self.fixed
        if isinstance(self.loader.dataset, IterableDataset) or not (uniform or fixed):
            return self.next().data
        size = fixed.batch_size if fixed else self.loader.batch_size
        count = len(self.loader.dataset)  # type: ignore[arg-type]
        drawn = torch.randint(count, (min(int(size or 1), count),), generator=self._own)
        with random_state.untouched():
            return self._chosen(drawn.tolist())

    def digest(self) -> str:
        """Return the SHA-256 of the last batch."""
        return _digest(self._last)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, for a checkpoint."""
        return {
            "position": self._position,
            "at_start": self._at_start,
            "generators": self._generator_states(),
            "own": self._own.get_state(),
            "last": self.digest(),
            "before_last": self._before_last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where a state is; torch's, NumPy's and Python's random states are changed.

        Raises:
            UsageError: the loader yields other batches than it did.
        """
        self._iterator, self._position, self._last = None, 0, None
        self._at_start = state["at_start"]
        if state["position"]:
            random_state.set_states(state["at_start"]["random"])
            self._set_generators(state["at_start"]["generators"])
            for i in range(state["position"]):
                if i and i == state["position"] - 1:  # so that a random transform is the same
                    random_state.set_states(state["before_last"])
                self._read()
            if self._position != state["position"] or self.digest() != state["last"]:
                raise UsageError(
                    f"{self._name} yields another batch than before: expected the same data and an "
                    "order that depends on torch's random state alone. Give the loader the data of "
                    "the run, and its sampler a torch.Generator as the attribute generator."
                )
        self._set_generators(state["generators"])
        self._own.set_state(state["own"])

    def _read(self) -> Any:
        for begun in (False, True):
            if self._iterator is None or begun:
                generators = self._generator_states()
                self._at_start = {"random": random_state.get_states(), "generators": generators}
                self._iterator, self._position = iter(self.loader), 0
                self._order = self.fixed.order if self.fixed else []
            self._before_last = random_state.get_states()
            try:
                self._last = next(self._iterator)
            except StopIteration:
                continue
            self._position += 1
            return self._last
        raise UsageError(
            f"{self._name} is empty: expected at least one batch. Give more data, or "
            "drop_last=False."
        )

    def _chosen(self, indices: Sequence[int]) -> Any:
        dataset: Any = self.loader.dataset
        if hasattr(dataset, "__getitems__"):
            examples = dataset.__getitems__(list(indices))
        else:
            examples = [dataset[i] for i in indices]
        collate = self.loader.collate_fn or default_collate
        return self._moved(collate(examples))

    def _moved(self, batch: Any) -> Any:
        return tree_map(
            lambda x: x.to(self._device, non_blocking=True) if hasattr(x, "to") else x, batch
        )

    def _generators(self) -> list[torch.Generator]:
        places: list[Any] = [self.loader, self.loader.sampler, self.loader.batch_sampler]
        unique = {}
        for place in places:
            found = getattr(place, "generator", None)
            if isinstance(found, torch.Generator):
                unique[id(found)] = found
            inner = getattr(place, "sampler", None)  # a BatchSampler's
            if inner is not None and all(inner is not p for p in places):
                places.append(inner)
        return list(unique.values())

    def _generator_states(self) -> list[Tensor]:
        return [g.get_state() for g in self._generators()]

    def _set_generators(self, states: Sequence[Tensor]) -> None:
        own = self._generators()
        if len(own) != len(states):
            raise UsageError(
                f"{self._name} has {len(own)} generators: expected {len(states)}, as in the run "
                "that is resumed. Make the loader as it was."
            )
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def _digest(batch: Any) -> str:
    """Return the SHA-256 of a batch's tensors."""
    digest = hashlib.sha256()
    for x in tree_leaves(batch):
        if isinstance(x, Tensor):
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
            plain = x.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
