"""Import of learn2learn on demand, without the messages of gym."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from types import ModuleType

from metalearn.errors import UsageError

INSTALL = (
    "install it by `pip install cython setuptools wheel` and then `pip install --no-deps "
    "--no-build-isolation --use-pep517 --config-settings=--build-option=build_ext "
    "learn2learn==0.2.0`, or run scripts/bootstrap in a clone"
)


def import_learn2learn(module: str = "learn2learn") -> ModuleType:
    """Import `module`: learn2learn, or a part of it such as "learn2learn.vision.datasets".

    The first call takes seconds. learn2learn imports gym, which prints on stderr that it is
    unmaintained, and raises deprecation warnings. This package does not use gym, and hides both.

    Raises:
        UsageError: learn2learn, or one of its dependencies, is not installed.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"learn2learn, which draws the tasks of images, cannot be imported ({error}); {INSTALL}"
        ) from error
