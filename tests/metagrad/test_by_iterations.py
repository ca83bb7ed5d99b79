"""Implicit meta-gradients by name and number."""

from __future__ import annotations

import pytest

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, implicit_by_iterations
from metalearn.metagrad.by_iterations import WAYS

INNER = GradientDescent(3, 0.1)


def test_no_iteration_is_the_first_order_gradient():
    for way in WAYS:
        assert implicit_by_iterations(INNER, 0, way) == Implicit(INNER, None)


def test_ways_are_implicit_s_own_options():
    assert implicit_by_iterations(INNER, 5) == Implicit(INNER, CG(5))
    assert implicit_by_iterations(INNER, 3, "damped", 0.25) == Implicit(INNER, CG(3), damping=0.25)
    assert implicit_by_iterations(INNER, 7, "gauss_newton") == Implicit(
        INNER, CG(7), curvature="gauss_newton"
    )
    assert implicit_by_iterations(INNER, 7, "warm_cg") == Implicit(INNER, CG(7), warm_start=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 5, "way": "gmres"}, "'gmres' is unknown"),
        ({"iterations": -1}, "at least 0"),
        ({"iterations": 5, "damping": 0.0}, "above 0"),
    ],
)
def test_unfit_options_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        implicit_by_iterations(INNER, **options)
