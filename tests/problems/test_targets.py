"""Targets, outputs and losses whose shapes do not fit, and parameters that nothing uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from zoo import Quadratic, few_shot, problems, relative_difference

from metalearn.errors import UsageError
from metalearn.inner import LBFGS, Adam, BacktrackingDescent, GradientDescent, NewtonCG
from metalearn.inner.solver import value_and_grad
from metalearn.linear_solve import CG
from metalearn.metagrad import FirstOrder, IMAMLAuthorsCode, Implicit, Reptile, Unrolled
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch

INNER = GradientDescent(2, 0.1)
WAYS = (
    Unrolled(INNER),
    Unrolled(INNER, "batched"),
    Unrolled(INNER, "batched", checkpoint=1),
    FirstOrder(INNER),
    Reptile(INNER),
    Implicit(INNER),
    Implicit(INNER, None),
    IMAMLAuthorsCode(INNER),
)
ways = pytest.mark.parametrize("way", WAYS, ids=repr)


def setting(way, targets, **options):
    """A task of three classes, or its targets as floats."""
    prox = 0.5 if isinstance(way, Implicit) else 0.0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(2, 6, 4)
    y = targets((torch.arange(6) % 3).expand(2, -1))
    problem = FewShot(model, prox, **options)
    return problem, dict(model.named_parameters()), TaskBatch(x, y, x, y)


@ways
@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (lambda y: nn.functional.one_hot(y, 3).float(), "all 0.0 or 1.0"),
        (lambda y: (y > 0).float(), "all 0.0 or 1.0"),
        (lambda y: y.float(), "expected .[12], 6, 3. beside"),
        (lambda y: y.float()[..., None], "expected .[12], 6, 3. beside"),
        (lambda y: nn.functional.one_hot(y, 3), "expected .[12], 6. beside"),
    ],
    ids=["one-hot", "binary", "class numbers", "a column", "integer one-hot"],
)
def test_classes_as_other_numbers_are_refused(way, targets, sentence):
    with pytest.raises(UsageError, match=sentence):
        way(*setting(way, targets))


@ways
def test_an_explicit_squared_error_takes_any_targets_of_the_outputs_shape(way):
    def one_hot(y):
        return nn.functional.one_hot(y, 3).float()

    problem, meta, task = setting(way, one_hot, loss="squared_error")
    found = way(problem, meta, task)
    loss = (problem.query_predictions(found.inner.params, meta, task) - task.query_y).square()
    torch.testing.assert_close(found.outer_loss, loss.mean((1, 2)))
    plain = setting(way, lambda y: 2 * one_hot(y) - 1)
    assert way(*plain).outer_loss.shape == (2,)


def test_another_loss_is_refused():
    with pytest.raises(UsageError, match="loss='cross_entropy': expected"):
        FewShot(nn.Linear(2, 2), loss="cross_entropy")


class Spread(Quadratic):
    """A problem whose outer objective has another shape than (T,)."""

    spread = staticmethod(lambda loss: loss)

    def outer_objective(self, params, meta, task):
        loss, metrics = super().outer_objective(params, meta, task)
        return self.spread(loss), metrics


@ways
@pytest.mark.parametrize(
    "spread",
    [lambda x: x.mean(), lambda x: x[:, None] * x, lambda x: x[:, None]],
    ids=["one", "T by T", "T by 1"],
)
def test_an_outer_loss_that_is_not_a_value_for_each_task_is_refused(way, spread):
    _, meta, task = problems()["quadratic"]
    problem = Spread(3, 4, prox=0.5)
    problem.spread = spread
    if isinstance(way, IMAMLAuthorsCode):
        problem.prox = 0.0
    with pytest.raises(UsageError, match="the outer objective has shape"):
        way(problem, meta, task)


class PartlyUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.a(x)


@ways
@pytest.mark.parametrize("prox", [0.0, 0.5])
def test_an_unused_parameter_has_a_gradient_of_zero(way, prox):
    if isinstance(way, IMAMLAuthorsCode) and prox:
        pytest.skip("the authors' code has its own proximal term")
    if isinstance(way, Implicit) and way.linear_solver is not None and not prox:
        pytest.skip("the implicit gradient needs a term in meta")
    module = PartlyUsed().double()
    _, _, task = few_shot(regression=False, prox=prox)
    meta = {name: p.detach() for name, p in module.named_parameters()}
    found = way(FewShot(module, prox), meta, task).grads
    assert not found["b.weight"].any() and not found["b.bias"].any()
    used = {name: p for name, p in meta.items() if name.startswith("a")}
    alone = nn.Sequential()
    alone.add_module("a", module.a)
    exact = way(FewShot(alone, prox), used, task).grads
    assert relative_difference({name: found[name] for name in exact}, exact) < 1e-12


@pytest.mark.parametrize(
    "inner",
    [INNER, Adam(3, 0.1), LBFGS(3), NewtonCG(3), BacktrackingDescent(3, 0.1)],
    ids=repr,
)
def test_every_inner_solver_leaves_an_unused_parameter_where_it_is(inner):
    start = {"x": torch.ones(2, 3), "unused": torch.ones(2, 4)}
    found = inner(lambda p: p["x"].square().sum(1), start)
    assert torch.equal(found.params["unused"], start["unused"])
    assert (found.params["x"].norm(dim=1) < 1.7).all()


def test_an_objective_of_none_of_its_params_is_refused():
    elsewhere = torch.ones(2, requires_grad=True)
    for objective in (lambda p: torch.ones(2), lambda p: 2 * elsewhere):
        with pytest.raises(UsageError, match="it depends on none"):
            value_and_grad(objective, {"x": torch.ones(2, 3)})


def test_products_of_curvature_go_on_with_an_unused_parameter():
    module = PartlyUsed().double()
    _, _, task = few_shot(regression=False, prox=0.5)
    meta = {name: p.detach() for name, p in module.named_parameters()}
    for options in ({"curvature": "gauss_newton"}, {"linearisation": "recomputed"}):
        way = Implicit(NewtonCG(20, tol=1e-10), CG(50), **options)
        assert not way(FewShot(module, 0.5), meta, task).grads["b.weight"].any()


@ways
@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x[0], y[0], x[0], y[0]),
        lambda x, y: (x, y, x[0], y[0]),
        lambda x, y: (x, y, x[:1], y[:1]),
        lambda x, y: (x, y, x.repeat(2, 1, 1), y.repeat(2, 1)),
        lambda x, y: (x, y[:, 1:], x, y),
        lambda x, y: (x[:, :0], y[:, :0], x, y),
        lambda x, y: (x, y, x[:, :0], y[:, :0]),
    ],
    ids=[
        *("no task axis", "queries without it", "a task less", "tasks more"),
        *("a label missing", "no example", "no query"),
    ],
)
def test_a_task_whose_tensors_do_not_fit_is_refused(way, change):
    problem, meta, task = setting(way, lambda y: y)
    with pytest.raises(UsageError, match=r"_x of shape .* expected"):
        way(problem, meta, TaskBatch(*change(task.support_x, task.support_y)))


@ways
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda meta: {**meta, "2.bias": torch.zeros(1)}, r"2.bias'\] has shape \(1,\)"),
        (lambda meta: {"2.bias": meta["2.bias"]}, r"0.weight'\] is not there"),
        (lambda meta: list(meta.values()), "expected a dict"),
    ],
    ids=["another shape", "a name missing", "a list"],
)
def test_a_meta_that_is_not_the_models_is_refused(way, change, sentence):
    problem, meta, task = setting(way, lambda y: y)
    with pytest.raises(UsageError, match=sentence):
        way(problem, change(meta), task)


@ways
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, y: (x.double(), y, x, y), "inputs of torch.float64: expected torch.float32"),
        (lambda x, y: (x, y, x.byte(), y), "inputs of torch.uint8: expected torch.float32"),
        (lambda x, y: (x[..., :3], y, x, y), "inputs of 3 features: expected 4"),
        (lambda x, y: (x.numpy(), y, x, y), "support_x=ndarray: expected a torch.Tensor"),
        (lambda x, y: (x, y, x, y.numpy()), "query_y=ndarray: expected a torch.Tensor"),
        (lambda x, y: (x, y + 1, x, y), "labels from 1 to 3: expected 0 to 2 beside 3 outputs"),
        (lambda x, y: (x, y - 1, x, y), "a class label is -1: expected 0 or more"),
        (lambda x, y: (x, y, x, y - 100), "a class label is -100: expected 0 or more"),
    ],
    ids=[
        *("float64", "uint8", "another width", "numpy images", "numpy labels"),
        *("a class too many", "a negative class", "torch's ignored class"),
    ],
)
def test_a_task_of_other_types_or_classes_is_refused(way, change, sentence):
    problem, meta, task = setting(way, lambda y: y)
    with pytest.raises(UsageError, match=sentence):
        way(problem, meta, TaskBatch(*change(task.support_x, task.support_y)))


@ways
def test_an_argument_in_the_place_of_another_is_refused(way):
    problem, meta, task = setting(way, lambda y: y)
    x, y = task.support_x, task.support_y
    with pytest.raises(UsageError, match="task=tuple: expected a TaskBatch"):
        way(problem, meta, (x, y, x, y))
    with pytest.raises(UsageError, match="problem=dict: expected a problem"):
        way(meta, problem, task)
    for wrong in (iter(meta.items()), None, {"weight": 1.0}):
        with pytest.raises(UsageError, match="expected tensors by name, not a"):
            way(problem, wrong, task)
    with pytest.raises(UsageError, match=r"inner=CG\(.*: expected an inner solver"):
        replace(way, inner=CG(5))(problem, meta, task)


@ways
def test_integers_of_every_width_are_classes(way):
    problem, meta, task = setting(way, lambda y: y)
    x, y = task.support_x, task.support_y
    expected = way(problem, meta, task).grads
    for dtype in (torch.uint8, torch.int32):
        found = way(problem, meta, TaskBatch(x, y.to(dtype), x, y.to(dtype))).grads
        assert relative_difference(found, expected) == 0


def test_images_of_other_channels_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    x, y = torch.rand(2, 6, 3, 4, 4), (torch.arange(6) % 3).expand(2, -1)
    with pytest.raises(UsageError, match="inputs of 3 channels: expected 1"):
        Unrolled(INNER)(FewShot(model), dict(model.named_parameters()), TaskBatch(x, y, x, y))
