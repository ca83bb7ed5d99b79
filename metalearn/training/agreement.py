"""The agreement of a run's processes: all are started in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig

from metalearn.config.canonical import canonicalise, find_difference
from metalearn.errors import UsageError
from metalearn.parallel.ranks import Ranks

T = TypeVar("T")


def on_every_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Return `work()` of this rank, which must not communicate.

    Raises:
        UsageError: any rank's work raised it.
    """
    report: UsageError | None = None
    try:
        value = work()
    except UsageError as error:
        report = error
    ranks.gather_or_raise(report)
    return value


def check_same(ranks: Ranks, own: Mapping[str, Any]) -> None:
    """Compare nests of plain values.

    Raises:
        UsageError: on every rank, if one has another value than rank 0.
    """
    first, *others = ranks.gather(own)
    for rank, other in enumerate(others, 1):
        if difference := find_difference(first, other):
            name, value, another = difference
            raise UsageError(
                f"{name}: rank 0 has {value} and rank {rank} has {another}: expected the same on "
                "every rank. Start all of them by the same words, with the same code and data"
            )


def describe_options(config: DictConfig) -> dict[str, Any]:
    """Return the options that ranks share: all but the threads and the device's number."""
    shared = canonicalise(config, but_for=("threads",))
    return shared | {"device": config.device.partition(":")[0]}
