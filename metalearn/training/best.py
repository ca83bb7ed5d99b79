"""The meta-parameters that validated best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn.problem import Meta
from metalearn.tree import leaves_of, like_tree


@dataclass(frozen=True)
class Validated:
    """A copy of meta-parameters and their score on the validation tasks."""

    step: int
    score: float
    meta: Meta


@dataclass
class Best:
    """The `keep` best validated meta-parameters, the best first; of equal ones the earlier."""

    keep: int
    kept: list[Validated] = field(default_factory=list)

    @property
    def first(self) -> Validated | None:
        return self.kept[0] if self.kept else None

    def add(self, step: int, score: float, meta: Meta) -> int | None:
        """Keep a copy of meta-parameters if their score is among the best.

        Returns:
            their place, 0 for the best; None where they are not kept.
        """
        place = sum(other.score >= score for other in self.kept)
        if place >= self.keep:
            return None
        copy = like_tree(meta, [p.detach().clone() for p in leaves_of(meta)])
        self.kept.insert(place, Validated(step, score, copy))
        del self.kept[self.keep :]
        return place

    def keep_last(self, step: int, meta: Meta) -> None:
        """Keep a copy of the last meta-parameters alone, which nothing has judged."""
        self.kept.clear()
        self.add(step, -math.inf, meta)

    def state_dict(self) -> dict[str, Any]:
        first = self.first
        return {
            "best": first.score if first else -math.inf,
            "chosen": {"step": first.step, "meta": first.meta} if first else None,
            "runners_up": [
                {"step": other.step, "score": other.score, "meta": other.meta}
                for other in self.kept[1:]
            ],
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        first = [{**state["chosen"], "score": state["best"]}] if state["chosen"] else []
        self.kept = [
            Validated(
                one["step"],
                one["score"],
                like_tree(one["meta"], [x.to(device) for x in leaves_of(one["meta"])]),
            )
            for one in (*first, *state.get("runners_up", []))
        ][: self.keep]
