"""The one exception that stands for a user's mistake."""


class UsageError(ValueError):
    """Bad input: one sentence that names the value, what was expected and how to mend it.

    The command line prints the sentence without a traceback and exits with status 2.
    """
