"""The cells, the models around them, and the data of the study of deep equilibrium models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


class DenseCell(nn.Module):
    """The cell (z, x) -> norm(silu(W z + U x + b)), on (B, width) and (B, inputs).

    SiLU is smooth, as the implicit function theorem asks. The layer norm bounds the state. With
    tanh and no norm, some samples of digits had an I - J that is singular to float32.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.state = nn.Linear(width, width)
        self.inject = nn.Linear(inputs, width, bias=False)
        self.norm = nn.LayerNorm(width)
        with torch.no_grad():
            self.state.weight.mul_(0.3)  # the cell begins as a contraction

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        state: Tensor = self.norm(F.silu(self.state(z) + self.inject(x)))
        return state


class CausalCell(nn.Module):
    """A gated step along a sequence, at all positions at once: (z, x) of (B, L, width).

    Position t sees z of position t - 1 alone, so one application moves a state by one position.
    The fixed point is the output of a recurrent network with this cell. J is nilpotent: L
    applications from any state reach the fixed point.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.state = nn.Linear(width, 2 * width)
        self.inject = nn.Linear(inputs, 2 * width, bias=False)
        with torch.no_grad():
            self.state.bias[:width] = 3.0  # gates begin nearly shut and keep the state

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        before = F.pad(z[:, :-1], (0, 0, 1, 0))
        gate, new = (self.state(before) + self.inject(x)).chunk(2, dim=-1)
        gate = torch.sigmoid(gate)
        return gate * before + (1 - gate) * torch.tanh(new)


class WeightTied(nn.Module):
    """A cell applied `depth` times and differentiated by unrolling: the twin of a DEQ."""

    def __init__(self, cell: nn.Module, depth: int) -> None:
        super().__init__()
        self.cell, self.depth = cell, depth

    def forward(self, x: Tensor, z0: Tensor) -> Tensor:
        z = z0
        for _ in range(self.depth):
            z = self.cell(z, x)
        return z


class Classifier(nn.Module):
    """A linear read-out of a core's state, or of its last position in a sequence.

    The state starts at zero.
    """

    def __init__(self, core: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.core, self.width = core, width
        self.head = nn.Linear(width, classes)

    def state(self, x: Tensor) -> Tensor:
        state: Tensor = self.core(x, x.new_zeros(*x.shape[:-1], self.width))
        return state

    def forward(self, x: Tensor) -> Tensor:
        z = self.state(x)
        logits: Tensor = self.head(z if z.dim() == 2 else z[:, -1])
        return logits


@dataclass(frozen=True)
class Data:
    """The examples and their labels, x (n, ...) and y (n,), for training and for testing."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: torch.device) -> Data:
        return Data(*(x.to(device) for x in (self.train_x, self.train_y, self.test_x, self.test_y)))

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one shuffled epoch, without a last batch that is short."""
        order = torch.randperm(len(self.train_x), generator=generator)
        for i in range(0, len(order) - size + 1, size):
            chosen = order[i : i + size].to(self.train_x.device)
            yield self.train_x[chosen], self.train_y[chosen]


def digits() -> Data:
    """Return scikit-learn's 1,797 digits of 8x8, a quarter of each class for testing.

    The split is always the same. Pixels have mean 0 and deviation 1 over the training set.
    """
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = split
    mean, deviation = train_x.mean(), train_x.std()
    return Data(
        torch.as_tensor((train_x - mean) / deviation, dtype=torch.float32),
        torch.as_tensor(train_y, dtype=torch.int64),
        torch.as_tensor((test_x - mean) / deviation, dtype=torch.float32),
        torch.as_tensor(test_y, dtype=torch.int64),
    )


SYMBOLS, NOISE = 8, 8
CLIP = 1.0
"""The largest norm of a batch's gradient."""


def recall(length: int, train: int = 2048, test: int = 1024, seed: int = 0) -> Data:
    """Make sequences of one-hot tokens: one of 8 symbols, then noise of 8 other symbols.

    The label is the first symbol, `length` - 1 positions before the position that answers.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, SYMBOLS, (n,), generator=g)
        noise = torch.randint(SYMBOLS, SYMBOLS + NOISE, (n, length - 1), generator=g)
        return F.one_hot(torch.cat([y[:, None], noise], 1), SYMBOLS + NOISE).float(), y

    return Data(*draw(train), *draw(test))


def fit(
    model: Classifier,
    data: Data,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
    penalty: Callable[[Tensor], Tensor] | None = None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train by Adam on the cross-entropy plus the `penalty` of a batch's inputs."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        for x, y in data.batches(batch, generator):
            loss = F.cross_entropy(model(x), y)
            if penalty is not None:
                loss = loss + penalty(x)
            optimiser.zero_grad()
            loss.backward()
            # A sample whose I - J is nearly singular has an unbounded gradient.
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
        after_epoch(epoch + 1)


@torch.no_grad()
def accuracy(model: Classifier, data: Data) -> float:
    """Return the accuracy on the test set, in percent."""
    return 100 * float((model(data.test_x).argmax(1) == data.test_y).double().mean())
