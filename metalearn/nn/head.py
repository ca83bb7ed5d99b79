"""The last layer of a classifier, and its start.

A task's classes have no order. N learned class vectors therefore say nothing of the N classes that
a task will bring, and training must unlearn their differences (Ye & Chao 2022). A symmetric head
starts every class alike. The number of classes then belongs to the task and not to the model: one
initialisation serves 5-way and 20-way tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.autograd import concrete
from metalearn.errors import UsageError

HEADS = ("free", "zero", "tied", "prototypes", "solved")


class SymmetricHead(nn.Module):
    """The linear layer s (W f + b) whose class vectors, the rows of W, start alike.

    As a plain module it is the score of one class, (n, features) to (n, 1). `FewShot` gives W a row
    for each class of the task, so that its params hold "weight" of (T, ways, features).

    Args:
        features: the size of f.
        start: the start of the class vectors:
            - "zero": W = 0, not learned.
            - "tied": one learned vector for all classes. Softmax ignores what all classes share:
              with cross-entropy it equals "zero", and it is of use with other losses alone.
            - "prototypes": W = 2 c / features and b = -|c|^2 / features, where c is the mean
              feature of a class's support images (Proto-MAML, Triantafillou et al. 2020). W f + b
              then ranks the classes by distance.
            - "solved": the W that solves the task for the body in meta, held to 0 by the proximal
              term. The inner loop then begins with a small gradient.
        learn_scale: learn s, shared by all tasks; else s = 1. For gradient descent from zero, s
            scales the head's inner rate by its square.

    Raises:
        UsageError: `start` is not one of these.
    """

    def __init__(
        self,
        features: int,
        start: Literal["zero", "tied", "prototypes", "solved"] = "zero",
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor | None
        self.log_scale: Tensor | None
        if start not in HEADS[1:]:
            raise UsageError(
                f"start={start!r}: expected one of {', '.join(HEADS[1:])}. Choose one."
            )
        self.features, self.start = features, start
        if start == "tied":
            self.weight = nn.Parameter(torch.zeros(1, features))
        else:
            self.register_buffer("weight", torch.zeros(1, features), persistent=False)
        if start == "prototypes":
            self.register_buffer("bias", torch.zeros(1), persistent=False)
        else:
            self.register_buffer("bias", None)
        self.register_parameter("log_scale", nn.Parameter(torch.zeros(())) if learn_scale else None)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The names of the tensors that have a row for each class and that the inner loop moves."""
        return ("weight",) if self.bias is None else ("weight", "bias")

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.log_scale is None else y * self.log_scale.exp()


def make_head(kind: str, features: int, ways: int, learn_scale: bool = False) -> nn.Module:
    """Return the head of that kind; "free" is a linear layer of `ways` learned vectors and biases.

    Raises:
        UsageError: `kind` is unknown, or `learn_scale` is set for a free head.
    """
    if kind not in HEADS:
        raise UsageError(f"head={kind!r}: expected one of {', '.join(HEADS)}. Choose one of them.")
    if kind != "free":
        return SymmetricHead(features, kind, learn_scale)  # type: ignore[arg-type]
    if learn_scale:
        raise UsageError(
            "learn_scale=True: a free head learns its vectors' scale already. "
            "Set head=zero, tied or prototypes."
        )
    return nn.Linear(features, ways)


def class_means(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Return the mean feature of each class: (T, n, F) and (T, n) labels to (T, ways, F).

    Raises:
        UsageError: a label is not from 0 to ways - 1.
    """
    if concrete() and not 0 <= int(labels.min()) <= int(labels.max()) < ways:
        raise UsageError(
            f"class labels from {int(labels.min())} to {int(labels.max())}: expected 0 to "
            f"{ways - 1}. Number the classes of a task from 0."
        )
    classes = torch.arange(ways, device=labels.device)
    members = (labels[..., None] == classes).to(features.dtype)
    return members.mT @ features / members.sum(1)[..., None]
