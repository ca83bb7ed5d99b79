from __future__ import annotations

import pytest
import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.nn import MLP, Conv4, ResNet12, TaskBatched, normalisation
from metalearn.nn.activation import leaky_relu
from metalearn.nn.convolution import Geometry, grouped_conv2d
from metalearn.nn.normalisation import batch_norm
from metalearn.tree import leaves_of


class Scaled(nn.Module):
    """A module that TaskBatched does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.linear(x) * self.scale


MODELS = {
    "conv4": (lambda: Conv4(5, 8), (1, 28, 28)),
    "conv4 pooled, colour": (lambda: Conv4(5, 8, 3, strided=False, image_size=32), (3, 32, 32)),
    "conv4, group norm": (lambda: Conv4(5, 8, norm="group"), (1, 28, 28)),
    "conv4, no norm": (lambda: Conv4(5, 8, norm="none"), (1, 28, 28)),
    "mlp": (lambda: MLP([4, 6, 3], nn.Tanh), (4,)),
    "resnet12": (lambda: ResNet12(5, 3, (4, 8, 8, 8)), (3, 32, 32)),
    "unknown": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), Scaled()), (4,)),
    "dilated and grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), nn.Flatten(), nn.Linear(256, 2)
        ),
        (2, 8, 8),
    ),
}


def stacked(module, tasks, shape, examples=6):
    g = torch.Generator().manual_seed(0)
    params = {
        name: torch.stack(
            [p.detach() + 0.1 * torch.randn(p.shape, generator=g).double() for _ in range(tasks)]
        ).requires_grad_()
        for name, p in module.named_parameters()
    }
    x = torch.randn(tasks, examples, *shape, generator=g, dtype=torch.float64)
    return params, x


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_module_task_by_task_to_second_order(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    module = make().double()
    params, x = stacked(module, 3, shape)
    values = list(params.values())

    def derivatives(y):
        loss = (y**3).sum()
        grads = torch.autograd.grad(loss, values, create_graph=True)
        v = [torch.cos(torch.arange(g.numel(), dtype=torch.float64)).view(g.shape) for g in grads]
        return grads, torch.autograd.grad(grads, values, v)

    y = TaskBatched(module)(params, x)
    alone = torch.stack(
        [
            torch.func.functional_call(module, {k: p[t] for k, p in params.items()}, (x[t],))
            for t in range(3)
        ]
    )
    assert torch.allclose(y, alone, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(derivatives(y), derivatives(alone), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= 1e-9 * (1 + b.abs().max())


GEOMETRIES = [
    (Geometry((2, 2), (1, 1), (1, 1), 3), (2, 3, 5, 5), (6, 1, 3, 3)),  # one channel a group
    (Geometry((2, 1), (1, 0), (1, 1), 2), (2, 4, 5, 4), (4, 2, 3, 2)),
    (Geometry((1, 1), (2, 2), (2, 2), 2), (1, 2, 5, 5), (2, 1, 3, 3)),
    (Geometry((2, 2), (1, 1), (1, 1), 2), (1, 4, 11, 10), (2, 2, 3, 3)),
]


@pytest.mark.parametrize(("geometry", "x", "weight"), GEOMETRIES, ids=str)
def test_convolution_and_its_derivatives(geometry, x, weight):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(x, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(weight, generator=g, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv2d(
        x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
    assert torch.allclose(grouped_conv2d(x, weight, geometry), expected)

    def function(a, b):
        return grouped_conv2d(a, b, geometry)

    fast = x.numel() > 100
    assert torch.autograd.gradcheck(function, (x, weight), fast_mode=fast, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=fast)


def to_second_order(function, inputs, dtype):
    """The value, its gradients along a cotangent, and the derivatives of those along directions."""
    g = torch.Generator().manual_seed(1)
    inputs = [v.detach().to(dtype).requires_grad_() for v in inputs]
    out = function(*inputs)
    cotangent = torch.randn(out.shape, generator=g).to(dtype).requires_grad_()
    first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
    along = [torch.randn(v.shape, generator=g).to(dtype) for v in first]
    return out, *first, *torch.autograd.grad(first, [*inputs, cotangent], along)


def assert_single_precision(function, inputs):
    """Every derivative within a hundred roundings of float64's, which `gradcheck` has checked."""
    single, double = (to_second_order(function, inputs, t) for t in (torch.float, torch.double))
    for mine, exact in zip(single, double, strict=True):
        assert (mine - exact).norm() <= 1e2 * torch.finfo(torch.float).eps * exact.norm()


