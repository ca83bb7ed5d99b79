"""Captured inner gradients: the numbers are those of the problem run as it is, or it says so.

The captured operations are the same ones, so that float64 agrees to rounding: 1e-12 of a gradient.
A tensor of another layout in memory may be summed in another order.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured_runs import METHODS, STEPS, agree, gradients
from tiny_run import TINY, rows
from torch import Tensor, nn
from zoo import relative_difference

from metalearn.captured import Captured
from metalearn.commands.main import main
from metalearn.errors import UsageError
from metalearn.metagrad.base import InnerObjective
from metalearn.nn import SymmetricHead
from metalearn.problem import FewShot
from metalearn.problems.build import few_shot
from metalearn.tasks import TaskBatch
from metalearn.tree import requires_grad_copy


class Own(nn.Module):
    """A module that runs as it stands on each task's examples."""

    def __init__(self, run: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.layer, self.run = nn.Linear(16, 3), run

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.run(x.flatten(1)))
        return y


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "conv": lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(3, track_running_stats=False),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(192, 3),
        ),
        "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Tanh(), nn.Linear(4, 3)),
        "dropout": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(256, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
        ),
        "zero": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(256, 4), nn.Tanh(), SymmetricHead(4, start="zero")
        ),
        "prototypes": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(256, 4), nn.Tanh(), SymmetricHead(4, start="prototypes")
        ),
        "own": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 16), Own()),
    }
    return layers[kind]().double()


def drawn(seed: int, ways: int = 3, tasks: int = 2) -> TaskBatch:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(ways).repeat(tasks, 2)
    x = [torch.rand(tasks, 2 * ways, 1, 16, 16, generator=g, dtype=torch.double) for _ in range(2)]
    return TaskBatch(x[0], y, x[1], y)


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mlp", "dropout"])
def test_every_method_gives_the_same_gradient(method: str, kind: str) -> None:
    if kind == "dropout" and "mixed" in method:
        pytest.skip("mixed mode and reverse mode of dropout are compared in test_random_numbers")
    prox = 1.0 if method.startswith("implicit") else 0.0
    model, tasks = made(kind), [drawn(seed) for seed in range(3)]
    expected = gradients(METHODS[method], FewShot(model, prox), tasks)
    agree(gradients(METHODS[method], FewShot(model, prox, capture="replay"), tasks), expected)


@pytest.mark.parametrize("kind", ["conv", "zero", "prototypes", "own"])
def test_every_kind_of_model_gives_the_same_gradient(kind: str) -> None:
    model = made(kind)
    ways = (3, 4, 3) if kind in ("zero", "prototypes") else (3,) * 3
    tasks = [drawn(seed, w) for seed, w in enumerate(ways)]
    for method in (METHODS["implicit"], METHODS["unrolled"]):
        expected = gradients(method, FewShot(model, 1.0), tasks)
        agree(gradients(method, FewShot(model, 1.0, capture="replay"), tasks), expected)


@pytest.mark.parametrize(
    "options", [{"adapt": "head"}, {"learn_rates": "layers"}, {"learn_prox": True}]
)
def test_built_problems_give_the_same_gradient(options: dict[str, Any]) -> None:
    model, tasks = made("conv"), [drawn(seed) for seed in range(3)]
    name = "unrolled" if "learn_rates" in options else "implicit"
    problems = [
        few_shot(model, 1.0, rate_steps=4, capture=how, **options) for how in ("none", "replay")
    ]
    expected, found = (gradients(METHODS[name], problem, tasks) for problem in problems)
    agree(found, expected)


def test_bfloat16_gives_the_same_gradient() -> None:
    model, tasks = made("conv").float(), [drawn(seed).to(torch.float) for seed in range(3)]
    expected, found = (
        gradients(METHODS["implicit"], FewShot(model, 1.0, precision="bf16", capture=how), tasks)
        for how in ("none", "replay")
    )
    agree(found, expected, within=1e-2)  # other layouts of the same products, rounded to 2^-9


