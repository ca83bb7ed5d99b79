"""Meta-gradients of each kind that several tests take a batch apart by."""

from __future__ import annotations

from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, Implicit, Reptile, Unrolled

INNER = GradientDescent(3, 0.05)
WAYS = {
    "unrolled": Unrolled(INNER, backend="batched"),
    "first_order": FirstOrder(INNER),
    "reptile": Reptile(INNER),
    "implicit": Implicit(INNER, CG(4)),
    "warm": Implicit(INNER, CG(4), warm_start=True),
}
