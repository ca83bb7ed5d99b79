"""The random states of the process: Python's (used by learn2learn), NumPy's and PyTorch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed all random states with a number below 2^32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_states() -> dict[str, Any]:
    """Return all random states as plain values and tensors, for a checkpoint."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_states(states: dict[str, Any]) -> None:
    """Restore the states of `get_states`; CUDA's only if the number of devices is the same."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


TorchStates = tuple[torch.Tensor, ...]
"""PyTorch's random states, of the CPU and of every CUDA device in use."""


def torch_states() -> TorchStates:
    """Return the present states."""
    return torch.get_rng_state(), *(
        torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ()
    )


def drawn_since(states: TorchStates) -> bool:
    """Return True if PyTorch has drawn random numbers since `states`, as dropout does."""
    return not all(torch.equal(a, b) for a, b in zip(states, torch_states(), strict=False))


@contextmanager
def replayed(states: TorchStates) -> Iterator[None]:
    """Draw again what was drawn after `states`; restore the present states at the end."""
    now = torch_states()
    _set_torch_states(states)
    try:
        yield
    finally:
        _set_torch_states(now)


def _set_torch_states(states: TorchStates) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def untouched() -> Iterator[None]:
    """Restore the random states at the end of the `with` block."""
    states = get_states()
    try:
        yield
    finally:
        set_states(states)