def test_a_training_does_not_run_the_model_in_its_inner_loop() -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x.tanh()

    def runs(how: Any) -> list[int]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), Own(counted)).double()
        problem, found = FewShot(model, 1.0, capture=how), []
        for seed in range(4):
            calls.clear()
            METHODS["implicit"](problem, problem.begin(), drawn(seed))
            found.append(len(calls))
        return found

    own, captured = runs("none"), runs("replay")
    # What is left: the start of the loop, and the outer objective.
    assert captured[-1] == captured[-2] <= 2 * own[-1] / 5


class Smoothed:
    """The cross-entropy of smoothed labels, whose smoothing changes during a training."""

    smoothing = 0.0

    def __init__(self) -> None:
        self.smoothing, self.scale = 0.1, nn.LeakyReLU(0.5)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scores = self.scale(outputs.transpose(1, 2))
        smoothing = self.smoothing
        return F.cross_entropy(scores, targets, reduction="none", label_smoothing=smoothing)


def changed(problem: FewShot, model: Any, what: str) -> None:
    def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return 0.5 * y

    if what == "mode":
        model.eval()
    if what == "prox":
        problem.prox = problem.prox_head = 3.0
    if what == "option":
        model[3].p = 0.1
    if what == "child":
        model[2] = nn.ReLU()
    if what == "hook":
        model[2].register_forward_hook(hook)
    if what == "loss":
        problem.loss.smoothing = 0.5  # type: ignore[union-attr]
    if what == "loss's module":
        problem.loss.scale.negative_slope = -3.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "what", ["mode", "prox", "option", "child", "hook", "loss", "loss's module"]
)
def test_what_changes_the_operations_is_captured_anew(what: str) -> None:
    found = []
    for how in ("replay", "none"):
        model = made("dropout")
        problem = FewShot(model, 1.0, loss=Smoothed(), capture=how)  # type: ignore[arg-type]
        before = gradients(METHODS["implicit"], problem, [drawn(4), drawn(5)])
        changed(problem, model, what)
        after = gradients(METHODS["implicit"], problem, [drawn(5)])
        assert relative_difference(after[0], before[1]) > 0.01
        found.append(after)
    agree(*found)


