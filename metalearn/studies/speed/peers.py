"""The meta-gradients of other libraries, each after the library's own example.

- higher: examples/maml-omniglot.py.
- learn2learn: the docstring of `algorithms.MAML`.
- TorchOpt: examples/few-shot/maml_omniglot.py and examples/iMAML/imaml_omniglot_functional.py.
- `torch.func`, MAML: the example of functorch, with the loss of one task under `vmap`.
- `torch.func`, iMAML: written here in the same manner. One linearisation serves all products.

Some examples keep the graph of every task until one backward sweep at the end. Here each task has
its own sweep, which gives the same gradient in less memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from metalearn.studies.speed.workloads import Gradient, Run, Setting
from metalearn.tasks.l2l import import_learn2learn

Params = dict[str, Tensor]


def maml_by_higher(setting: Setting) -> Run:
    import higher

    w, model = setting.workload, setting.model
    optimiser = torch.optim.SGD(model.parameters(), lr=w.lr)

    def run() -> Gradient:
        model.zero_grad()
        for sx, sy, qx, qy in _tasks(setting):
            with higher.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (net, inner):
                for _ in range(w.steps):
                    inner.step(F.cross_entropy(net(sx), sy))
                (F.cross_entropy(net(qx), qy) / w.tasks).backward()
        return _grads(model)

    return run


def maml_by_learn2learn(setting: Setting) -> Run:
    w, model = setting.workload, setting.model
    maml = import_learn2learn("learn2learn.algorithms").MAML(model, lr=w.lr)

    def run() -> Gradient:
        model.zero_grad()
        for sx, sy, qx, qy in _tasks(setting):
            learner = maml.clone()
            for _ in range(w.steps):
                learner.adapt(F.cross_entropy(learner(sx), sy))
            (F.cross_entropy(learner(qx), qy) / w.tasks).backward()
        return _grads(model)

    return run


def maml_by_torchopt(setting: Setting) -> Run:
    import torchopt

    w, model = setting.workload, setting.model
    parameters = list(model.parameters())
    inner = torchopt.MetaSGD(model, lr=w.lr)

    def run() -> Gradient:
        for p in parameters:
            p.grad = None
        network = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        optimiser = torchopt.extract_state_dict(inner, by="reference")
        for sx, sy, qx, qy in _tasks(setting):
            for _ in range(w.steps):
                inner.step(F.cross_entropy(model(sx), sy))
            (F.cross_entropy(model(qx), qy) / w.tasks).backward()
            torchopt.recover_state_dict(model, network)
            torchopt.recover_state_dict(inner, optimiser)
        return [_of(p.grad) for p in parameters]

    return run


class ElementaryBatchNorm(nn.Module):
    """A batch norm in elementary operations.

    The second derivative of PyTorch's own batch norm is wrong by parts in 100 under
    `torch.func.vmap` where the gain is mapped too (2.14, in float64 and without a message).
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        shape = (1, -1, 1, 1)
        gain = self.weight.view(shape) * (variance + self.eps).rsqrt()
        return (x - mean) * gain + self.bias.view(shape)


def with_elementary_norms(model: nn.Sequential) -> nn.Sequential:
    """Replace the batch norms, and keep the parameters and their names."""
    return nn.Sequential(
        *(ElementaryBatchNorm(m) if isinstance(m, nn.BatchNorm2d) else m for m in model)
    )


def maml_by_vmap(setting: Setting, elementary: bool = True) -> Run:
    w, model, task = setting.workload, setting.model, setting.task
    network = with_elementary_norms(model) if elementary else model
    theta: Params = dict(model.named_parameters())

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, params, x), y)

    def adapted_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        params = theta
        for _ in range(w.steps):
            grads = grad(loss)(params, sx, sy)
            params = {name: p - w.lr * grads[name] for name, p in params.items()}
        return loss(params, qx, qy)

    def run() -> Gradient:
        model.zero_grad()
        losses = vmap(adapted_loss)(task.support_x, task.support_y, task.query_x, task.query_y)
        losses.mean().backward()
        return _grads(model)

    return run