@pytest.mark.parametrize(("geometry", "x", "weight"), GEOMETRIES, ids=str)
def test_convolution_in_single_precision_where_it_lies_channels_last(geometry, x, weight):
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=g) for shape in (x, weight))
    out = grouped_conv2d(x, weight, geometry)
    assert out.is_contiguous(memory_format=torch.channels_last)
    # Cubed: else the derivative by each factor alone would vanish.
    assert_single_precision(lambda x, w: grouped_conv2d(x, w, geometry) ** 3, (x, weight))


@pytest.mark.parametrize("few", [normalisation.FEW, 0], ids=["few values", "many values"])
def test_convolution_norm_and_relu_in_single_precision(few, monkeypatch):
    monkeypatch.setattr(normalisation, "FEW", few)
    geometry, x, weight = GEOMETRIES[3]
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=g) for shape in (x, weight))
    gain, shift = torch.rand(2, 2, generator=g)

    def layer(x, weight, gain, shift):
        y = grouped_conv2d(x, weight, geometry)
        return leaky_relu(batch_norm(y, gain, shift, 1e-2)) ** 3

    assert_single_precision(layer, (x, weight, gain, shift))


@pytest.mark.parametrize("mapped", ["both", "input", "kernel"])
def test_convolution_under_vmap_is_one_call_after_another(mapped):
    geometry, x_shape, weight_shape = GEOMETRIES[1]
    g = torch.Generator().manual_seed(0)
    shapes = [
        (3, *shape) if mapped in ("both", which) else shape
        for which, shape in (("input", x_shape), ("kernel", weight_shape))
    ]
    x, weight = (
        torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    dims = tuple(0 if mapped in ("both", which) else None for which in ("input", "kernel"))

    def function(x, weight):
        return torch.func.vmap(lambda a, b: grouped_conv2d(a, b, geometry), in_dims=dims)(x, weight)

    pairs = [(x[i] if dims[0] == 0 else x, weight[i] if dims[1] == 0 else weight) for i in range(3)]
    each = torch.stack([grouped_conv2d(a, b, geometry) for a, b in pairs])
    assert torch.allclose(function(x, weight), each)
    assert torch.autograd.gradcheck(function, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=True)


@pytest.mark.parametrize("constant", ["input", "kernel"])
def test_a_convolution_by_one_factor_alone_is_right_to_second_order(constant):
    # Only what a derivative is asked for is saved: each factor is left out of it in turn.
    geometry, x_shape, weight_shape = GEOMETRIES[0]
    g = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in (x_shape, weight_shape)
    )
    leaf = (weight if constant == "input" else x).requires_grad_()

    def function(leaf):
        pair = (x, leaf) if constant == "input" else (leaf, weight)
        return grouped_conv2d(*pair, geometry) ** 3  # its second derivative is not zero

    assert torch.autograd.gradcheck(function, leaf, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaf, check_fwd_over_rev=True)


def channels(*shape):
    g = torch.Generator().manual_seed(len(shape))
    x = torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
    gain, shift = torch.rand(2, shape[1], generator=g, dtype=torch.float64)
    return x, gain.requires_grad_(), shift.requires_grad_()


@pytest.mark.parametrize("few", [normalisation.FEW, 0], ids=["few values", "many values"])
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (6, 2)], ids=str)
def test_batch_norm_and_its_derivatives(shape, few, monkeypatch):
    monkeypatch.setattr(normalisation, "FEW", few)
    x, gain, shift = channels(*shape)

    def function(x, gain, shift):
        return batch_norm(x, gain, shift, 1e-2)

    expected = torch.nn.functional.batch_norm(x, None, None, gain, shift, training=True, eps=1e-2)
    assert torch.allclose(function(x, gain, shift), expected)

    def gradient(*inputs):
        return torch.autograd.grad((function(*inputs) ** 3).sum(), inputs, create_graph=True)

    inputs = x, gain, shift
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)
    assert torch.autograd.gradgradcheck(gradient, inputs, fast_mode=True)  # fourth derivatives


