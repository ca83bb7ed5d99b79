"""The processes of a run that `torchrun` starts."""

from __future__ import annotations

import io
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metalearn.errors import TrainingStopped, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `size` processes; a single process sends nothing.

    All ranks call the same methods in the same order. Every method that communicates raises
    TrainingStopped if the other ranks cannot be reached.
    """

    rank: int = 0
    size: int = 1

    def local_slice(self, tasks: int) -> slice:
        """Return this rank's slice of `tasks` tasks; the slices differ by at most one task."""
        return slice(self.rank * tasks // self.size, (self.rank + 1) * tasks // self.size)

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in order of ranks; tensors arrive on the CPU."""
        if self.size == 1:
            return [value]
        packed = io.BytesIO()
        torch.save(value, packed)
        found: list[Any] = [None] * self.size
        with _in_touch():
            dist.all_gather_object(found, packed.getvalue())
        return [_unpacked(data) for data in found]

    def gather_or_raise(self, report: T | Exception) -> list[T]:
        """Gather values; if a rank reports an exception, raise it on every rank."""
        if isinstance(report, Exception):
            report = report.with_traceback(None)
        reports = self.gather(report)
        for found in reports:
            if isinstance(found, Exception):
                raise found
        return [found for found in reports if not isinstance(found, Exception)]

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All-reduce tensors of one type by a sum; the sums are bitwise equal on every rank.

        The tensors are sent as one vector.
        """
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([x.reshape(-1) for x in tensors])
        with _in_touch():
            dist.all_reduce(flat)
        sums = flat.split([x.numel() for x in tensors])
        return [s.view(x.shape) for s, x in zip(sums, tensors, strict=True)]

    def all_reduce_max(self, value: int) -> int:
        """All-reduce an integer by the maximum."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with _in_touch():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone and broadcast its value.

        A UsageError or TrainingStopped of rank 0 is raised on every rank.
        """
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        if self.rank == 0:
            packed = io.BytesIO()
            try:
                torch.save((work(), None), packed)
            except (UsageError, TrainingStopped) as error:
                torch.save((None, error), packed)
            told = [packed.getvalue()]
        with _in_touch():
            dist.broadcast_object_list(told, src=0)
        value, refusal = _unpacked(told[0])
        if refusal is not None:
            raise refusal
        return value


ALONE = Ranks()

PATIENCE = 300.0
"""The time in seconds that the processes of one attempt wait for each other at its start."""


_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables of torchrun by which the processes of a run find each other."""


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the process group of torchrun, and yield this process's `Ranks`.

    A process that torchrun did not start is alone. Gloo communicates tensors on the CPU, NCCL
    tensors on a GPU. Each process uses the GPU with its local rank.

    Raises:
        UsageError: a machine with GPUs has fewer GPUs than processes, or a variable of torchrun's
            is missing or has another value than torchrun gives it.
    """
    size, rank, local = world_size(), _whole("RANK"), _whole("LOCAL_RANK")
    _whole("MASTER_PORT", most=65535)
    if missing := [name for name in _VARIABLES if not os.environ.get(name)]:
        if size > 1 or rank:
            raise UsageError(
                f"{missing[0]} is not set beside WORLD_SIZE={size} and RANK={rank}: expected "
                f"{', '.join(_VARIABLES)}. Start the processes by torchrun, or unset them all"
            )
        yield Ranks()
        return
    if rank >= size:
        raise UsageError(
            f"RANK={rank}: expected a whole number below WORLD_SIZE={size}. Start the processes by "
            "torchrun"
        )
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        gpus = torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(
                f"process {local + 1} on this machine has no GPU, of which there are {gpus}; "
                f"start torchrun with --nproc-per-node {gpus}, or hide them by "
                "CUDA_VISIBLE_DEVICES="
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    with _in_touch():
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store, kept = _store(rank)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
            del kept
        else:
            dist.init_process_group(backend)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _store(rank: int) -> tuple[Any, Any]:
    """Return the store by which the processes of this attempt meet, and rank 0's own store.

    The store is torchrun's, under a prefix that is unique to the attempt. Rank 0 keeps its own
    store until all processes have read the prefix.

    torchrun's store outlives a restart, and keeps the addresses of the processes that ended. A new
    process that reads an old address waits for ever (pytorch issue 135712). Rank 0 therefore draws
    a random prefix and publishes it by its own store, which ends with rank 0.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    torchruns = TCPStore(host, port, is_master=False)
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        own.set("attempt", secrets.token_hex(8))
        torchruns.set("metalearn", str(own.port))
    else:
        own = TCPStore(host, _answering(host, torchruns), is_master=False)
    return PrefixStore(own.get("attempt").decode(), torchruns), own


def _answering(host: str, torchruns: Any) -> int:
    """Return the port of rank 0's store, as soon as a store answers at the published port.

    Before that, the published port may be that of an attempt that ended.

    Raises:
        RuntimeError: no store answers within `PATIENCE` seconds.
    """
    until = time.monotonic() + PATIENCE
    while True:
        found = int(torchruns.get("metalearn"))
        try:
            socket.create_connection((host, found), timeout=1).close()
        except OSError as error:
            if time.monotonic() > until:
                raise RuntimeError(f"rank 0 does not answer at {host}:{found}") from error
            time.sleep(0.05)
        else:
            return found


def world_size() -> int:
    """Return the number of processes that torchrun says; 1 without torchrun.

    Raises:
        UsageError: WORLD_SIZE is no whole number of at least 1.
    """
    return _whole("WORLD_SIZE", default=1, least=1)


def _whole(name: str, default: int = 0, least: int = 0, most: int = 2**31 - 1) -> int:
    """Return the whole number in an environment variable, `default` where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise UsageError(
            f"{name}={text!r} in the environment: expected a whole number from {least} to {most}. "
            "Unset it, or start by torchrun"
        )
    return int(text)


def job() -> str | None:
    """Return the id of the torchrun job, which all its attempts share.

    None: torchrun has no id (`--rdzv-id`), or did not start this process.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name == "none" else name


def restarted() -> bool:
    """Return True if torchrun started this process to replace one that ended."""
    return _whole("TORCHELASTIC_RESTART_COUNT") > 0


def may_restart() -> bool:
    return _whole("TORCHELASTIC_MAX_RESTARTS") > 0


@contextmanager
def _in_touch() -> Iterator[None]:
    """Turn a RuntimeError of Gloo or NCCL, raised when a peer is gone, into TrainingStopped."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingStopped(
            f"stopped: rank {os.environ.get('RANK', 0)} lost the others "
            f"({' '.join(str(error).split())[:200]}); start the command again; for a "
            "training give resume=FOLDER"
        ) from error


def sum_bytes(tensors: Sequence[Tensor]) -> list[int]:
    """Return the sum of each tensor's bytes, by which ranks compare tensors without sending them.

    Sums that differ say that the tensors do.
    """
    bits = [x.detach().reshape(-1).view(torch.uint8) for x in tensors]
    return [int(b.sum(dtype=torch.int64)) for b in bits]


def _unpacked(data: bytes) -> Any:
    # The data come from a process of this run, which is as trusted as this process.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
