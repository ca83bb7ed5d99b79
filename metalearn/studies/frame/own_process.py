"""A process of its own for a measurement, on which no other one's allocator or threads act."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def own_process(module: str) -> ProcessPoolExecutor:
    """Return an executor of one process, which ends when the calling process does.

    A server forks the process. It has imported `module`, which saves seconds, and has started no
    thread, which a fork would lose.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return ProcessPoolExecutor(1, context, initializer=_end_with_parent)


def keeps_memory(choice: str, library: str) -> bool:
    """Return whether a process keeps the memory that it frees.

    Args:
        choice: the processes that do: "all", "ours" or "none".
        library: the other library that the process measures; empty for this project.
    """
    return choice == "all" or (choice == "ours" and not library)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
