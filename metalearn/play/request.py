"""The requests of the page: drawings as ink, checked before anything is computed."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.images import LabelledImages

SIDE = 105
"""The side of a drawing in pixels, that of Omniglot's scans."""
LEAST_CLASSES, MOST_CLASSES = 2, 10
MOST_DRAWINGS = 5
"""The maximum number of drawings of a class."""
MOST_STEPS = 30
MOST_BYTES = 1 << 20
"""The maximum length of a request; that of 50 drawings and a query is 750 kB."""
NAMES = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Drawings:
    """The drawings of a request.

    Args:
        support: bytes of ink for each drawing, by class; `SIDE` x `SIDE`, row by row, 255 for ink.
        query: the drawing to predict, or None.
        steps: the number of inner steps.
    """

    support: tuple[tuple[bytes, ...], ...]
    query: bytes | None
    steps: int

    @classmethod
    def of(cls, body: dict[str, Any]) -> Drawings:
        """Read {"classes": [[ink, ...], ...], "query": ink or null, "steps": number}.

        Raises:
            UsageError: a field is missing or is not what it should be.
        """
        classes = body.get("classes")
        if not isinstance(classes, list) or not LEAST_CLASSES <= len(classes) <= MOST_CLASSES:
            raise UsageError(
                f"classes: expected a list of {LEAST_CLASSES} to {MOST_CLASSES} classes of drawings"
            )
        support = []
        for name, drawings in zip(NAMES, classes, strict=False):
            if not isinstance(drawings, list) or not 1 <= len(drawings) <= MOST_DRAWINGS:
                raise UsageError(f"class {name}: expected a list of 1 to {MOST_DRAWINGS} drawings")
            support.append(tuple(_ink(drawing, f"class {name}") for drawing in drawings))
        query = body.get("query")
        return cls(
            tuple(support),
            None if query is None else _ink(query, "query"),
            whole(body, "steps", 0, MOST_STEPS),
        )

    def labelled(self, channels: int, size: int) -> LabelledImages:
        """Return the support set as images of a run's form."""
        drawn = [(ink, label) for label, inks in enumerate(self.support) for ink in inks]
        return LabelledImages(
            images([ink for ink, _ in drawn], channels, size),
            torch.tensor([label for _, label in drawn]),
            tuple(NAMES[: len(self.support)]),
        )


def images(inks: Sequence[bytes], channels: int, size: int) -> Tensor:
    """Return drawings as (n, channels, size, size) uint8, resized as Omniglot's scans are."""
    found = np.empty((len(inks), channels, size, size), dtype=np.uint8)
    for place, ink in enumerate(inks):
        pixels = np.frombuffer(ink, dtype=np.uint8).reshape(SIDE, SIDE)
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
        found[place] = np.asarray(image)
    return torch.from_numpy(found)


def parse(text: bytes, known: Sequence[str]) -> dict[str, Any]:
    """Return the JSON object of a request.

    Args:
        known: the fields that it may have.

    Raises:
        UsageError: the text is no JSON object in UTF-8, has NaN or an infinity, or other fields.
    """
    try:
        body = json.loads(text.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError("the request is no JSON: expected an object in UTF-8") from error
    if not isinstance(body, dict):
        raise UsageError(f"the request is a JSON {type(body).__name__}: expected an object")
    if odd := sorted(set(body).difference(known)):
        raise UsageError(f"the request has {odd[0][:40]!r}: expected only {', '.join(known)}")
    return body


def whole(body: dict[str, Any], name: str, least: int, most: int) -> int:
    """Return a field that is a whole number from `least` to `most`; raise UsageError else."""
    value = body.get(name)
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{name}: expected a whole number from {least} to {most}")
    return value


def _ink(value: Any, where: str) -> bytes:
    wanted = f"{where}: expected each drawing as base64 of {SIDE} x {SIDE} bytes of ink"
    if not isinstance(value, str) or len(value) > 2 * SIDE**2:
        raise UsageError(wanted)
    try:
        ink = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(wanted) from error
    if len(ink) != SIDE**2:
        raise UsageError(f"{wanted}, not of {len(ink)}")
    return ink


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
