"""Few-shot problems whose model has frozen parameters, dropout, recurrence or attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.inner import GradientDescent
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit, MetaGradient, Unrolled
from metalearn.nn import Conv4, TaskBatched, body_and_head
from metalearn.nn.body import Body, can_split
from metalearn.problem import FewShot
from metalearn.problems import WithBody
from metalearn.tasks import TaskBatch

BATCHED = Unrolled(GradientDescent(2, 0.3), backend="batched")
HIGHER = Unrolled(GradientDescent(2, 0.3), backend="higher")


def task(*shape: int) -> TaskBatch:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(2, 2)
    support, query = torch.randn(2, 2, 6, *shape, generator=g, dtype=torch.float64)
    return TaskBatch(support, y, query, y)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize(
    "metagrad",
    [BATCHED, HIGHER, Implicit(GradientDescent(2, 0.3), CG(5))],
    ids=["batched", "higher", "implicit"],
)
def test_frozen_parameters_are_neither_adapted_nor_learned(metagrad: MetaGradient) -> None:
    """The problem is that of the other layers, on what the frozen ones give."""
    model = layers()
    model[0].requires_grad_(False)
    problem, whole = FewShot(model, prox=0.5), task(4)
    found = metagrad(problem, problem.begin(), whole)
    support, query = (model[:2](x) for x in (whole.support_x, whole.query_x))
    rest = model[2:]
    short = TaskBatch(support, whole.support_y, query, whole.query_y)
    expected = metagrad(FewShot(rest, prox=0.5), dict(rest.named_parameters()), short)
    assert list(found.grads) == list(found.inner.params) == ["2.weight", "2.bias"]
    for a, b in zip(found.grads.values(), expected.grads.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_frozen_weight_leaves_each_task_a_bias() -> None:
    model, whole = layers(), task(4)
    model[2].weight.requires_grad_(False)
    found, reference = (m(FewShot(model), FewShot(model).begin(), whole) for m in (BATCHED, HIGHER))
    assert list(found.grads) == ["0.weight", "0.bias", "2.bias"]
    for name, grad in found.grads.items():
        torch.testing.assert_close(grad, reference.grads[name])


def test_frozen_parameters_in_meta_or_adapt_are_refused() -> None:
    model = layers()
    model[0].requires_grad_(False)
    everything = dict(model.named_parameters())
    with pytest.raises(UsageError, match=r"meta has '0.bias'.*problem.begin\(\)"):
        BATCHED(FewShot(model), everything, task(4))
    body, head = body_and_head(model)
    with pytest.raises(UsageError, match=r"meta has '0\.bias'"):
        BATCHED(WithBody(body, FewShot(head)), everything, task(4))
    with pytest.raises(UsageError, match=r"adapt has '0\.weight'"):
        FewShot(model, adapt=["0.weight"])
    model[0].requires_grad_(True)
    model[2].requires_grad_(False)
    with pytest.raises(UsageError, match="a last layer that is not frozen"):
        FewShot(model, adapt="head")
    with pytest.raises(UsageError, match="all have requires_grad=False"):
        FewShot(model.requires_grad_(False))


def test_a_body_keeps_its_frozen_layers() -> None:
    model = layers()
    model[0].bias.requires_grad_(False)
    body, head = body_and_head(model)
    meta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shared = BATCHED(WithBody(body, FewShot(head)), meta, task(4))
    each = BATCHED(FewShot(model, adapt="head"), meta, task(4))
    assert list(shared.grads) == list(meta)
    for name, grad in each.grads.items():
        torch.testing.assert_close(shared.grads[name], grad)


@pytest.mark.parametrize("start", ["tied", "prototypes", "solved"])
def test_a_symmetric_heads_frozen_scale_is_a_constant(start: str) -> None:
    model = Conv4(3, 4, head=start, learn_scale=True).double()
    model[-1].log_scale.data.fill_(0.3)
    whole = task(1, 28, 28)
    learned, meta = FewShot(model, prox=0.5), dict(model.named_parameters())
    expected = BATCHED(learned, meta, whole)
    model[-1].log_scale.requires_grad_(False)
    frozen = FewShot(model, prox=0.5)
    found = BATCHED(frozen, frozen.begin(), whole)
    torch.testing.assert_close(found.outer_loss, expected.outer_loss)
    assert meta.keys() - found.grads.keys() == {"13.log_scale"}
    for name, grad in found.grads.items():
        torch.testing.assert_close(grad, expected.grads[name])


class HeadFirst(nn.Module):
    """A module that registers its layers in another order than it calls them in."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        HeadFirst,
        lambda: Doubled(nn.Linear(4, 4), nn.Linear(4, 3)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()),
    ],
    ids=["another order", "own forward", "norm", "activation"],
)
def test_a_head_that_is_no_last_linear_layer_is_refused(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert not can_split(model)
    for options in ({"adapt": "head"}, {"prox_head": 1.0}):
        with pytest.raises(UsageError, match=type(model).__name__):
            FewShot(model, **options)
    with pytest.raises(UsageError, match="a body and a head"):
        body_and_head(model)
    assert FewShot(model).adapted == [name for name, _ in model.named_parameters()]


def test_a_head_may_lie_in_a_nested_sequence() -> None:
    classifier = nn.Sequential(nn.Dropout(), nn.Linear(4, 3))
    model = nn.Sequential(nn.Linear(4, 4), classifier)
    assert FewShot(model, adapt="head").adapted == ["1.1.weight", "1.1.bias"]
    assert body_and_head(model)[1][0] is classifier
    classifier.append(nn.Linear(3, 3))
    assert FewShot(model, adapt="head").adapted == ["1.2.weight", "1.2.bias"]
    assert not can_split(model)  # the body would end within the sequence


@pytest.mark.parametrize("transductive", [True, False])
def test_dropout_is_on_in_the_inner_loop_and_off_for_the_queries(transductive: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5)).double()
    problem = FewShot(model, transductive=transductive, query_training=False)
    meta, whole = problem.begin(), task(4)
    start = problem.init(meta, whole)
    assert (problem.inner_outputs(start, meta, whole)["predictions"] == 0).any()
    queries = problem.query_predictions(start, meta, whole)
    torch.testing.assert_close(queries, TaskBatched(model[:1])(start, whole.query_x))
    assert model.training and model[1].training


