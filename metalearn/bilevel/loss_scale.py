"""The scale of a loss in half precision, without which small gradients are lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

START = 2.0**14
LARGEST = 2.0**24
PATIENCE = 1000
"""The evaluations in a row without an overflow after which the scale is doubled."""


class LossScale:
    """The factor of a loss: it is halved at an overflow, and doubled after long success.

    The evaluation that overflowed is made again, so that no step is left out. At a scale of 1 an
    overflow is the loss's own, and is handed on.

    Args:
        dynamic: False: the factor is 1 always.
    """

    def __init__(self, dynamic: bool) -> None:
        self.dynamic = dynamic
        self.value, self._successes = (START if dynamic else 1.0), 0

    def up(self, loss: Tensor) -> Tensor:
        """Scale a loss."""
        return loss * self.value if self.dynamic else loss

    def down(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Unscale derivatives of a loss."""
        if not self.dynamic:
            return list(values)
        return [None if v is None else v / self.value for v in values]

    def unit(self, x: Sequence[Tensor]) -> float:
        """Return the factor that brings a vector into the range of the type; 1 if not dynamic."""
        if not self.dynamic:
            return 1.0
        largest = max(float(v.abs().max()) if v.numel() else 0.0 for v in x)
        return largest if 0 < largest < torch.inf else 1.0

    def accepts(self, values: Sequence[Tensor | None]) -> bool:
        """Return False if the values overflowed and are to be computed again at a lower scale."""
        if not self.dynamic:
            return True
        if all(bool(v.isfinite().all()) for v in values if v is not None):
            self._successes += 1
            if self._successes >= PATIENCE:
                self.value, self._successes = min(2 * self.value, LARGEST), 0
            return True
        if self.value <= 1.0:
            return True
        self.value, self._successes = self.value / 2, 0
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "successes": self._successes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self._successes = state["value"], state["successes"]
