"""The standard streams: a failure to print ends no work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class LastingStream:
    """A text stream that survives a full disk, a reader that has gone, and a narrow encoding.

    After the first failure the rest of the text goes nowhere. A character that the encoding lacks
    is printed as its escape, such as "\\xb1". Everything else is the stream's own.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | ValueError | None = None
        """The first failure, of the system or of a stream that is closed."""

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Any) -> None:
        if self.error is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self.error = error
            with suppress(OSError, ValueError):  # it has no descriptor
                # The text that waits in the buffer is written at the latest when Python ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """Replace the standard streams by lasting ones, and yield that of the output.

    A standard descriptor that the process was started without (`>&-`) is opened on nothing. A file
    that is opened later would else get its number, and what a library prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with ExitStack() as stack:
        streams: list[Any] = []
        for stream in (sys.stdout, sys.stderr):
            if stream is None:
                stream = stack.enter_context(open(os.devnull, "w"))
            streams.append(LastingStream(stream))
        out, errors = streams
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(errors))
        try:
            yield out
        finally:
            out.flush()
            errors.flush()
