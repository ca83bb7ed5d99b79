"""The inner gradients that a problem captures, to run them again without autograd.

An inner gradient that is computed thousands of times for inputs of the same shapes goes through
the same operations each time. The first call captures them. Later calls run the captured list: no
graph is made, no Python of the model runs, and no operation whose result nobody asked for. The
operations are the same, and so are the numbers.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from metalearn.autograd import transformed
from metalearn.errors import UsageError
from metalearn.traced import Function, Inputs, NotCaptured, Program, in_short

Capture = Literal["none", "replay", "compile"]
"""The way to run inner gradients: uncaptured, operation by operation, or compiled by inductor."""

MOST_PROGRAMS = 64
"""The number of captured functions that a problem keeps; then that of the oldest use is dropped."""


class Captured:
    """The functions that a problem has captured: one for each key and each set of shapes.

    A problem that may be captured holds one as its attribute `captured`. Its inner objective must
    run the same operations whenever the shapes are equal, but for what these methods say, which it
    may have:

    - `capture_key()` returns what else decides which operations run, such as a module's mode and
      the numbers that it holds in Python;
    - `constants()` returns the tensors that the objective reads beside params, meta and task.

    Copies of the problem share it. A pickled or deeply copied one is empty.

    Args:
        compiled: True: `torch.compile` makes a program of each captured function, in 10 to 60 s.
    """

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self._programs: OrderedDict[Hashable, Program | None] = OrderedDict()
        self._warned: set[str] = set()

    @classmethod
    def of(cls, capture: Capture) -> Captured | None:
        """Return an empty store, or None for "none".

        Raises:
            UsageError: `capture` is unknown.
        """
        if capture not in ("none", "replay", "compile"):
            raise UsageError(
                f"capture={capture!r}: expected 'none', 'replay' or 'compile'. Choose one."
            )
        return None if capture == "none" else cls(capture == "compile")

    def __reduce__(self) -> tuple[type[Captured], tuple[bool]]:
        return Captured, (self.compiled,)

    def program(self, key: Hashable, function: Function, inputs: Inputs) -> Program | None:
        """Return the captured function, or None for a function that has to be run as it is.

        The first function of each kind that cannot be captured gives a warning.

        Args:
            key: what decides, beside the inputs' shapes, which operations the function runs.
            function: maps the early and the late inputs to tensors, and may use autograd.

        Raises:
            UsageError: the key is not hashable.
        """
        if transformed() or _get_current_dispatch_mode() is not None:
            return None
        own = (key, inputs.described(), torch.get_default_dtype())
        try:
            known = own in self._programs
        except TypeError as error:
            raise UsageError(
                f"capture_key: expected a hashable value ({error}). Return a tuple."
            ) from error
        if known:
            self._programs.move_to_end(own)
            found = self._programs[own]
            if found is not None and not found.checked(function, inputs):
                self.warn("gives other numbers than the problem at its second run")
                found = self._programs[own] = None
            return found
        self._programs[own] = self._new(function, inputs)
        if len(self._programs) > MOST_PROGRAMS:
            self._programs.popitem(last=False)
            self.warn(f"was captured for more than {MOST_PROGRAMS} sets of shapes, and again")
        return self._programs[own]

    def warn(self, reason: str) -> None:
        """Warn that the inner objective has this property, once for each."""
        if reason not in self._warned:
            warnings.warn(
                f"capture: the inner objective {reason}. Where it is not captured it runs as it "
                "is. Set capture=none.",
                stacklevel=4,
            )
        self._warned.add(reason)

    def _new(self, function: Function, inputs: Inputs) -> Program | None:
        for compiled in (True, False) if self.compiled else (False,):
            try:
                return Program(function, inputs, compiled)
            except NotCaptured as error:
                self.warn(f"cannot be captured: {error}")
                return None
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if not compiled:
                    raise
                self.warn(f"is not compiled, since torch.compile failed ({in_short(error)})")
        return None


class WrapsCaptured:
    """A problem around another one, its attribute `problem`, by which it is captured."""

    problem: Any

    @property
    def captured(self) -> Captured | None:
        """The captured functions of the wrapped problem."""
        found: Captured | None = getattr(self.problem, "captured", None)
        return found

    def capture_key(self) -> Hashable:
        """Return the key of the wrapped problem."""
        found: Hashable = getattr(self.problem, "capture_key", tuple)()
        return found

    def constants(self) -> list[Tensor]:
        """Return the constants of the wrapped problem."""
        found: list[Tensor] = getattr(self.problem, "constants", list)()
        return found