@pytest.mark.parametrize("level", [1, 10])
@pytest.mark.parametrize("values", [500, 2000, 60_000])
def test_batch_norm_is_as_exact_as_single_precision_lets_it_be(values, level):
    """A hundred roundings, where the mean is so many deviations (10 lose a digit): of the forward
    pass, of a gradient, and of a derivative of it."""
    g = torch.Generator().manual_seed(0)
    x = (level + torch.randn(values // 100, 8, 10, 10, generator=g)).to(
        memory_format=torch.channels_last
    )
    cotangent, direction = torch.randn(2, *x.shape, generator=g)
    gain = torch.rand(8, generator=g)

    def all_three(dtype):
        at, y, v = (t.to(dtype).requires_grad_() for t in (x, cotangent, direction))
        out = batch_norm(at, gain.to(dtype), gain.to(dtype), 1e-5)
        (by_x,) = torch.autograd.grad(out, at, y, create_graph=True)
        return out, by_x, torch.autograd.grad(by_x, at, v)[0]

    for mine, exact in zip(all_three(torch.float32), all_three(torch.float64), strict=True):
        assert (mine - exact).norm() <= 1e2 * torch.finfo(torch.float32).eps * exact.norm()


def test_batch_norm_under_vmap_is_one_call_after_another():
    x, gain, shift = channels(4, 3, 2, 2)
    many = torch.stack([x, 2 * x + 1, x**2]).detach().requires_grad_()

    def function(x):
        return batch_norm(x, gain, shift, 1e-2)

    mapped = torch.func.vmap(function)
    assert torch.allclose(mapped(many), torch.stack([function(x) for x in many]))
    assert torch.autograd.gradcheck(mapped, many, fast_mode=True)
    assert torch.autograd.gradgradcheck(mapped, many, fast_mode=True)


def test_batch_norms_hessian_by_torch_func_is_torchs():
    x, gain, shift = (v.detach() for v in channels(4, 3, 2, 2))

    def ours(x, gain):
        return (batch_norm(x, gain, shift, 1e-2) ** 3).sum()

    def theirs(x, gain):
        y = torch.nn.functional.batch_norm(x, None, None, gain, shift, training=True, eps=1e-2)
        return (y**3).sum()

    def hessian(function):  # reverse over reverse: `vmap` over the cotangents alone
        return torch.func.jacrev(torch.func.grad(function, (0, 1)), (0, 1))(x, gain)

    for a, b in zip(leaves_of(hessian(ours)), leaves_of(hessian(theirs)), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_inductive_statistics_come_from_the_first_examples_alone():
    module = Conv4(5, 8).double()
    params, x = stacked(module, 2, (1, 28, 28), examples=7)
    model = TaskBatched(module)
    full = model(params, x, statistics_from=4)
    for last in (4, 5, 6):
        alone = model(
            params, torch.cat([x[:, :4], x[:, last : last + 1]], dim=1), statistics_from=4
        )
        assert torch.allclose(alone[:, 4], full[:, last])
    assert torch.allclose(full[:, :4], model(params, x[:, :4]))
    assert not torch.allclose(full[:, 4:], model(params, x[:, 4:]))


def test_what_cannot_be_task_batched_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="model='conv4': expected a torch"):
        TaskBatched("conv4")
    with pytest.raises(UsageError, match="track_running_stats=False"):
        TaskBatched(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(UsageError, match="padding"):
        TaskBatched(nn.Conv2d(1, 1, 3, padding="same"))
    with pytest.raises(ValueError, match=r"0\.bias"):
        TaskBatched(nn.Sequential(nn.Linear(2, 2)))(
            {"0.weight": torch.ones(1, 2, 2)}, torch.ones(1, 1, 2)
        )
    for bad in (
        {"ways": 0},
        {"ways": 5, "norm": "layer"},
        {"ways": 5, "strided": False, "image_size": 8},
    ):
        with pytest.raises(UsageError):
            Conv4(**bad)
    with pytest.raises(UsageError, match="MLP"):
        MLP([3])


def test_conv4_is_the_papers_size():
    assert sum(p.numel() for p in Conv4(5, 64).parameters()) == 576 + 3 * 36864 + 4 * 128 + 1285
    assert Conv4(5, 32, 3, strided=False, image_size=84)[-1].in_features == 800


def test_what_would_be_silently_wrong_is_refused():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(UsageError, match="other names of parameters"):
        TaskBatched(nn.Sequential(norm, nn.ReLU(), norm))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(UsageError, match=r"1\.weight"):
        TaskBatched(tied)
    params = {k: p[None] for k, p in norm.named_parameters()}
    with pytest.raises(UsageError, match="one value a channel"):
        TaskBatched(norm)(params, torch.ones(1, 1, 3, 1, 1))
