from __future__ import annotations

import pytest
import torch
from systems import general, symmetric

from metalearn.linear_solve import CG, NormalCG, Status


def test_is_cg_on_the_normal_equations():
    A, b = general(15)
    for j in (1, 3, 6):
        ours = NormalCG(j, rtol=0.0)(lambda v: A @ v, b).value
        theirs = CG(j, rtol=0.0)(lambda v: A.T @ (A @ v), A.T @ b).value
        assert torch.allclose(ours, theirs, rtol=1e-9)


def test_the_transpose_by_autograd_is_the_one_given():
    A, b = general(15)
    found = NormalCG(10, rtol=0.0)(lambda v: A @ v, b)
    given = NormalCG(10, rtol=0.0, transpose=lambda v: A.T @ v)(lambda v: A @ v, b)
    assert torch.allclose(found.value, given.value, rtol=1e-12)


def test_a_jacobian_product_in_forward_mode_is_transposed():
    _, point = general(6)

    def function(x):
        return {"a": x["a"].sin() * x["b"].sum() + 3 * x["a"], "b": x["b"] ** 2 + x["a"].mean()}

    at = {"a": point[:4], "b": point[4:] + 3}
    b = {"a": torch.ones(4).double(), "b": torch.ones(2).double()}

    def matvec(v):
        return torch.func.jvp(function, (at,), (v,))[1]

    solution = NormalCG(100, rtol=1e-10)(matvec, b)
    assert solution.converged
    back = matvec(solution.value)
    assert torch.allclose(back["a"], b["a"]) and torch.allclose(back["b"], b["b"])


def test_a_matvec_without_a_graph_is_refused_in_one_sentence():
    x = torch.ones(3, requires_grad=True)
    gradient = torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]

    def hessian(v, **options):
        return torch.autograd.grad(gradient, x, v, retain_graph=True, **options)[0]

    for matvec in (lambda v: 2 * v.detach(), hessian):
        with pytest.raises(ValueError, match=r"NormalCG\(transpose=None\) needs"):
            NormalCG()(matvec, torch.ones(3))
    exact = torch.full((3,), 1 / 6)
    graph = NormalCG()(lambda v: hessian(v, create_graph=True), torch.ones(3))
    assert torch.allclose(graph.value, exact)
    assert torch.allclose(NormalCG(transpose=hessian)(hessian, torch.ones(3)).value, exact)


def test_outside_the_range_it_ends_at_the_least_squares_solution():
    A, b = symmetric([0.0, 1.0, 2.0, -5.0])
    solution = NormalCG(50)(lambda v: A @ v, b)
    assert solution.status == Status.SINGULAR
    assert torch.allclose(solution.value, torch.linalg.pinv(A) @ b, rtol=1e-6)


def test_a_singular_system_that_has_a_solution_gets_the_one_of_least_norm():
    A, b = symmetric([0.0, 0.0, 1.0, 2.0, -5.0])
    solution = NormalCG(50, rtol=1e-12)(lambda v: A @ v, A @ b)
    assert solution.converged
    assert torch.allclose(solution.value, torch.linalg.pinv(A) @ A @ b, rtol=1e-9)


def test_ill_conditioning_is_not_taken_for_a_range_too_small():
    A, b = symmetric([1e-4, 1e-2, 1.0, 10.0])
    solution = NormalCG(100, rtol=1e-8)(lambda v: A @ v, b)
    assert solution.converged


@pytest.mark.parametrize("exponent", [-30, -14, -10, 10, 14, 30])
def test_any_scale_of_the_matrix_and_of_each_system(exponent):
    A, b = (x.float() for x in general(6))
    scales = 10.0 ** torch.tensor([[exponent], [0.0], [-exponent]])
    solution = NormalCG(40, rtol=1e-5)(lambda v: scales * (v @ A.T), b.expand(3, -1), batched=True)
    assert solution.converged.all()
    exact = torch.linalg.solve(A, b)
    assert torch.allclose(scales * solution.value, exact.expand(3, -1), rtol=1e-3, atol=1e-4)


def test_a_start_counts_at_any_scale():
    A, b = (x.float() for x in general(6))
    A = 1e-12 * A
    start = torch.linalg.solve(A.double(), b.double()).float()
    assert NormalCG(rtol=1e-4)(lambda v: A @ v, b, x0=start).iterations == 0
    solution = NormalCG(40, rtol=1e-5)(lambda v: A @ v, b, x0=0.5 * start)
    assert solution.converged and torch.allclose(solution.value, start, rtol=1e-3, atol=1e8)


def test_one_product_with_each_an_iteration_and_two_more():
    A, b = general(8)
    calls = []
    solver = NormalCG(3, rtol=0.0, transpose=lambda v: (calls.append("T"), A.T @ v)[1])
    solver(lambda v: (calls.append("A"), A @ v)[1], b)
    assert calls.count("T") == 3 and calls.count("A") == 4  # and one for the residual
