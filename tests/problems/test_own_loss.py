"""Losses of one's own, and the binary cross-entropy of several labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.nn.head import SymmetricHead
from metalearn.problem import FewShot
from metalearn.tasks import TaskBatch

INNER = GradientDescent(3, 0.5)
WAYS = (Unrolled(INNER, "batched"), Unrolled(INNER), Implicit(INNER, CG(20), curvature="hessian"))


def setting(kind: str) -> tuple[nn.Sequential, TaskBatch]:
    """Two tasks of six examples; targets are class numbers, or three labels an example."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 6, 4, generator=g, dtype=torch.float64)
    y = torch.arange(6).remainder(3).expand(2, 2, -1)
    if kind == "labels":
        y = (torch.rand(2, 2, 6, 3, generator=g) > 0.5).double()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, TaskBatch(x[0], y[0], x[1], y[1])


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


@pytest.mark.parametrize("way", WAYS, ids=repr)
@pytest.mark.parametrize(
    ("kind", "named", "own"),
    [("classes", None, cross_entropy), ("labels", "binary_cross_entropy", binary)],
)
def test_an_own_loss_has_the_gradient_of_the_named_one(
    way: MetaGradient, kind: str, named: str | None, own: object
) -> None:
    model, task = setting(kind)
    expected, found = (
        way(FewShot(model, 0.5, loss=loss), dict(model.named_parameters()), task)
        for loss in (named, own)
    )
    torch.testing.assert_close(found.outer_loss, expected.outer_loss)
    for name, grad in expected.grads.items():
        torch.testing.assert_close(found.grads[name], grad)


def test_the_gradient_of_several_labels_is_that_of_finite_differences() -> None:
    model, task = setting("labels")
    problem, way = FewShot(model, loss="binary_cross_entropy"), WAYS[0]
    meta = {name: p.detach() for name, p in model.named_parameters()}
    g = torch.Generator().manual_seed(2)
    step = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in meta.items()}

    def loss(size: float) -> Tensor:
        moved = {name: p + size * step[name] for name, p in meta.items()}
        return way(problem, moved, task).outer_loss.mean()

    # Central differences of 1e-5 err by 1e-10 of third derivatives, and by rounding as much.
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    grads = way(problem, meta, task).grads
    along = torch.stack([(grads[name] * d).sum() for name, d in step.items()]).sum()
    torch.testing.assert_close(along, slope, rtol=1e-6, atol=1e-8)


def test_the_metrics_of_several_labels() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    nn.init.eye_(model[0].weight)
    x = torch.tensor([[[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]], dtype=torch.float64)
    y = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    problem, task = FewShot(model, loss="binary_cross_entropy"), TaskBatch(x, y, x, y)
    meta = problem.begin()
    loss, metrics = problem.outer_objective(problem.init(meta, task), meta, task)
    assert metrics["label_accuracy"].item() == pytest.approx(5 / 6)
    assert metrics["exact_match"].item() == pytest.approx(2 / 3)
    # Five outputs are right by a margin of 1, and one is wrong by it.
    right, wrong = F.softplus(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(loss[0], (5 * right + wrong) / 6)


def test_class_numbers_become_one_hot_rows_and_one_output_is_a_class_or_not() -> None:
    model, task = setting("classes")
    rows = F.one_hot(task.query_y, 3).double()
    outputs = model(task.query_x)
    problem = FewShot(model, loss="binary_cross_entropy")
    params = problem.init(problem.begin(), task)
    loss, metrics = problem.outer_objective(params, problem.begin(), task)
    torch.testing.assert_close(loss, binary(outputs, rows).mean((1, 2)))
    torch.testing.assert_close(
        metrics["accuracy"], (outputs.argmax(-1) == task.query_y).double().mean(1)
    )
    one = nn.Sequential(model[0], nn.Tanh(), nn.Linear(5, 1).double())
    yes = TaskBatch(task.support_x, task.support_y.clamp(0, 1), task.query_x, (task.query_y > 0))
    problem = FewShot(one, loss="binary_cross_entropy")
    loss, metrics = problem.outer_objective(
        problem.init(problem.begin(), yes), problem.begin(), yes
    )
    logits = one(yes.query_x)[..., 0]
    torch.testing.assert_close(loss, binary(logits, yes.query_y.double()).mean(1))
    assert metrics.keys() == {"label_accuracy", "exact_match"}
    right = ((logits > 0) == yes.query_y).double().mean(1)
    torch.testing.assert_close(metrics["label_accuracy"], right)


def test_a_symmetric_head_has_a_row_for_each_label() -> None:
    _, task = setting("labels")
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), SymmetricHead(5, "zero")).double()
    problem = FewShot(model, 0.5, loss="binary_cross_entropy")
    found = WAYS[0](problem, problem.begin(), task)
    assert found.inner.params["2.weight"].shape == (2, 3, 5)
    assert all(grad.isfinite().all() and grad.any() for grad in found.grads.values())


def test_an_own_loss_with_one_output_has_no_accuracy() -> None:
    """The largest of one output is always the first: it would be the share of class 0."""

    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - (2 * targets - 1) * outputs[..., 0]).relu()

    _, task = setting("classes")
    problem = FewShot(nn.Sequential(nn.Linear(4, 1)).double(), loss=hinge)
    task = TaskBatch(task.support_x, task.support_y % 2, task.query_x, task.query_y % 2)
    problem.check(problem.begin(), task)
    params = problem.init(problem.begin(), task)
    assert problem.outer_objective(params, problem.begin(), task)[1] == {}


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("binary", "loss='binary': expected 'squared_error'"),
        (lambda outputs, targets: cross_entropy(outputs, targets).mean(), r"returns \(\) for 2"),
        (lambda outputs, targets: cross_entropy(outputs, targets)[0], r"returns \(6,\) for 2"),
        (lambda outputs, targets: 0.0, "returns float for 2 tasks"),
        (lambda outputs: outputs, "expected a function of outputs .*TypeError"),
        (lambda outputs, targets: outputs + targets, "expected a function of outputs .*Runtime"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(loss: object, sentence: str) -> None:
    model, task = setting("classes")
    with pytest.raises(UsageError, match=sentence):
        problem = FewShot(model, loss=loss)
        problem.check(problem.begin(), task)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (lambda y: y + 1, "class labels from 1 to 3: expected 0 to 2"),
        (lambda y: y.double(), r"expected \(2, 6, 3\), a number from 0 to 1"),
        (lambda y: 2.0 * F.one_hot(y, 3), "expected targets from 0 to 1"),
    ],
)
def test_targets_that_are_no_labels_are_refused(targets: object, sentence: str) -> None:
    model, task = setting("classes")
    task = TaskBatch(task.support_x, targets(task.support_y), task.query_x, targets(task.query_y))
    problem = FewShot(model, loss="binary_cross_entropy")
    with pytest.raises(UsageError, match=sentence):
        problem.check(problem.begin(), task)
