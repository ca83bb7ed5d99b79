"""The answers to the page's requests: what each initialisation makes of the drawings."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from metalearn.errors import UsageError
from metalearn.play.initialisation import Initialisation, Trace
from metalearn.play.request import (
    LEAST_CLASSES,
    MOST_CLASSES,
    MOST_DRAWINGS,
    MOST_STEPS,
    SIDE,
    Drawings,
    images,
    whole,
)
from metalearn.tasks.glyphs import sample_letters

_KEPT = 3
"""The traces that are kept of an initialisation, so that a new query needs no new inner loop."""


class Answers:
    """The answers to requests from several threads.

    A model runs in one thread at a time. Predictions have a model of their own, so that a new query
    does not wait for the curvature of an inner loop.

    Args:
        initialisations: what the page shows side by side.
        steps: the number of inner steps that the page begins with.

    Raises:
        UsageError: the heads of two initialisations take different numbers of classes, or more than
            the page has.
    """

    def __init__(self, initialisations: Sequence[Initialisation], steps: int) -> None:
        only = {i.opened.only_ways for i in initialisations} - {None}
        if len(only) > 1 or any(ways and ways > MOST_CLASSES for ways in only):
            numbers = " and ".join(str(ways) for ways in only)
            raise UsageError(
                f"checkpoint=: expected heads for one number of classes up to {MOST_CLASSES}, and "
                f"these take {numbers}. Choose others, or train with model.head=zero"
            )
        self._initialisations, self._steps = initialisations, steps
        self._only_ways = only.pop() if only else None
        self._traces: dict[tuple[int, Any, int], Trace] = {}
        self._looping, self._predicting = threading.Lock(), threading.Lock()
        self._drawing = threading.Lock()
        self._waiting: set[int] = set()
        """The threads that wait to run an inner loop; a curvature gives way to them."""

    def setup(self) -> dict[str, Any]:
        """Return what the page has to know before the first drawing."""
        least, most = LEAST_CLASSES, MOST_CLASSES
        if self._only_ways is not None:
            least = most = self._only_ways
        return {
            "side": SIDE,
            "classes": {"least": least, "most": most, "first": min(5, most) if most > 5 else most},
            "drawings": MOST_DRAWINGS,
            "steps": {"most": MOST_STEPS, "first": self._steps},
            "initialisations": [
                {"name": i.name, "method": i.method, "trained_steps": i.trained_steps}
                for i in self._initialisations
            ],
        }

    def examples(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return drawings of built-in letters, and a further drawing of one of them as the query.

        The request is {"classes": number, "drawings": number of each, "seed": number}.
        """
        classes = whole(body, "classes", LEAST_CLASSES, MOST_CLASSES)
        drawings = whole(body, "drawings", 1, MOST_DRAWINGS)
        seed = whole(body, "seed", 0, 2**32 - 1)
        with self._drawing:
            letters = sample_letters(classes, drawings + 1, seed, SIDE)
        inks = [base64.b64encode(image.numpy().tobytes()).decode() for image in letters.images]
        rows = [inks[at : at + drawings + 1] for at in range(0, len(inks), drawings + 1)]
        asked = int(np.random.default_rng(seed).integers(classes))
        return {
            "classes": [row[:-1] for row in rows],
            "names": list(letters.classes),
            "query": rows[asked][-1],
            "query_class": asked,
        }

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return each initialisation's losses and predictions, by inner step.

        Lists end where an inner loop diverges. They have the start alone where it has no steps.
        """
        drawn = Drawings.of(body)
        found = []
        for number, own in enumerate(self._initialisations):
            trace, predictions = self._trace(number, drawn), None
            if drawn.query is not None:
                query = images([drawn.query], own.opened.channels, own.opened.size)
                with self._predicting:
                    predictions = trace.probabilities(query)[:, 0].tolist()
            own_losses = {"losses": list(trace.losses), "diverges": trace.diverges}
            found.append({**own_losses, "predictions": predictions})
        return {"initialisations": found}

    def stability(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the stability of the step that follows a point of an initialisation's path.

        The request is that of `adapt`, with "initialisation" and "step" by number.
        """
        drawn = Drawings.of(body)
        number = whole(body, "initialisation", 0, len(self._initialisations) - 1)
        step = whole(body, "step", 0, drawn.steps)
        trace = self._trace(number, drawn)
        if step >= len(trace.points):
            return {"stability": None}
        with self._looping:
            return {"stability": trace.stability(step, enough=lambda: bool(self._waiting))}

    def _trace(self, number: int, drawn: Drawings) -> Trace:
        key = number, drawn.support, drawn.steps
        if (found := self._traces.get(key)) is not None:
            return found
        own = self._initialisations[number]
        self._waiting.add(threading.get_ident())
        with self._looping:
            self._waiting.discard(threading.get_ident())
            if (found := self._traces.get(key)) is None:  # else another thread has just made it
                support = drawn.labelled(own.opened.channels, own.opened.size)
                found = self._traces[key] = own.trace(support, drawn.steps)
            while len(self._traces) > _KEPT * len(self._initialisations):
                del self._traces[next(iter(self._traces))]
        return found
