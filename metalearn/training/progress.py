"""The progress of a run on the screen: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from metalearn.system.duration import format_duration


class TimeLeft(ProgressColumn):
    """The column of the time that is left, as plain lines give it too."""

    max_refresh = 0.5  # seconds

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{format_duration(left)} left")


class RunProgress:
    """A context manager; `update(step, text)` after each step, `say(text)` for a line that stays.

    Without a terminal `update` prints a line at most every `every_s` seconds, and at the end.
    `silent`: nothing at all is shown.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        every_s: float = 10.0,
        unit: str = "meta-step",
        silent: bool = False,
    ) -> None:
        self._console = Console(stderr=False, soft_wrap=True, highlight=False, quiet=silent)
        self._total, self._every_s, self._last = total, every_s, time.monotonic()
        self._began, self._start, self._unit = time.monotonic(), start, unit
        self._bar: Progress | None = None
        if sys.stdout.isatty() and not silent:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeLeft(),
                console=self._console,
            )
            self._id = self._bar.add_task(unit, total=total, completed=start, text="")

    def __enter__(self) -> RunProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, text: str) -> None:
        if self._bar:
            self._bar.update(self._id, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._last >= self._every_s or step == self._total:
            self._last = now
            left = (now - self._began) / max(1, step - self._start) * (self._total - step)
            self.say(f"{self._unit} {step}/{self._total}  {text}  {format_duration(left)} left")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)