class Strided(nn.Module):
    """A module that runs as it stands, and whose options are a tuple, a function and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.factors = nn.Conv2d(1, 3, 3), torch.tanh, [1.0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv(x)).mean((2, 3)) * self.factors[0]
        return y


@pytest.mark.parametrize("capture", ["none", "replay"])
@pytest.mark.parametrize("what", ["tuple", "function", "list", "slope", "eps", "stride"])
def test_an_option_that_changes_counts_from_the_next_call_on(what: str, capture: Any) -> None:
    torch.manual_seed(0)
    own = what in ("tuple", "function", "list")
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    layers = [nn.Conv2d(1, 3, 3), norm, nn.LeakyReLU(), nn.AvgPool2d(14), nn.Flatten()]
    model: Any = (Strided() if own else nn.Sequential(*layers)).double()
    problem = FewShot(model, 1.0, capture=capture)
    before = gradients(METHODS["implicit"], problem, [drawn(0)] * 3)[-1]
    match what:
        case "tuple":
            model.conv.stride = (2, 2)
        case "function":
            model.act = torch.sin
        case "list":
            model.factors[0] = 3.0
        case "slope":
            model[2].negative_slope = 0.9
        case "eps":
            model[1].eps = 3.0
        case "stride":
            model[0].padding, model[0].stride = (13, 13), (2, 2)
    (after,) = gradients(METHODS["implicit"], problem, [drawn(0)])
    assert relative_difference(after, before) > 1e-3
    agree([after], gradients(METHODS["implicit"], FewShot(model, 1.0), [drawn(0)]))


def test_frozen_parameters_and_buffers_are_read_at_each_call() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    model[1].requires_grad_(False)
    model.eval()
    problem, plain, tasks = FewShot(model, 1.0, capture="replay"), FewShot(model, 1.0), [drawn(3)]
    for change in range(4):
        with torch.no_grad():
            if change % 2:
                model[1].weight.mul_(1.5)
                model[2].running_mean.add_(0.1)
            elif change:
                model[1].weight.data = model[1].weight.data + 0.1
                model[2].running_var = model[2].running_var + 0.5
        agree(
            gradients(METHODS["implicit"], problem, tasks),
            gradients(METHODS["implicit"], plain, tasks),
        )


def test_a_buffer_that_becomes_another_row_of_a_table_is_read_anew() -> None:
    table = torch.arange(1.0, 5.0, dtype=torch.double)[:, None].expand(4, 3).contiguous()

    class Shifted(nn.Linear):
        b: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.b

    model = nn.Sequential(nn.Flatten(), Shifted(256, 3)).double()
    model[1].register_buffer("b", table[0])
    problem, plain = FewShot(model, 1.0, capture="replay"), FewShot(model, 1.0)
    for row in (0, 3, 1):
        model[1].b = table[row]
        agree(
            gradients(METHODS["implicit"], problem, [drawn(0)]),
            gradients(METHODS["implicit"], plain, [drawn(0)]),
        )


def test_a_gradient_in_the_task_is_not_lost() -> None:
    problem, task = FewShot(made("mlp"), capture="replay"), drawn(0)
    task.support_x.requires_grad_()
    meta = {name: p.detach() for name, p in problem.begin().items()}
    state = STEPS.start(requires_grad_copy(problem.init(meta, task)))
    end = STEPS.advance(InnerObjective(problem, meta, task), state, 2, create_graph=True)
    end.params[next(iter(end.params))].sum().backward()
    assert task.support_x.grad is not None and task.support_x.grad.norm() > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit", "unrolled"])
def test_a_compiled_network_has_the_same_gradient(method: str) -> None:
    model, tasks = made("conv"), [drawn(seed) for seed in range(3)]
    expected = gradients(METHODS[method], FewShot(model, 1.0), tasks)
    compiled = FewShot(model, 1.0, capture="compile")
    agree(gradients(METHODS[method], compiled, tasks), expected, within=1e-10)


def test_a_captured_training_is_the_same_training(tmp_path: Path) -> None:
    norms = []
    for how in ("none", "replay"):
        folder = tmp_path / how
        words = ["metagrad=maml_batched", f"problem.capture={how}", "wandb=disabled"]
        words += ["steps=3", "validation.tasks=3", "test.tasks=3", "validation.every=3"]
        assert main(["train", *TINY, *words, f"run_dir={folder}"]) == 0
        norms.append([row["grad_norm"] for row in rows(folder)])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)  # float32, over 3 meta-steps


def test_copies_share_what_is_captured_and_pickles_do_not() -> None:
    problem = FewShot(made("mlp"), 1.0, capture="replay")
    assert copy.copy(problem).captured is problem.captured
    for apart in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert isinstance(apart.captured, Captured)
        assert apart.captured is not problem.captured
        agree(
            gradients(METHODS["implicit"], apart, [drawn(0)]),
            gradients(METHODS["implicit"], problem, [drawn(0)]),
        )


def test_an_unknown_way_to_capture_is_refused() -> None:
    with pytest.raises(UsageError, match="capture='fast': expected 'none', 'replay' or 'compile'"):
        FewShot(made("mlp"), capture="fast")  # type: ignore[arg-type]


def test_without_a_compiler_captured_operations_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **options: broken)
    model, tasks = made("mlp"), [drawn(seed) for seed in range(3)]
    with pytest.warns(UserWarning, match="torch.compile failed .no working C.. compiler") as seen:
        found = gradients(METHODS["implicit"], FewShot(model, 1.0, capture="compile"), tasks)
    assert len(seen) == 1
    agree(found, gradients(METHODS["implicit"], FewShot(model, 1.0), tasks))
