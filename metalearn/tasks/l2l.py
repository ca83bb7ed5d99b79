"""learn2learn, imported where it is used and without gym's notice on the user's screen."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from types import ModuleType


def import_learn2learn(module: str = "learn2learn") -> ModuleType:
    """Imports `module` (learn2learn, or a part of it such as "learn2learn.vision.datasets").

    The first call takes seconds: learn2learn imports gym, which prints on stderr that it is
    unmaintained and warns of what it finds deprecated; nothing here uses gym, so neither is shown.

    Raises:
        ImportError: learn2learn, or something that it needs, is not installed.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
