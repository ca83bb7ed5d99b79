"""A function on several ranks: processes of their own, without each importing PyTorch anew."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from metalearn.commands.main import main
from metalearn.parallel import ranks
from metalearn.training import checkpoint

WORDS = ["tasks=glyphs", "tasks.dataset.drawings=4", "model=mlp", "model.sizes=[784,8,5]"]
WORDS += ["metagrad=imaml_warm", "metagrad.curvature=gauss_newton", "metagrad.inner.steps=2"]
WORDS += ["meta_batch=4", "validation.every=5", "validation.tasks=5", "test.tasks=7", "threads=1"]
WORDS += ["wandb=disabled", "checkpoint_every=2", "average=0.9", "keep_best=2"]


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` in `size` processes with torchrun's environment; their values by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "metalearn.training.loop", "higher", "torch._dynamo"])
    with ProcessPoolExecutor(size, mp_context=context) as pool:
        waits = [pool.submit(_as_rank, r, size, port, function, args) for r in range(size)]
        return [wait.result(timeout=300) for wait in waits]


def _as_rank(rank: int, size: int, port: int, function: Callable[..., Any], args: Any) -> Any:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    return function(*args)


def process_group(function: Callable[..., Any], *args: Any) -> Any:
    """`function(ranks, *args)`, to be called on ranks."""
    with ranks.process_group() as here:
        return function(here, *args)


def train(words: list[str], keep_out_of: str = "") -> tuple[int, str]:
    """`command` without what it says on stdout."""
    status, _, said = command(["train", *words], keep_out_of)
    return status, said


def command(words: list[str], keep_out_of: str = "") -> tuple[int, str, str]:
    """The command line's status, and what it says on stdout and stderr. A rank but the first dies
    where it opens a file of that folder to write."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).startswith(keep_out_of) and args[2] & _WRITES:
            os._exit(9)

    if keep_out_of and os.environ["RANK"] != "0":
        sys.addaudithook(watch)
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as said:
        return main(words), out.getvalue(), said.getvalue()


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def train_on_a_full_disk(words: list[str]) -> tuple[int, str]:
    """The third checkpoint of rank 0 finds no room."""
    save, calls = checkpoint.save_newest, []

    def save_twice(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args)

    checkpoint.save_newest = save_twice
    return train(words)


def train_and_ask(words: list[str], metrics: Path, lines: int) -> tuple[int, str]:
    """The last rank gets SIGTERM once there are so many lines of metrics."""

    def ask() -> None:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        threading.Thread(target=ask, daemon=True).start()
    return train(words)
