"""Guards: which meta-gradients are refused, and what happens then."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from metalearn.errors import UsageError
from metalearn.metagrad import MetaGradientResult, NonFiniteGradient
from metalearn.training.messages import failed_solves
from metalearn.tree import leaves_of

Policy = Literal["keep", "stop", "skip", "halve"]

WINDOW = 100
"""The length of the running median of norms; it judges nothing before it has a fifth of them."""
PATIENCE = 20
"""Meta-steps refused in a row before training stops, whatever the policy."""


class FailedSolve(ArithmeticError):
    """The linear solve of every task broke off."""


class Explosion(ArithmeticError):
    """The meta-gradient is far larger than those before it."""


REFUSALS = (NonFiniteGradient, FailedSolve, Explosion)


@dataclass
class Guards:
    """Judge each meta-gradient before the optimiser takes it.

    Policies: "stop" training with the state before that meta-step; "skip" it, so that nothing but
    the step's number, its tasks and the random states moves on; "halve" the outer rate as well;
    "keep" the gradient.

    Args:
        on_nonfinite: for a loss, a gradient or meta-parameters that are not finite: stop, skip or
            halve.
        on_failed_solve: for a meta-step in which the linear solve of every task broke off
            (`messages.ENDED_BADLY`), so that the gradient is of little worth.
        on_explosion: for a gradient whose norm is above `explosion_factor` times the median of the
            last 100. A median of 0 judges nothing: it has no scale.
        explosion_factor: above 1.

    Raises:
        UsageError: an unknown policy, or a factor that is not above 1.
    """

    on_nonfinite: Policy = "stop"
    on_failed_solve: Policy = "keep"
    on_explosion: Policy = "keep"
    explosion_factor: float = 100.0
    refused: int = field(default=0, init=False)
    in_a_row: int = field(default=0, init=False)
    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW), init=False)

    def __post_init__(self) -> None:
        for name in ("on_nonfinite", "on_failed_solve", "on_explosion"):
            known = ("stop", "skip", "halve") + (() if name == "on_nonfinite" else ("keep",))
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name}={getattr(self, name)}; expected one of {', '.join(known)}"
                )
        if not self.explosion_factor > 1:
            raise UsageError(f"explosion_factor={self.explosion_factor}; expected a number above 1")

    def check(self, result: MetaGradientResult) -> torch.Tensor:
        """Return the norm of the meta-gradient, 0-d.

        Raises:
            NonFiniteGradient: the norm is no number of its type, though each element may be.
            FailedSolve, Explosion: where their policy is not "keep".
        """
        total = torch.nn.utils.get_total_norm(leaves_of(result.grads))
        norm = total.item()
        if not total.isfinite():
            raise NonFiniteGradient(
                f"the meta-gradient's norm is {norm}; a smaller inner learning rate is the usual "
                "cure"
            )
        if self.on_failed_solve != "keep":
            failed = failed_solves(result)
            if failed and sum(failed.values()) == len(result.outer_loss):
                how = ", ".join(f"{s.name.lower()} {n}" for s, n in failed.items())
                raise FailedSolve(f"the linear solve of every task broke off ({how})")
        if self.on_explosion != "keep" and 5 * len(self._norms) >= WINDOW:
            median = statistics.median(self._norms)
            if 0 < self.explosion_factor * median < norm:
                raise Explosion(
                    f"the meta-gradient's norm {norm:.3g} is {norm / median:.3g} times the median "
                    f"of the last {len(self._norms)}"
                )
        return total

    def accept(self, norm: torch.Tensor) -> float:
        """Count a gradient that the optimiser took, and return its norm."""
        self.in_a_row = 0
        self._norms.append(norm.item())
        return self._norms[-1]

    def refuse(self, reason: ArithmeticError) -> Policy:
        """Return the policy for a refused gradient, and count it unless the policy is to stop.

        After PATIENCE refusals in a row the policy is to stop.
        """
        policy = self.on_nonfinite
        if isinstance(reason, FailedSolve):
            policy = self.on_failed_solve
        elif isinstance(reason, Explosion):
            policy = self.on_explosion
        if policy == "stop" or self.in_a_row + 1 >= PATIENCE:
            return "stop"
        self.refused += 1
        self.in_a_row += 1
        return policy

    def state_dict(self) -> dict[str, Any]:
        return {"refused": self.refused, "in_a_row": self.in_a_row, "norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refused, self.in_a_row = state["refused"], state["in_a_row"]
        self._norms = deque(state["norms"], maxlen=WINDOW)
