"""Safe loading of arrays, numbers and texts from a pickle, without executing its code.

The module reads datasets that were published as pickles. A pickle requests classes and functions by
name. It receives stand-ins for the few names that are needed to store arrays. It receives none of
NumPy's own functions, which would trust the lengths and addresses in the file.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")


def load(path: Path) -> Any:
    """Load nested dicts, lists and tuples of numeric arrays, numbers, texts and bytes.

    Raises:
        pickle.UnpicklingError: the file requests anything else, or is damaged.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            # Python 2 wrote some of the files. Latin-1 keeps every byte of its byte strings.
            return _plain(_Reader(file, encoding="latin1").load(), {})
        except pickle.UnpicklingError:
            raise
        except Exception as fault:  # what a damaged or hostile file leads to shares no class
            reason = " ".join(str(fault).split()) or type(fault).__name__
            raise pickle.UnpicklingError(f"it is damaged: {reason}") from fault


# The reader in C allocates as much memory as a number in the file says (LONG_BINPUT).
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # older releases of NumPy wrote numpy.core for numpy._core
        known = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        # A pickle may set attributes of the object that it receives. The lambda is its own copy.
        return lambda *args: known(*args)


class _Type:
    """The stand-in for numpy.dtype."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError(f"it holds an array of {name!r}, which is no number")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state
        if order not in ("|", "<", ">", "=") or any(structure[:3]):
            raise pickle.UnpicklingError("it holds an array of records, not of numbers")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """The stand-in for numpy.ndarray, which replaces it in `_plain`."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, data = state
        self.value = _filled(data, kind, shape, "F" if by_columns else "C")


def _filled(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("it holds an array without a type")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _filled(data, kind, shape, order)
    return array


def _scalar(kind: Any, data: Any) -> Any:
    return _filled(data, kind, (), "C").item()


def _latin1(text: str, encoding: str) -> bytes:
    """Encode a text; the stand-in for codecs.encode, by which older protocols store bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes by way of {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): lambda: b"",  # protocols below 3 store empty bytes as a call of bytes
    ("collections", "OrderedDict"): dict,
}


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """Return a value with every stand-in replaced by its array.

    Args:
        known: the results by the ids of their values, so that a value that is there many times is
            converted once.
    """
    if isinstance(value, _Array):
        return value.value
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if id(value) in known:
        if (done := known[id(value)]) is None:
            raise pickle.UnpicklingError("it holds a value that contains itself")
        return done
    known[id(value)] = None
    if isinstance(value, dict):
        made: Any = {key: _plain(one, known) for key, one in value.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(_plain(one, known) for one in value)
    else:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    known[id(value)] = made
    return made
