"""Signals that ask a run to leave."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""A scheduler's end, a terminal's Ctrl-C, and the notice that Slurm gives (--signal=USR1@60).

Windows has no SIGUSR1.
"""


class Interruption:
    """Opened by `with`: the first signal only sets `signum`, the second ends the process at once.

    The process that a second signal ends has that signal as its status, as without any of this. A
    signal that the process was started to ignore stays ignored; outside the main thread, where
    Python gives no signals, nothing is caught.
    """

    signum: int | None = None

    def __enter__(self) -> Interruption:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            caught = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._ask) for s in caught}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)  # by the system, even within a long operation
        name = signal.Signals(signum).name
        text = f"metalearn: {name}: leaving after this meta-step; a second signal ends it at once\n"
        with suppress(OSError):  # an error would be raised wherever the run is now
            os.write(2, text.encode())  # print is not made for signal handlers
