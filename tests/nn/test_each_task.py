"""Any module for many tasks: the values and derivatives of a loop over the tasks, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from task_modules import MODULES, WITHOUT, Shifted
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from metalearn.errors import UsageError
from metalearn.nn import Conv4, TaskBatched

T, N = 3, 4


def stacked(module: nn.Module, tasks: int = T) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        name: (p.detach() + 0.3 * torch.randn(tasks, *p.shape, generator=g)).requires_grad_()
        for name, p in module.named_parameters()
    }


def loop(module: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the values of the tasks one after the other, on a copy that may keep what it likes."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.stack(
            [
                torch.func.functional_call(module, {k: p[t] for k, p in params.items()}, (x[t],))
                for t in range(len(x))
            ]
        )


def to_second_order(y: Tensor, params: dict[str, Tensor]) -> list[Tensor]:
    values = list(params.values())
    kept = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad((y**3).sum(), values, create_graph=True, **kept)
    along = sum((g * torch.cos(torch.arange(g.numel())).view(g.shape)).sum() for g in first)
    return [y, *first, *torch.autograd.grad(along, values, **kept)]


def assert_is_the_loop(module: nn.Module, x: Tensor) -> None:
    params = stacked(module, len(x))
    before = [dict(vars(child)) for child in module.modules()]
    found = to_second_order(TaskBatched(module)(params, x), params)
    for child, attributes in zip(module.modules(), before, strict=True):
        assert all(vars(child)[name] is value for name, value in attributes.items())
    expected = to_second_order(loop(module, params, x), params)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("tasks", [1, T])
@pytest.mark.parametrize("name", MODULES)
def test_task_batched_is_the_loop_to_second_order(name: str, tasks: int) -> None:
    make, shape = MODULES[name]
    assert_is_the_loop(make(), torch.randn(tasks, N, *shape))


@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("mode", [None, "sum", "mean", "max"])
def test_embeddings_are_the_loop_and_padding_has_no_gradient(
    mode: str | None, padding: int | None
) -> None:
    layer = nn.Embedding(5, 3, padding) if mode is None else nn.EmbeddingBag(5, 3, mode=mode)
    layer.padding_idx = None if padding is None else padding % 5
    indices = torch.randint(0, 5, (T, N, 4))
    indices[0, 0] = 0
    params = stacked(layer)
    found = TaskBatched(layer)(params, indices)
    alone = loop(layer, params, indices)
    torch.testing.assert_close(found, alone)
    (grad,) = torch.autograd.grad((found**3).sum(), params["weight"], create_graph=True)
    (expected,) = torch.autograd.grad((alone**3).sum(), params["weight"])
    torch.testing.assert_close(grad, expected)
    if padding is not None:
        assert not grad[:, padding].any()
    assert torch.autograd.grad(grad.square().sum(), params["weight"])[0].abs().max() > 0


@contextmanager
def on_all_modules(hook: Callable) -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_hooks_on_all_modules_count() -> None:
    module, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(T, N, 4)
    batched, params = TaskBatched(module), stacked(module)
    with on_all_modules(lambda m, x, y: 2 * y):
        torch.testing.assert_close(batched(params, x), loop(module, params, x))
    with FlopCounterMode(display=False) as counter:
        batched(params, x)
    assert counter.get_total_flops() == 2 * T * N * 4 * 3


def test_hooks_and_layers_that_change_after_the_wrapping_count() -> None:
    module, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(T, N, 4)
    batched, params = TaskBatched(module), stacked(module)
    plain = batched(params, x)
    handle = module[0].register_forward_hook(lambda m, x, y: y + 1)
    torch.testing.assert_close(batched(params, x), loop(module, params, x))
    handle.remove()
    assert torch.equal(batched(params, x), plain)
    module[1] = nn.Tanh()
    torch.testing.assert_close(batched(params, x), loop(module, params, x))


def test_outputs_may_be_a_tuple() -> None:
    module, x = (
        nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3, batch_first=True)),
        torch.randn(T, N, 2, 4),
    )
    params = stacked(module)
    outputs, (state, _) = TaskBatched(module)(params, x)
    one = {name: p[1] for name, p in params.items()}
    expected, (last, _) = torch.func.functional_call(module, one, (x[1],))
    torch.testing.assert_close((outputs[1], state[1]), (expected, last))


def changed_buffer() -> nn.Module:
    class Counting(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            self.shift += 1
            return super().forward(x)

    return Counting()


def replaced_buffer() -> nn.Module:
    class Moving(Shifted):
        def forward(self, x: Tensor) -> Tensor:
            self.shift = self.shift + x.mean(0)
            return super().forward(x)

    return Moving()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.linear(x).tanh(), x, use_reentrant=False)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (changed_buffer, r"shift: expected a buffer that forward does not change"),
        (replaced_buffer, r"shift: expected a buffer that forward does not change"),
        (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3))), r"_u: .* eval"),
        (lambda: nn.Sequential(nn.SyncBatchNorm(4, **WITHOUT)), "0=SyncBatchNorm"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "0=LazyLinear: .* Call the model"),
        (lambda: nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)), "0=InstanceNorm1d"),
        (Checkpointed, "Take it out"),
    ],
    ids=["buffer", "new buffer", "spectral norm", "sync", "lazy", "instance norm", "checkpoint"],
)
def test_state_that_tasks_would_share_is_refused(
    make: Callable[[], nn.Module], sentence: str, tasks: int
) -> None:
    module = make()
    tensors = {} if "Lazy" in sentence else copy.deepcopy(module.state_dict())
    with pytest.raises(UsageError, match=sentence):
        TaskBatched(module)(stacked(module, tasks), torch.randn(tasks, N, 4))
    for name, tensor in tensors.items():
        assert torch.equal(module.state_dict()[name], tensor)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embedding_options_without_a_gradient_are_refused(
    kind: type[nn.Module], option: dict
) -> None:
    layer = kind(5, 3, **option)
    with pytest.raises(UsageError, match=f"{kind.__name__}.{next(iter(option))}"):
        TaskBatched(layer)(stacked(layer), torch.zeros(T, N, 2, dtype=torch.long))


def test_resnet18_with_running_averages_is_refused_by_the_layers_name() -> None:
    import torchvision  # takes seconds: not at the top

    make = partial(torchvision.models.resnet18, num_classes=2)
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UsageError, match=r"bn1=BatchNorm2d.*track_running_stats=False.*eval\(\)"):
        TaskBatched(make())
    model, x = make().eval(), torch.randn(1, 2, 3, 16, 16)
    params = {name: p.detach()[None] for name, p in model.named_parameters()}
    batched = TaskBatched(model)
    torch.testing.assert_close(batched(params, x)[0], model(x[0]))
    model.train()
    with pytest.raises(UsageError, match="bn1=BatchNorm2d"):
        batched(params, x)


class Wrapped(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class OwnNorm(nn.BatchNorm2d):
    pass


class ByFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class ByTorch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.BatchNorm2d(3, **WITHOUT),
    "in a module": lambda: Wrapped(nn.BatchNorm2d(3, **WITHOUT)),
    "subclass": lambda: OwnNorm(3, affine=False, **WITHOUT),
    "function": ByFunction,
    "torch's function": ByTorch,
}


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_come_from_the_first_examples_wherever_the_norm_is(kind: str) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), NORMS[kind]())
    params, x = stacked(module), torch.randn(T, 6, 2, 2, 2)
    other = x.clone()
    other[:, 5:] *= 50
    batched = TaskBatched(module)
    first = batched(params, x, statistics_from=4)
    assert torch.equal(first[:, :5], batched(params, other, statistics_from=4)[:, :5])
    torch.testing.assert_close(first[:, :4], batched(params, x[:, :4]))
    assert (batched(params, x) - first).abs().max() > 1e-3


class Reshaping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x.flatten(0, 1), None, None, training=True).view(x.shape)


def test_statistics_of_reshaped_examples_are_refused() -> None:
    with pytest.raises(UsageError, match="Normalise before reshaping"):
        TaskBatched(Reshaping())({}, torch.randn(1, 4, 2, 3), statistics_from=2)


class DroppingOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 20)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, self.training)


class Entered(DroppingOut):
    task_batchable = True


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5)), DroppingOut, Entered],
    ids=["layer", "function", "declared"],
)
def test_training_mode_is_read_at_each_call(make: Callable[[], nn.Module]) -> None:
    module = make()
    batched, params, x = TaskBatched(module), stacked(module), torch.randn(T, N, 4)

    def zeros(**mode: bool) -> bool:
        return bool((batched(params, x, **mode) == 0).any())

    assert zeros() and not zeros(training=False)
    module.eval()
    assert not zeros() and zeros(training=True)
    assert not any(child.training for child in module.modules())
    module.train()
    assert zeros()


@pytest.mark.parametrize("shared", ["weight", "bias", "both"])
def test_tasks_may_share_any_of_a_layers_parameters(shared: str) -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, **WITHOUT), nn.Flatten(), nn.Linear(16, 2)
    )
    x = torch.randn(T, N, 2, 4, 4)
    params = {
        name: p[:1] if shared in (name.rpartition(".")[2], "both") else p
        for name, p in stacked(module).items()
    }
    each = {name: p.expand(T, *p.shape[1:]) for name, p in params.items()}
    torch.testing.assert_close(TaskBatched(module)(params, x), loop(module, each, x))


def test_frozen_parameters_may_be_left_out() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), torch.randn(T, N, 4)
    module[0].requires_grad_(False)
    params = {name: p for name, p in stacked(module).items() if name.startswith("1")}
    frozen = {name: p.expand(T, *p.shape) for name, p in module[0].named_parameters("0")}
    torch.testing.assert_close(TaskBatched(module)(params, x), loop(module, params | frozen, x))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_bf16_autocast_is_as_exact_as_torchs(norm: str) -> None:
    torch.set_default_dtype(torch.float32)
    module = Conv4(3, 4, norm=norm, activation="silu")
    labels = torch.arange(3).repeat(2)
    x = 0.3 * torch.rand(2, 6, 1, 28, 28)
    for example, label in enumerate(labels.tolist()):
        x[:, example, :, 8 * label : 8 * label + 8] += 1
    params = {
        name: p.detach().expand(2, *p.shape).clone().requires_grad_()
        for name, p in module.named_parameters()
    }

    def gradient(forward: Callable[..., Tensor], autocast: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = forward(params, x)
        loss = F.cross_entropy(y.flatten(0, 1).float(), labels.repeat(2))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(params.values()))])

    exact = gradient(partial(loop, module), False)
    ours, theirs = (
        (gradient(forward, True) - exact).norm() / exact.norm()
        for forward in (TaskBatched(module), partial(loop, module))
    )
    assert 0 < ours <= 1.1 * theirs