def imaml_by_torchopt(setting: Setting, normal: bool = False) -> Run:
    """Prepare iMAML by TorchOpt. `normal`: CG on the normal equations, as in its example."""
    import torchopt

    w, model = setting.workload, setting.model
    names = [name for name, _ in model.named_parameters()]
    theta = tuple(model.parameters())
    make = torchopt.linear_solve.solve_normal_cg if normal else torchopt.linear_solve.solve_cg

    def predicted(params: Any, x: Tensor) -> Any:
        return functional_call(model, dict(zip(names, params, strict=True)), x)

    def objective(params: Any, meta: Any, x: Tensor, y: Tensor) -> Tensor:
        distance = sum(
            (0.5 * w.prox * (p - q).square().sum()) for p, q in zip(params, meta, strict=True)
        )
        return F.cross_entropy(predicted(params, x), y) + distance

    @torchopt.diff.implicit.custom_root(
        grad(objective, argnums=0), argnums=1, solve=make(maxiter=w.cg, rtol=0.0, atol=0.0)
    )
    def solve(params: Any, meta: Any, x: Tensor, y: Tensor) -> Any:
        optimiser = torchopt.sgd(lr=w.lr)
        state = optimiser.init(params)
        with torch.enable_grad():
            for _ in range(w.steps):
                grads = torch.autograd.grad(objective(params, meta, x, y), params)
                updates, state = optimiser.update(grads, state, inplace=True)
                params = torchopt.apply_updates(params, updates, inplace=True)
        return params

    def run() -> Gradient:
        model.zero_grad()
        for sx, sy, qx, qy in _tasks(setting):
            start = tuple(p.detach().clone().requires_grad_() for p in theta)
            reached = solve(start, theta, sx, sy)
            (F.cross_entropy(predicted(reached, qx), qy) / w.tasks).backward()
        return _grads(model)

    return run


def imaml_by_vmap(setting: Setting, elementary: bool = True) -> Run:
    w, model, task = setting.workload, setting.model, setting.task
    network = with_elementary_norms(model) if elementary else model
    theta = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, params, x), y)

    def objective(params: Params, x: Tensor, y: Tensor) -> Tensor:
        distance = sum((p - theta[name]).square().sum() for name, p in params.items())
        return loss(params, x, y) + w.prox / 2 * distance

    gradient = vmap(grad(objective))

    def run() -> Gradient:
        params = {name: p.expand(w.tasks, *p.shape) for name, p in theta.items()}
        for _ in range(w.steps):
            grads = gradient(params, task.support_x, task.support_y)
            params = {name: p - w.lr * grads[name] for name, p in params.items()}
        b = vmap(grad(loss))(params, task.query_x, task.query_y)
        pull: Any = vjp(lambda p: gradient(p, task.support_x, task.support_y), params)[1]
        x = {name: torch.zeros_like(v) for name, v in b.items()}
        r, p, rr = b, b, _dots(b, b)
        for _ in range(w.cg):
            (hp,) = pull(p)
            alpha = rr / _dots(p, hp)
            x, r = _plus(x, alpha, p), _plus(r, -alpha, hp)
            rr, before = _dots(r, r), rr
            p = _plus(r, rr / before, p)
        return [w.prox * v.mean(0) for v in x.values()]

    return run


def _tasks(setting: Setting) -> Any:
    task = setting.task
    return zip(task.support_x, task.support_y, task.query_x, task.query_y, strict=True)


def _grads(model: nn.Module) -> Gradient:
    return [_of(p.grad) for p in model.parameters()]


def _of(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient


def _dots(a: Params, b: Params) -> Tensor:
    """Return the inner product of each task, (T,)."""
    products = [(a[name] * b[name]).flatten(1).sum(1) for name in a]
    return torch.stack(products).sum(0)


def _plus(a: Params, factor: Tensor, b: Params) -> Params:
    """Return a + factor b, for a factor of each task, (T,)."""
    return {
        name: torch.addcmul(v, factor.view(-1, *[1] * (v.dim() - 1)), b[name])
        for name, v in a.items()
    }
