"""What a user is told without a traceback."""

import signal


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
