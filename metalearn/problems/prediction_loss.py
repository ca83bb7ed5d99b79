"""The losses of predictions, (T,), and the metrics that go with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.autograd import concrete
from metalearn.errors import UsageError

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function of outputs (T, n, ...) and targets (T, n, ...)."""

NAMED = ("squared_error", "binary_cross_entropy")
"""The names of losses that `select_loss` knows; None is a third choice."""


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return each task's mean loss, (T,): cross-entropy for integer targets, else squared error.

    Raises:
        UsageError: the targets have another shape than the outputs, or, for labels, than the
            outputs without their last axis; or a label is of no output.
    """
    tasks, regression = len(targets), targets.is_floating_point()
    shape = predictions.shape if regression else predictions.shape[:2]
    if targets.shape != shape:
        raise UsageError(
            f"targets of shape {tuple(targets.shape)} and type {targets.dtype}: expected "
            f"{tuple(shape)} beside outputs {tuple(predictions.shape)}. Reshape them, or give "
            "class labels as integers (T, n), such as y.argmax(-1) of one-hot rows."
        )
    if regression:
        return F.mse_loss(predictions, targets, reduction="none").reshape(tasks, -1).mean(dim=1)
    labels, outputs = targets.flatten().long(), predictions.shape[-1]
    try:
        losses = F.cross_entropy(predictions.flatten(0, 1), labels, reduction="none")
    except IndexError as error:
        raise UsageError(
            f"class labels from {int(labels.min())} to {int(labels.max())}: expected 0 to "
            f"{outputs - 1} beside {outputs} outputs. Give the model an output for each class."
        ) from error
    return losses.view(tasks, -1).mean(dim=1)


def binary_cross_entropy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return each task's mean binary cross-entropy over examples and labels, (T,).

    Args:
        predictions: logits, (T, n, K) or (T, n).
        targets: as `multi_label_targets` takes them.

    Raises:
        UsageError: as `multi_label_targets` does.
    """
    y = multi_label_targets(predictions, targets)
    losses = F.binary_cross_entropy_with_logits(predictions, y, reduction="none")
    return losses.reshape(len(losses), -1).mean(dim=1)


def multi_label_targets(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return targets in [0, 1] of the shape and type of the logits.

    Args:
        predictions: (T, n, K) or (T, n).
        targets: of the same shape; or (T, n) where K = 1; or integer class labels (T, n) where K >
            1, which become one-hot rows.

    Raises:
        UsageError: the targets have another shape, or a value outside of [0, 1].
    """
    shape, outputs = predictions.shape, predictions.shape[-1]
    labels = targets.shape == shape[:-1] and not targets.is_floating_point()
    if labels and outputs > 1:
        if concrete() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
            raise UsageError(
                f"class labels from {int(targets.min())} to {int(targets.max())}: expected 0 to "
                f"{outputs - 1} beside {outputs} outputs. Give the model an output for each class."
            )
        return F.one_hot(targets, outputs).to(predictions)
    if targets.shape == shape[:-1] and outputs == 1:
        targets = targets[..., None]
    if targets.shape != shape:
        raise UsageError(
            f"targets of shape {tuple(targets.shape)} and type {targets.dtype}: expected "
            f"{tuple(shape)}, a number from 0 to 1 for each output. Reshape them, or give class "
            "labels as integers (T, n)."
        )
    if concrete() and not ((targets >= 0) & (targets <= 1)).all():
        raise UsageError(
            "loss='binary_cross_entropy': expected targets from 0 to 1. Convert them, or choose "
            "another loss."
        )
    return targets.to(predictions)


def select_loss(loss: str | Loss | None) -> Loss:
    """Return the function that a choice of loss means; it returns (T,).

    Args:
        loss: None or "squared_error": `prediction_loss`; "binary_cross_entropy"; or a function of
            outputs and targets, as `own_loss` takes it.

    Raises:
        UsageError: the choice is unknown.
    """
    if callable(loss):
        return own_loss(loss)
    if loss is not None and loss not in NAMED:
        raise UsageError(
            f"loss={loss!r}: expected {', '.join(map(repr, NAMED))}, a function of outputs and "
            "targets, or None. Choose one."
        )
    return binary_cross_entropy if loss == "binary_cross_entropy" else prediction_loss


def own_loss(function: Loss) -> Loss:
    """Return a loss (T,) that averages what `function` returns over all axes but the first.

    Args:
        function: of outputs (T, n, ...) and targets (T, n, ...); returns (T,) or (T, ...). A task's
            values depend on its own outputs and targets alone.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        found = function(predictions, targets)
        tasks = len(predictions)
        if not isinstance(found, Tensor) or found.dim() == 0 or len(found) != tasks:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"loss={name} returns {shape} for {tasks} tasks: expected a tensor with a row for "
                f"each task, ({tasks}, ...). Leave the means over examples out, as by torch's "
                "reduction='none'."
            )
        return found.reshape(tasks, -1).mean(dim=1)

    return loss


def check_loss(loss: str | Loss | None, predictions: Tensor, targets: Tensor) -> None:
    """Raise UsageError if a loss cannot take these outputs and targets."""
    try:
        select_loss(loss)(predictions, targets)
    except UsageError:
        raise
    except Exception as error:  # whatever a user's function raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(
            f"loss={getattr(loss, '__name__', loss)}: expected a function of outputs "
            f"{tuple(predictions.shape)} and targets {tuple(targets.shape)}, and it fails "
            f"({reason}). Mend it, or choose other tasks."
        ) from error


@torch.no_grad()
def prediction_metrics(
    loss: str | Loss | None, predictions: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Return the metrics of predictions, each (T,); none for a regression.

    Integer labels (T, n) beside outputs (T, n, K): "accuracy", the share of examples whose largest
    output is their label's. Other targets of the binary cross-entropy: "label_accuracy", the share
    of labels on the right side of probability 1/2, and "exact_match", the share of examples all of
    whose labels are.
    """
    tasks = len(predictions)
    classes = not targets.is_floating_point() and targets.shape == predictions.shape[:-1]
    if classes and (loss in (None, "squared_error") or predictions.shape[-1] > 1):
        correct = predictions.argmax(dim=-1) == targets
        return {"accuracy": correct.to(predictions.dtype).reshape(tasks, -1).mean(dim=1)}
    if loss != "binary_cross_entropy":
        return {}
    right = (predictions > 0) == (multi_label_targets(predictions, targets) > 0.5)
    shares = right.to(predictions.dtype).reshape(tasks, predictions.shape[1], -1)
    return {"label_accuracy": shares.mean(dim=(1, 2)), "exact_match": shares.amin(2).mean(1)}


def check_targets(targets: Tensor) -> None:
    """Raise UsageError for a negative class, or floating-point targets that may be classes.

    These are both 0.0 and 1.0, and nothing else.
    """
    if not concrete() or not targets.numel():
        return
    if not targets.is_floating_point():
        if (least := int(targets.min())) < 0:
            raise UsageError(
                f"a class label is {least}: expected 0 or more, since no example is left out. Give "
                "tasks without it, or FewShot(loss=...) a loss of your own."
            )
        return
    zero, one = targets == 0, targets == 1
    if zero.any() and one.any() and (zero | one).all():
        raise UsageError(
            "targets are all 0.0 or 1.0: expected integer class labels (T, n), for the "
            "cross-entropy. Give y.long(), or y.argmax(-1) of one-hot rows; or set "
            "FewShot(loss='squared_error'), or 'binary_cross_entropy' for several labels."
        )
