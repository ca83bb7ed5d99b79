"""The processes that share a run, as `torchrun` starts them."""

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
    """This process's number among `size`; by default it is alone, and nothing is ever sent.

    All ranks call the same methods in the same order. Where the others cannot be reached, each of
    them raises TrainingStopped.
    """

    rank: int = 0
    size: int = 1

    def share(self, tasks: int) -> slice:
        """Which of so many tasks are this rank's: as many for each, within one, in order."""
        return slice(self.rank * tasks // self.size, (self.rank + 1) * tasks // self.size)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order; tensors arrive on the CPU."""
        if self.size == 1:
            return [value]
        packed = io.BytesIO()
        torch.save(value, packed)
        found: list[Any] = [None] * self.size
        with _in_touch():
            dist.all_gather_object(found, packed.getvalue())
        return [_unpacked(data) for data in found]

    def gather_or_raise(self, report: T | Exception) -> list[T]:
        """`gather`, where an exception that a rank reports is raised on every rank."""
        if isinstance(report, Exception):
            report = report.with_traceback(None)
        reports = self.gather(report)
        for found in reports:
            if isinstance(found, Exception):
                raise found
        return [found for found in reports if not isinstance(found, Exception)]

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Their sums over the ranks, the same on each to the bit; of one type, sent as a vector."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([x.reshape(-1) for x in tensors])
        with _in_touch():
            dist.all_reduce(flat)
        sums = flat.split([x.numel() for x in tensors])
        return [s.view(x.shape) for s, x in zip(sums, tensors, strict=True)]

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with _in_touch():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def lead(self, work: Callable[[], T]) -> T:
        """Rank 0 alone does the work; its value, or its UsageError or TrainingStopped, is
        everyone's."""
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
"""Seconds that processes of one attempt wait for each other at its start."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started with this process, or this process alone.

    Gloo carries what lies on the CPU, NCCL what lies on a GPU; each process takes the GPU of its
    number on its machine.

    Raises:
        UsageError: there are fewer GPUs than processes on a machine that has GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield Ranks()
        return
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(
                f"process {local + 1} on this machine has no GPU, of which there are {gpus}; "
                f"start torchrun with --nproc-per-node {gpus}, or hide them by "
                "CUDA_VISIBLE_DEVICES="
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
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
    """Where this attempt's processes find each other: torchrun's store, under a name of the
    attempt's own; and what rank 0 has to keep until they have.

    torchrun's store outlives a restart, and in it the addresses of the processes that ended: a new
    one that reads them before they are overwritten waits for ever (pytorch issue 135712). So rank 0
    makes up a name and tells it by a store of its own, which ends with it.
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
    """The port of rank 0's store, once the one that is told is no ended attempt's any more."""
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


def job() -> str | None:
    """What names a torchrun job, all its attempts alike; None where torchrun was given no name, or
    is not there."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name == "none" else name


def restarted() -> bool:
    """Whether torchrun started this process in place of one that ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def _in_touch() -> Iterator[None]:
    """Gloo and NCCL raise RuntimeErrors where a peer is gone."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingStopped(
            f"stopped: rank {os.environ['RANK']} lost the others "
            f"({' '.join(str(error).split())[:200]}); go on with resume= and the run's folder"
        ) from error


def _unpacked(data: bytes) -> Any:
    # Of a process of this very run, which is trusted as one's own memory is.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