def test_a_settled_bodys_statistics_are_without_dropout() -> None:
    norm = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    dropping = nn.Sequential(nn.Dropout(0.5), norm).double()
    sample, x = torch.randn(2, 20, 4, dtype=torch.float64)
    found = Body(dropping, "population").settled({}, sample)({}, x[None], x[None, :0], False)
    torch.testing.assert_close(found[0], (x - sample.mean(0)) / (sample.var(0) + norm.eps).sqrt())


class ByFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


def test_a_settled_body_that_still_takes_a_batchs_statistics_is_refused() -> None:
    x = torch.randn(1, 5, 4)
    body = Body(ByFunction(), "population").settled({}, x[0])
    with pytest.raises(UsageError, match="statistics of the population"):
        body({}, x, x, False)


class LastState(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LastState(nn.LSTM),
        lambda: LastState(nn.GRU),
        Attending,
        lambda: Attending().eval(),
    ],
    ids=["LSTM", "GRU", "attention", "attention in evaluation"],
)
def test_recurrence_and_attention_have_second_derivatives(make: Callable[[], nn.Module]) -> None:
    model, whole = make().double(), task(3, 4)
    problem, meta = FewShot(model), dict(model.named_parameters())
    found = BATCHED(problem, meta, whole)
    reference = HIGHER(problem, meta, whole)
    direction = {name: torch.randn_like(p) for name, p in meta.items()}

    def loss(step: float) -> Tensor:
        moved = {name: p.detach() + step * direction[name] for name, p in meta.items()}
        return BATCHED(problem, moved, whole).outer_loss.mean()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    along = sum((found.grads[name] * d).sum() for name, d in direction.items())
    torch.testing.assert_close(along, slope, rtol=1e-6, atol=1e-8)
    for name, grad in found.grads.items():
        torch.testing.assert_close(grad, reference.grads[name])
