"""Memory: the peak of a call, exact on a CPU, and an allocator that keeps what it was given."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def peak_bytes(function: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """`function()`, and the most memory it held at once above what was held when it started.

    CPU: every allocation that PyTorch's allocator makes in the calling thread and in the threads
    that autograd starts for it, to the byte; the memory that a Python thread of the caller's own,
    NumPy or a library's private workspace takes is not seen, and neither is the release of what
    was allocated before the call. The call runs under `torch.profiler`, some 40 us an allocation:
    do not time it, and do not call it under another profiler.

    CUDA: the peak counter of the device's caching allocator, which rounds blocks up to 512 bytes.
    The device's peak counter is reset.

    Raises ValueError for any other kind of device, and whatever `function` raises.
    """
    if device.type == "cpu":
        return _cpu_peak(function)
    if device.type == "cuda":
        return _cuda_peak(function, device)
    raise ValueError(f"peak memory is measured on cpu and cuda devices, not on {device.type!r}")


def keep_freed_memory() -> None:
    """Lets this process keep the memory it frees, for its next allocation (Linux with glibc).

    An inner loop frees and asks again for the same large tensors at every step. By default glibc
    hands them back to the kernel, which clears them page by page the next time: a sixth of a
    meta-step. The process then holds its peak until it ends. Elsewhere this does nothing.
    """
    _malloc_options(trim_threshold=-1, mmap_max=0)


def give_back_freed_memory() -> None:
    """Undoes `keep_freed_memory` where memory has run out, and empties CUDA's cache: what was freed
    in pieces makes room for large tensors again, at the price of what keeping it saved."""
    gc.collect()  # autograd's graphs can lie in cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _malloc_options(trim_threshold=128 * 1024, mmap_max=65536)  # glibc's defaults
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _malloc_options(trim_threshold: int, mmap_max: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform.startswith("linux") and mallopt is not None:
        mallopt(-1, trim_threshold)  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(-4, mmap_max)


def format_bytes(n: int) -> str:
    """`n` bytes in decimal units: "999 B", "82.1 MB", "200.0 MB"."""
    if abs(n) < 1000:
        return f"{n} B"
    value = float(n)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # 999.95 would be rounded up to "1000.0", which the next unit says better.
        if abs(value) < 999.95 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def _cuda_peak(function: Callable[[], T], device: torch.device) -> tuple[T, int]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(function: Callable[[], T]) -> tuple[T, int]:
    # Kineto, the profiler's back end, writes its own start and stop to stderr; 6 is above its
    # highest level, and it reads the variable when the first profiler starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    held = peak = 0
    live: dict[int, int] = {}
    for address, size in _events(profiler):
        # Releases are matched by address: PyTorch reports one of a block from before the call
        # only where an earlier profile saw that address, and then with that profile's size.
        change = size if size > 0 else -live.pop(address, 0)
        if size > 0:
            live[address] = size
        held += change
        peak = max(peak, held)
    return result, peak


def _events(profiler: profile) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every allocation, and every release (bytes < 0), in time order.

    The exported trace is the profiler's one public account of them that has addresses.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())["traceEvents"]
    events = [event for event in trace if event.get("name") == "[memory]"]
    # "Ev Idx" counts one thread's events: it settles equal time stamps (about 1 ns apart) there.
    events.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    for event in events:
        detail = event["args"]
        if detail["Device Type"] == 0:  # the CPU
            yield detail["Addr"], detail["Bytes"]
