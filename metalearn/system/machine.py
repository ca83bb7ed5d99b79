"""The threads, the device and the clock of the machine that a command uses."""

from __future__ import annotations

import time

import torch

from metalearn.errors import UsageError

MOST_THREADS = 1024


def use_threads(threads: int | None) -> None:
    """Set the number of threads of PyTorch's operations; None keeps PyTorch's default.

    Raises:
        UsageError: `threads` is not a whole number from 1 to `MOST_THREADS`.
    """
    if threads is None:
        return
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise UsageError(
            f"threads={threads}; expected a whole number from 1 to {MOST_THREADS}, or null"
        )
    torch.set_num_threads(threads)


def find_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        UsageError: the device is unknown, not supported or not present.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name!r} is unknown; expected 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={name!r} is not supported; expected 'cpu' or 'cuda'")
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise UsageError(
                f"device={name!r}, but this machine has {found} CUDA devices; "
                "use device=cpu or a device that is there"
            )
    return device


def now(device: torch.device) -> float:
    """Return the time in seconds, after all pending work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
