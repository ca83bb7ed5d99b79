"""The distillation of images, and the accuracy of models trained on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.inner import GradientDescent
from metalearn.linear_solve import Status
from metalearn.metagrad import FirstOrder, MetaGradient, MetaGradientResult
from metalearn.problem import Meta, Params
from metalearn.problems.distillation import Distillation
from metalearn.problems.training_task import TrainingTask, fresh
from metalearn.studies.frame import Row
from metalearn.system.memory import peak_bytes
from metalearn.tasks.image_splits import CLASSES, Labelled, Splits
from metalearn.training.optimiser import descend


@dataclass(frozen=True)
class Judge:
    """A training on a few images: its decay and its descent."""

    decay: float
    inner: GradientDescent


@dataclass(frozen=True)
class Distilled:
    """The images with the best validation accuracy, and the curve and figures of the search."""

    images: Tensor
    curve: list[Row]
    figures: dict[str, Any]


def distil(
    model: Callable[[], nn.Module],
    metagrad: MetaGradient,
    data: Splits,
    decay: float,
    starts: int,
    batch: int,
    steps: int,
    lr: float,
    every: int,
) -> Distilled:
    """Optimise ten images by Adam, from real images, and validate them every `every` steps.

    Each meta-step draws new weights to train, and a batch of real images for the outer loss.
    """
    train, device = data.train, data.train.x.device
    problem = Distillation(model(), torch.arange(CLASSES, device=device), decay)
    meta = {"images": one_a_class(train)}
    held_out = TrainingTask(fresh(model, starts, device), data.validation.x, data.validation.y)

    def task() -> TrainingTask:
        chosen = torch.randperm(len(train))[:batch].to(device)
        return TrainingTask(fresh(model, starts, device), train.x[chosen], train.y[chosen])

    def validate(meta: Meta) -> float:
        params = metagrad.adapt(problem, meta, held_out).params
        return percent(problem.outer_objective(params, meta, held_out)[1]["accuracy"])

    first = task()
    peak = peak_bytes(lambda: metagrad(problem, meta, first), device)[1]
    best, kept, spent = validate(meta), meta["images"], 0.0
    curve: list[Row] = [{"what": "curve", "step": 0, "train_s": 0.0, "validation_accuracy": best}]
    certificates: list[dict[str, float]] = []
    resumed = time.perf_counter()

    def after(step: int, meta: Meta, result: MetaGradientResult) -> None:
        nonlocal best, kept, spent, resumed
        certificates.append(_certificate(result))
        if step % every and step != steps:
            return
        spent += time.perf_counter() - resumed  # without the validations
        score = validate(meta)
        curve.append(
            {"what": "curve", "step": step, "train_s": spent, "validation_accuracy": score}
        )
        if score > best:
            best, kept = score, meta["images"]
        resumed = time.perf_counter()

    descend(problem, metagrad, meta, task, steps, lr, after)
    figures = {"peak_bytes": peak, "step_s": spent / steps}
    for name in certificates[0]:
        figures[name] = sum(c[name] for c in certificates) / steps
    return Distilled(kept, curve, figures)


def _certificate(result: MetaGradientResult) -> dict[str, float]:
    """Return the accuracy of one meta-gradient's solves: means over the tasks."""
    found = {"inner_grad_norm": float(result.inner.grad_norm.mean())}
    certificate = result.certificate
    if certificate is None or certificate.status is None:
        return found
    assert certificate.relative_residual is not None and certificate.iterations is not None
    negative = certificate.status == Status.NEGATIVE_CURVATURE
    return found | {
        "relative_residual": float(certificate.relative_residual.mean()),
        "solver_iterations": float(certificate.iterations.double().mean()),
        "negative_curvature": float(negative.double().mean()),
    }


def judged(
    model: Callable[[], nn.Module],
    examples: Labelled,
    data: Splits,
    judges: Sequence[Judge],
    starts: int,
) -> dict[str, Any]:
    """Return the test accuracy of models trained on `examples`.

    They are trained by the judge with the best validation accuracy.
    """
    params = fresh(model, starts, examples.x.device)
    found = [(_scores(model(), examples, data, judge, params), judge) for judge in judges]
    (validation, test), judge = max(found, key=lambda pair: pair[0][0])
    return {
        "validation_accuracy": validation,
        "accuracy": test,
        "judge_decay": judge.decay,
        "judge_steps": judge.inner.steps,
    }


def _scores(
    model: nn.Module, examples: Labelled, data: Splits, judge: Judge, params: Params
) -> tuple[float, float]:
    """Return the accuracy on the validation split and on the test split."""
    problem, meta = Distillation(model, examples.y, judge.decay), {"images": examples.x}
    held_out = TrainingTask(params, data.validation.x, data.validation.y)
    end = FirstOrder(judge.inner).adapt(problem, meta, held_out).params

    def accuracy(part: Labelled) -> float:
        return percent(
            problem.outer_objective(end, meta, TrainingTask(end, part.x, part.y))[1]["accuracy"]
        )

    return accuracy(data.validation), accuracy(data.test)


def one_a_class(data: Labelled) -> Tensor:
    """Return a random image of each class, (classes, ...)."""
    chosen = []
    for label in range(CLASSES):
        of_class = (data.y == label).nonzero()[:, 0]
        chosen.append(of_class[torch.randint(len(of_class), ())])
    return data.x[torch.stack(chosen)]


def class_means(data: Labelled) -> Tensor:
    return torch.stack([data.x[data.y == label].mean(0) for label in range(CLASSES)])


def percent(accuracy: Tensor) -> float:
    """Return the mean over the tasks, in percent."""
    return 100 * float(accuracy.double().mean())
