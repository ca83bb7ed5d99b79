"""The certificate of a stochastic hypergradient: what is estimated, bounded and only indicated.

At the present params, meta and x let g = grad inner, r = b - (A + damping I) x and
h = direct - (d2 inner / d meta d params) x, each the mean over all data. One batch gives each of
them with noise, whose squared norm would be added to the square's.

- **Estimated**: |g|^2, |r|^2, |b|^2 and |h|^2. For independent batches i and j the product
  <g_i, g_j> has the mean |g|^2, so that the mean of such products is unbiased. It may be negative.
  The noise E |h_i - h|^2 of a batch's hypergradient is estimated as well.
- **Bounded**: |h - exact|, if the norms are those of all data and the `Smoothness` constants are
  bounds (`metagrad.certificate` derives it). The noise of a batch is apart from it.
- **Only indicated**: the same figure from estimates; the ratio |r| / |b|, for a ratio of estimates
  is biased; and x'Ax / x'x, which lies inside A's spectrum. Where it is below 0 the inner problem
  is not convex at the params, and the implicit function theorem does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from metalearn.autograd import subtract
from metalearn.bilevel.oracle import length
from metalearn.errors import UsageError
from metalearn.metagrad.certificate import Certificate
from metalearn.metagrad.smoothness import Smoothness
from metalearn.system import random_state

if TYPE_CHECKING:
    from metalearn.bilevel.descent import Descent

Vector = list[Tensor]


@dataclass(frozen=True)
class Square:
    """The squared norm of a mean over data.

    Args:
        value: an unbiased estimate, which may be negative; of all data the value itself.
        standard_error: by the jackknife over the batches; None for two batches, or all data.
        noise: an unbiased estimate of a batch's mean-square distance from the mean; None for all
            data.
    """

    value: float
    standard_error: float | None = None
    noise: float | None = None

    @property
    def norm(self) -> float:
        return math.sqrt(max(self.value, 0.0))

    @classmethod
    def of(cls, vectors: Sequence[Vector]) -> Square:
        """Estimate it from the vectors of independent batches, at least two."""
        count = len(vectors)
        products = [[_dot(a, b) for b in vectors] for a in vectors]
        total = sum(map(sum, products))
        own = [products[i][i] for i in range(count)]
        value = (total - sum(own)) / (count * (count - 1))
        noise = sum(own) / count - value
        if count < 3:
            return cls(value, None, noise)
        without = [
            (total - 2 * sum(products[i]) + own[i] - (sum(own) - own[i]))
            / ((count - 1) * (count - 2))
            for i in range(count)
        ]
        mean = sum(without) / count
        spread = sum((w - mean) ** 2 for w in without) * (count - 1) / count
        return cls(value, math.sqrt(spread), noise)


@dataclass(frozen=True)
class StochasticCertificate:
    """The quality of a hypergradient; see the module.

    Args:
        exact: True if the squares are those of all data, not estimates.
        inner_gradient: |g|^2.
        residual, right_side, hypergradient: |r|^2, |b|^2 and |h|^2; None for a method without x.
        curvature: x'Ax / x'x; None without x, or where x is 0.
        error: the figure for |h - exact|; None without constants or x.
        error_kind: "bounded" if |h - exact| cannot exceed it, else "indicated".
    """

    exact: bool
    inner_gradient: Square
    residual: Square | None = None
    right_side: Square | None = None
    hypergradient: Square | None = None
    curvature: float | None = None
    error: float | None = None
    error_kind: Literal["bounded", "indicated"] = "indicated"

    @property
    def relative_residual(self) -> float | None:
        """|r| / |b|; 0 where both are 0."""
        if self.residual is None or self.right_side is None:
            return None
        r, b = self.residual.norm, self.right_side.norm
        return r / b if b else (math.inf if r else 0.0)

    def row(self) -> dict[str, float]:
        """Return the figures for a log; the name of each begins with what it is worth."""
        worth = "measured" if self.exact else "estimated"
        squares = {
            "inner_gradient": self.inner_gradient,
            "residual": self.residual,
            "right_side": self.right_side,
            "hypergradient": self.hypergradient,
        }
        found: dict[str, float | None] = {}
        for name, square in squares.items():
            if square is not None:
                found[f"{worth}_{name}_square"] = square.value
                found[f"{worth}_{name}_square_error"] = square.standard_error
                found[f"{worth}_{name}_noise"] = square.noise
        ratio = "measured" if self.exact else "indicated"
        found[f"{ratio}_relative_residual"] = self.relative_residual
        found["indicated_curvature"] = self.curvature
        found[f"{self.error_kind}_error"] = self.error
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Certify:
    """The options of a certificate; `Certify()(descent)` makes one, and takes no step.

    Its batches are uniform draws of their own. A loader with a sampler of its own, such as a
    weighted one, or of a stream has none; there they are the loader's next ones.

    It takes one Hessian-vector product for each batch, also for methods that take none.

    Args:
        batches: the number of independent batches of each level, at least 2; 3 or more give
            standard errors. "all": a pass over all data, for exact figures.
        constants: the constants of the problem, for the error; None: no error is given.

    Raises:
        UsageError: batches is neither "all" nor a whole number from 2 on.
    """

    batches: int | Literal["all"] = 2
    constants: Smoothness | None = None

    def __post_init__(self) -> None:
        if self.batches != "all" and (type(self.batches) is not int or self.batches < 2):
            raise UsageError(
                f"Certify(batches={self.batches!r}): expected a whole number from 2 on, or "
                "'all'. Give one."
            )

    def __call__(self, at: Descent) -> StochasticCertificate:
        with random_state.untouched():  # a loss may draw, as dropout does
            return self._certificate(at)

    def _certificate(self, at: Descent) -> StochasticCertificate:
        x = at.method.solution(at)
        damping = float(getattr(at.method, "damping", 0.0))
        if self.batches == "all":
            sums = [_mean([_inner(at, batch, x) for batch in at.inner_stream.every()])]
            if x is not None:
                outer = _mean([_outer(at, batch) for batch in at.outer_stream.every()])
                sums[0] |= outer
        else:
            sums = []
            for _ in range(self.batches):
                values = _inner(at, at.inner_stream.independent(), x)
                if x is not None:
                    values |= _outer(at, at.outer_stream.independent())
                sums.append(values)
        return self._judge(sums, x, damping)

    def _judge(
        self, found: list[dict[str, Any]], x: Vector | None, damping: float
    ) -> StochasticCertificate:
        exact = self.batches == "all"

        def square(vectors: list[Vector]) -> Square:
            return Square(_dot(vectors[0], vectors[0])) if exact else Square.of(vectors)

        inner_gradient = square([values["gradient"] for values in found])
        if x is None:
            return StochasticCertificate(exact, inner_gradient)
        residuals = [
            [b - a - damping * v for b, a, v in zip(values["b"], values["image"], x, strict=True)]
            for values in found
        ]
        size = _dot(x, x)
        curvatures = [_dot(x, values["image"]) for values in found]
        residual = square(residuals)
        error, kind = None, "indicated"
        if self.constants is not None:
            sure = exact and self.constants.kind == "bound"
            kind = "bounded" if sure else "indicated"
            error = _error(self.constants, inner_gradient.norm, residual.norm, size, damping)
        return StochasticCertificate(
            exact,
            inner_gradient,
            residual,
            square([values["b"] for values in found]),
            square([_hypergradient(values) for values in found]),
            sum(curvatures) / len(curvatures) / size if size else None,
            error,
            "bounded" if kind == "bounded" else "indicated",
        )


def _inner(at: Descent, batch: Any, x: Vector | None) -> dict[str, Any]:
    if x is None:
        found = at.oracle.inner(at.params, at.meta, batch)
        return {"weight": _examples(batch), "gradient": found.by_params}
    both = at.oracle.products(at.params, at.meta, batch, x)
    values = {"gradient": both.gradient, "image": both.hessian, "mixed": both.mixed}
    return {"weight": _examples(batch), **values}


def _outer(at: Descent, batch: Any) -> dict[str, Any]:
    found = at.oracle.outer(at.params, at.meta, batch)
    return {"weight": _examples(batch), "b": found.by_params, "direct": found.by_meta}


def _examples(batch: Any) -> int:
    """Return the number of examples, 1 for a batch whose tensors do not show it."""
    try:
        return length(batch)
    except UsageError:
        return 1


def _mean(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of the values of batches, weighted by their examples."""
    total = sum(values["weight"] for values in batches)
    names = [name for name in batches[0] if name != "weight"]
    shares = [values["weight"] / total for values in batches]
    return {
        name: [
            None if column[0] is None else sum(w * v for w, v in zip(shares, column, strict=True))
            for column in zip(*(values[name] for values in batches), strict=True)
        ]
        for name in names
    }


def _hypergradient(values: dict[str, Any]) -> Vector:
    pairs = zip(values["direct"], values["mixed"], strict=True)
    differences = [subtract(d, m) for d, m in pairs]
    return [d for d in differences if d is not None]


def _error(
    constants: Smoothness, inner_grad: float, residual: float, square: float, damping: float
) -> float:
    certificate = Certificate(
        torch.tensor([inner_grad], dtype=torch.float64),
        residual_norm=torch.tensor([residual], dtype=torch.float64),
        solution_norm=torch.tensor([math.sqrt(square)], dtype=torch.float64),
        damping=damping,
    )
    return float(certificate.bound(constants))


def _dot(a: Vector, b: Vector) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
