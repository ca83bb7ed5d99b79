"""Reads back what W&B's client wrote offline: a LevelDB log of `wandb.proto` records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

FILE_HEADER = 7  # ":W&B", a 2-byte magic number, a 1-byte version
BLOCK = 32 * 1024
FRAGMENT = struct.Struct("<IHB")  # masked crc32c, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path, patience: float = 10.0) -> Iterator[Record]:
    """The records of a `.wandb` file, in order.

    W&B's service writes for some milliseconds after a run is finished: the record of the run's
    exit is waited for, up to `patience` seconds (0 for a run that was cut off). Raises ValueError
    if the file is not a W&B log, or is damaged or cut short.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            found = [Record.FromString(payload) for payload in _payloads(path.read_bytes())]
        except ValueError:
            if time.monotonic() >= deadline:
                raise
        else:
            finished = any(record.WhichOneof("record_type") == "exit" for record in found)
            if finished or time.monotonic() >= deadline:
                return iter(found)
        time.sleep(0.02)


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows in order, W&B's own `_step`, `_runtime` and `_timestamp` among the keys."""
    return [
        _items(record.history.item)
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def config(path: Path) -> dict[str, Any]:
    """The run's configuration, less W&B's own `_wandb`."""
    values: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            values |= _items(record.run.config.update)
        elif kind == "config":
            values |= _items(record.config.update)
    values.pop("_wandb", None)
    return values


def summary(path: Path) -> dict[str, Any]:
    """The run's summary, as its updates leave it."""
    values: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            values |= _items(record.summary.update)
    return values


def _items(items: Iterable[Any]) -> dict[str, Any]:
    """A record's key-value pairs: JSON values under a key or a path of keys ("a.b")."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _payloads(data: bytes) -> Iterator[bytes]:
    """The log's records, put together from their fragments."""
    if data[:4] != b":W&B":
        raise ValueError("not a W&B log")
    payload = b""
    position = FILE_HEADER
    while position < len(data):
        left = BLOCK - position % BLOCK  # blocks count the file's header
        if left < FRAGMENT.size:  # too short for a fragment: padding
            position += left
            continue
        if len(data) - position < FRAGMENT.size:
            raise ValueError("cut short")
        _, length, kind = FRAGMENT.unpack_from(data, position)
        position += FRAGMENT.size
        fragment = data[position : position + length]
        position += length
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(fragment) < length:
            raise ValueError(f"damaged or cut short before byte {position}")
        payload = fragment if kind in (FULL, FIRST) else payload + fragment
        if kind in (FULL, LAST):
            yield payload
