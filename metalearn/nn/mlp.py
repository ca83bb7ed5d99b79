"""A multilayer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from metalearn.errors import UsageError


class MLP(nn.Sequential):
    """A chain of linear layers with an activation between them: (n, ...) to (n, sizes[-1]).

    Args:
        sizes: inputs, hidden layers, outputs; images are flattened to sizes[0] values.
        activation: the class of the module between two layers (default ReLU).
    """

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise UsageError(f"MLP sizes {list(sizes)}; expected at least two, each at least 1")
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        super().__init__(*layers[:-1])
