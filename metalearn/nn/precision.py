"""The type in which a network computes, by `torch.autocast`; parameters and results keep theirs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.errors import UsageError

Precision = Literal["full", "bf16"]
"""The type of a network's convolutions and products: that of its parameters, or bfloat16."""

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Check the precision of a problem.

    Raises:
        UsageError: it is neither "full" nor "bf16".
    """
    if precision not in ("full", "bf16"):
        raise UsageError(f"precision={precision!r}: expected 'full' or 'bf16'. Give one.")


def reduced(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which products of float32 tensors are computed in `precision`.

    Torch's list of autocast operations chooses the others. Numbers of float64 stay as they are.
    """
    if precision == "full":
        return nullcontext()
    # Without the cache no cast is kept that was made without a graph.
    return torch.autocast(device.type, TYPES[precision], cache_enabled=False)


def widened(y: Any) -> Any:
    """Return a tensor of a half type as float32; anything else as it is."""
    narrow = isinstance(y, Tensor) and y.dtype in TYPES.values()
    return y.float() if narrow else y
