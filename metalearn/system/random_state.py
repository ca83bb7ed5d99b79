"""The process's random states: Python's (which learn2learn draws from), NumPy's and PyTorch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Starts all of them from a seed below 2^32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_states() -> dict[str, Any]:
    """All of them, in plain values and tensors, as a checkpoint takes them."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_states(states: dict[str, Any]) -> None:
    """Puts back what `get_states` gave. CUDA's are left out where the number of devices differs."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def untouched() -> Iterator[None]:
    """What is drawn inside is not missed outside."""
    states = get_states()
    try:
        yield
    finally:
        set_states(states)
