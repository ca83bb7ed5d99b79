"""The validation and the test tasks of a run, the same ones every time."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

from metalearn.tasks import Sampler


@dataclass(frozen=True)
class HeldOut:
    """The validation and the test tasks; None: the run has no such tasks.

    Each of the two returns a sampler at its first task.
    """

    validation: Callable[[], Sampler] | None
    test: Callable[[], Sampler] | None


def rewound(sampler: Sampler) -> Callable[[], Sampler]:
    """Return a function that takes a sampler back to where it is now, and returns it."""
    start = deepcopy(sampler.state_dict())

    def at_start() -> Sampler:
        sampler.load_state_dict(deepcopy(start))
        return sampler

    return at_start
