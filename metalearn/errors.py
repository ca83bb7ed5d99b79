"""The errors that a user sees as one sentence, without a traceback."""

import difflib
import signal
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

MAX_FLOAT32 = 3.4028234663852886e38
"""The largest float32; options are checked against it. A larger learning rate would raise an error
of torch in the middle of a run. Any other larger number would be infinite from the first step on.
"""


class UsageError(ValueError):
    """The error of bad input: one sentence names the value, the expected value and the remedy.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class MissingPackage(UsageError, ImportError):
    """The error of a package that a part of metalearn needs, and that is not installed."""


class TrainingStopped(RuntimeError):
    """The error of a run that cannot continue; the exit status is 1.

    The causes are a guard's policy, or a disk that is full or read-only. The message names the
    checkpoint that holds the last good state.
    """

    status = 1


class TrainingInterrupted(Exception):
    """The end of a run on a signal; the exit status is 128 + `signum`, as in shells."""

    def __init__(self, signum: int, sentence: str) -> None:
        super().__init__(f"{signal.Signals(signum).name}: {sentence}")
        self.status = 128 + signum


def is_count(value: Any, least: int = 0) -> bool:
    """Return True for a whole number of at least `least`, whatever its type but bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Return True for a real number, whatever its type but bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?", or a list of all known words where none is similar.

    A word is similar to `word` by `difflib`, or by an equal last part of its dotted name.
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:
        by_end = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
        close = by_end[:1]
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError if the list option `name` has a value that is not one of `known`."""
    for value in given:
        if value not in known:
            raise UsageError(f"{name} has {value!r}{nearest(value, known)}")
