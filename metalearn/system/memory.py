"""The peak memory of a call, exact on a CPU, and an allocator that keeps freed memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch._C._profiler import RecordScope, _EventType
from torch.autograd.profiler import profile
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity

T = TypeVar("T")
_autograd: Any = torch._C._autograd  # its stubs lack arguments
STEPS_OF_A_WINDOW = 50
"""The steps of torch optimisers after which the measurement on a CPU reads the records."""


def peak_bytes(function: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """Return `function()` and its peak memory in bytes, above the memory held before the call.

    CPU: the measurement counts every allocation of PyTorch's allocator to the byte, in the calling
    thread and in the threads that autograd starts for it. Three things are not counted:

    - memory of the caller's own Python threads, of NumPy and of a library's private workspace;
    - releases of memory that was allocated before the call.

    The call runs under PyTorch's profiler, which adds some 40 us to an allocation. Do not time the
    call, and do not call it under another profiler. The profiler's records take some 2 kB an
    allocation. They are read after every 50 steps of torch optimisers, and do not grow beyond.
    In a loop without a torch optimiser they grow with its steps.

    CUDA: the measurement reads the peak counter of the device's caching allocator, which rounds
    blocks up to 512 bytes. The device's peak counter is reset.

    Raises:
        ValueError: the device is of any other kind. Errors of `function` pass through.
    """
    if device.type == "cpu":
        return _cpu_peak(function)
    if device.type == "cuda":
        return _cuda_peak(function, device)
    raise ValueError(f"peak memory is measured on cpu and cuda devices, not on {device.type!r}")


KEEP_MEMORY = "METALEARN_KEEP_MEMORY"
"""The environment variable that turns `keep_freed_memory` off, by the value 0."""

_decided = False


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process keep freed memory for its next allocation (Linux with glibc).

    An inner loop frees and allocates the same large tensors at every step. By default glibc returns
    them to the kernel, which clears them page by page at the next allocation. This takes a sixth of
    a meta-step. A process that keeps freed memory holds its peak until it ends. On other systems
    the function does nothing.

    The first meta-gradient of a process calls it, unless METALEARN_KEEP_MEMORY is 0, or the process
    has called it.

    Args:
        keep: False: return freed memory to the kernel, as glibc does by default.
    """
    global _decided
    if keep:
        _malloc_options(trim_threshold=-1, mmap_max=0)
    elif _decided:
        _malloc_options(trim_threshold=128 * 1024, mmap_max=65536)  # glibc's defaults
    _decided = True


def keep_freed_memory_by_default() -> None:
    """Call `keep_freed_memory` as the environment says, unless the process has called it."""
    if not _decided:
        keep_freed_memory(os.environ.get(KEEP_MEMORY) != "0")


def give_back_freed_memory() -> None:
    """Undo `keep_freed_memory` after memory has run out, and empty CUDA's cache.

    Small freed blocks then make room for large tensors again. The time that keeping them saved is
    lost.
    """
    gc.collect()  # autograd's graphs can form reference cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    keep_freed_memory(False)
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Any:
    """Return a function of the C library on Linux; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def _malloc_options(trim_threshold: int, mmap_max: int) -> None:
    if mallopt := _glibc("mallopt"):
        mallopt(-1, trim_threshold)  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        mallopt(-4, mmap_max)


def format_bytes(n: int) -> str:
    """Return `n` bytes in decimal units: "999 B", "82.1 MB", "200.0 MB"."""
    if abs(n) < 1000:
        return f"{n} B"
    value = float(n)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # 999.95 would round up to "1000.0"; the next unit shows it better.
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
    # Kineto, the profiler's back end, logs its start and stop to stderr. Level 6 is above its
    # highest level. Kineto reads the variable when the first profiler starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    windows = _Windows()
    windows.begin()
    hook = register_optimizer_step_post_hook(windows.after_step)
    try:
        result = function()
    finally:
        hook.remove()
        last = _autograd._disable_profiler()
    windows.read(last)
    return result, windows.peak


class _Windows:
    """The peak of the allocations, from the profiler's records of some optimiser steps at a time.

    The profiler records allocations alone, no operators. Hence it may stop inside one.
    """

    def __init__(self) -> None:
        self.held = self.peak = self.steps = 0
        self.live: dict[int, int] = {}
        self.thread = threading.get_ident()

    def begin(self) -> None:
        config, cpu = profile(profile_memory=True).config(), {ProfilerActivity.CPU}
        _autograd._prepare_profiler(config, cpu)
        _autograd._enable_profiler(config, cpu, {RecordScope.STATIC_RUNTIME_MODEL})

    def after_step(self, *_: Any) -> None:
        """Begin a new window after every `STEPS_OF_A_WINDOW` steps of a torch optimiser."""
        # Another thread has its own profiler; a backward pass keeps the one it began with.
        if threading.get_ident() == self.thread and torch._C._current_graph_task_id() == -1:
            self.steps += 1
            if self.steps % STEPS_OF_A_WINDOW == 0:
                record = _autograd._disable_profiler()
                self.begin()  # before the reading, in which Python's collector may free tensors
                self.read(record)

    def read(self, record: Any) -> None:
        for address, size in _events(record):
            # Releases are matched by address. PyTorch reports the release of a block from before
            # the call only if an earlier profile saw its address, and then with its size there.
            change = size if size > 0 else -self.live.pop(address, 0)
            if size > 0:
                self.live[address] = size
            self.held += change
            self.peak = max(self.peak, self.held)


def _events(record: Any) -> Iterator[tuple[int, int]]:
    """Yield (address, bytes) of every allocation and release (bytes < 0), in order of time.

    The tree of events holds them with addresses. The exported trace does too, but it is a file,
    for which a temporary folder may have no room.
    """
    stack, found = list(reversed(record.experimental_event_tree())), []
    while stack:
        event = stack.pop()
        stack += reversed(event.children)
        kind, detail = event.typed
        if kind == _EventType.Allocation and detail.device.type == "cpu":
            found.append((event.start_time_ns, detail.ptr, detail.alloc_size))
    found.sort(key=lambda event: event[0])  # stable: the tree orders equal time stamps
    for _, address, size in found:
        yield address, size
