"""Pickles give arrays and plain values, and never get to call anything."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalearn.tasks.pickled import load

VALUES: dict[str, Any] = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "none": np.empty((0, 3), np.float32),
    "flags": np.array([True, False]),
    "a number": np.array(3),
    "scalar": np.float64(3.5),
    "plain": [1, 2.5, "é", b"\xff\x00", None, True, (1, (2,)), {"a": [3]}],
    "ordered": collections.OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_are_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(pickle.dumps(VALUES, protocol))
    found = load(path)
    assert list(found) == list(VALUES)
    for name, value in VALUES.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, strict=True)
        else:
            assert found[name] == value and type(found[name]) in (type(value), float, dict)


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    """Byte strings where today's have text and bytes; the pickle is put together by hand."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
        b"(I1\n(I2\nI2\ntcnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\n"
        b"U\x04\x00\xff\x80\x07tb"
    )
    path = tmp_path / "p"
    path.write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x05eu.")
    found = load(path)
    np.testing.assert_array_equal(found["data"], np.array([[0, 255], [128, 7]], np.uint8))
    assert found["labels"] == [3, 5]


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


class Empty:
    pass


def evil(target: Path) -> dict[str, bytes]:
    touch = f"touch {target}"
    call = f"open({str(target)!r}, 'w')"
    numpy_load = b"cnumpy\nload\n(S'x'\ntR."
    return {
        "os.system": pickle.dumps(Calls(os.system, touch)),
        "inside an array": pickle.dumps(np.array([Calls(os.system, touch)], dtype=object)),
        "inside a dict": pickle.dumps({"data": [Calls(os.system, touch)]}, 0),
        "eval": pickle.dumps(Calls(eval, call)),
        "exec": b"c__builtin__\nexec\n(S%a\ntR." % call,
        "getattr": pickle.dumps(Calls(getattr, "text", "upper")),
        "numpy.load": numpy_load,
        "ours": b"cmetalearn.tasks.pickled\npickle.loads\n(S'x'\ntR.",
        "an attribute by its dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__class__\x93.",
        "codecs": b"c_codecs\ndecode\n(S'x'\ntR.",
        "another encoding": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        "an object": pickle.dumps(Empty()),
        "by inst": b"(S%a\nios\nsystem\n." % touch,
        "by obj": b"(cos\nsystem\nS%a\no." % touch,
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"Px\n.",
        "records": pickle.dumps(np.zeros(2, dtype=[("a", "u1")])),
        "texts": pickle.dumps(np.array(["ab"])),
        "a set": pickle.dumps({1, 2}),
        "a class of ours": b"cnumpy\ndtype\n.",
        "our class's insides": b"cnumpy\nndarray\n(S'u1'\ntR}S'value'\nS'x'\nsb.",
        "addresses": _addresses(),
        "more than there is": _claims(shape=(1 << 40,)),
        "another shape": _claims(shape=(3, 1)),
        "bytes of anything": b"c__builtin__\nbytes\n(I9\ntR.",
        "a type that is a text": _claims(shape=(4,), kind=b"S'u1'\n"),
        "itself": b"(lp0\ng0\na.",
        "a length beyond all": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        "lists in lists without end": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a length without end": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    }


def _addresses() -> bytes:
    """An array whose bytes NumPy would take for pointers to objects."""
    return pickle.dumps(np.array([1], np.int64), 2).replace(
        b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8"
    )


def _claims(shape: tuple[int, ...], kind: bytes = b"") -> bytes:
    sizes = b"".join(b"I%d\n" % n for n in shape)
    kind = kind or b"cnumpy\ndtype\n(S'u1'\ntR"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(tR"
    return made + b"(I1\n(" + sizes + b"t" + kind + b"I00\nS'abcd'\ntb."


def test_a_place_in_the_memo_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(b"\x80\x02K\x01r\xff\xff\xff\x7f.")  # 2^31 - 1, as an index of a list
    assert load(path) == 1


def test_a_value_that_is_there_many_times_is_converted_once(tmp_path: Path) -> None:
    """Forty lists, each of which holds the one before it twice: 2^40 if each were followed."""
    value: Any = [np.arange(2)]
    for _ in range(40):
        value = [value, value]
    path = tmp_path / "p"
    path.write_bytes(pickle.dumps(value))
    found = load(path)
    while len(found) == 2:
        assert found[0] is found[1]
        found = found[0]
    assert found[0].tolist() == [0, 1]


@pytest.mark.parametrize("name", evil(Path("x")))
def test_nothing_else_is_read_and_nothing_is_called(name: str, tmp_path: Path) -> None:
    path, target = tmp_path / "p", tmp_path / "executed"
    path.write_bytes(evil(target)[name])
    with pytest.raises(pickle.UnpicklingError):
        load(path)
    assert not target.exists()


def test_a_pickle_that_spoils_a_stand_in_spoils_its_own_only(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(b"cnumpy\ndtype\n(N}S'__defaults__'\n(I1\ntstb.")
    with pytest.raises(pickle.UnpicklingError):
        load(spoilt)
    whole = tmp_path / "whole"
    whole.write_bytes(pickle.dumps(VALUES["bytes"]))
    np.testing.assert_array_equal(load(whole), VALUES["bytes"])
