"""What a user is told without a traceback."""

import difflib
import signal
from collections.abc import Iterable

MAX_FLOAT32 = 3.4028234663852886e38
"""The largest float32. Options are checked against it: a larger rate is an error of torch's own in
the middle of a run, and another larger number infinite from the first step on."""


class UsageError(ValueError):
    """Bad input: one sentence that names the value, what was expected and how to mend it.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class TrainingStopped(RuntimeError):
    """A run cannot go on: a guard's policy, or a disk that takes no more; exit status 1.

    The sentence says which checkpoint holds the last good state.
    """

    status = 1


class TrainingInterrupted(Exception):
    """A run left because a signal asked it to; exit status 128 + `signum`, as shells have it."""

    def __init__(self, signum: int, sentence: str) -> None:
        super().__init__(f"{signal.Signals(signum).name}: {sentence}")
        self.status = 128 + signum


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what is known where nothing is near."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:
        by_end = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
        close = by_end[:1]
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises UsageError where the list option `name` has a value that is none of `known`."""
    for value in given:
        if value not in known:
            raise UsageError(f"{name} has {value!r}{nearest(value, known)}")
