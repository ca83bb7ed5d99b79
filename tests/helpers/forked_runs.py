"""Training runs in processes of their own that can be killed, without each importing PyTorch anew.

As a program it imports everything once and forks a child for each line on its standard input, a
JSON list of words for the command line and a file for what the child prints; it answers with the
child's id, and when that has ended with its status (negative: the signal that ended it).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class ForkedRuns:
    """A context manager."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.output = folder / "output.txt"
        # W&B's variables would have the runs share this process's W&B service.
        own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        self._environment = own | {"OMP_NUM_THREADS": "1"} | environment

    def __enter__(self) -> ForkedRuns:
        self._server: Any = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=self._environment,
            cwd=self.output.parent,
        )
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def start(self, *words: str) -> int:
        """The process's id; what it prints is added to `output`."""
        print(json.dumps([list(words), str(self.output)]), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Until the process has ended: its status."""
        return int(self._server.stdout.readline())

    def run(self, *words: str) -> int:
        self.start(*words)
        return self.wait()

    def signal_when(self, pid: int, signum: int, file: Path, lines: int) -> None:
        """Once the file has so many lines; 0 only waits."""
        while not file.exists() or file.read_bytes().count(b"\n") < lines:
            os.kill(pid, 0)
            time.sleep(0.005)
        os.kill(pid, signum)

    def disturb(
        self, folder: Path, words: Sequence[str], signum: int, times: int, longest_s: float
    ) -> list[int]:
        """A run that is sent `signum` at `times` random moments, and goes on each time; then it is
        left alone. The statuses of all its sessions."""
        moments = random.Random(times)
        statuses = []
        while True:
            begun = list(folder.glob("last*.pt"))
            pid = self.start("train", *([f"resume={folder}"] if begun else words))
            if len(statuses) < times:
                time.sleep(moments.uniform(0, longest_s))
                with suppress(ProcessLookupError):  # it ended before
                    os.kill(pid, signum)
            statuses.append(self.wait())
            if statuses[-1] == 0:
                return statuses
            assert len(statuses) <= times, self.output.read_text()


def _serve() -> None:
    # What a run imports: a child that had to import it would spend its life so.
    import higher  # noqa: F401
    import torch
    import torch._dynamo  # by torch.optim, at its first use

    import metalearn.training.loop  # noqa: F401
    from metalearn.commands.main import main

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        words, output = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 1)
            os.dup2(1, 2)
            status = 70
            try:
                status = main(words)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
