"""The functions of torch that need another rule when a module runs on one task's examples.

- A batch norm takes its statistics from the first examples where that is asked for, wherever in a
  module it is called, as a layer or as a function.
- `torch.func.vmap` gives the padding row of an embedding a gradient. Here it has none.
- The gradient of an embedding bag has no derivative in torch. Here a bag is made of an embedding.
- What a function would write to its weights or its running averages is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.errors import UsageError
from metalearn.nn import normalisation


class TaskFunctions(TorchFunctionMode):
    """The context in which a module's forward runs on the examples of one task, (n, ...).

    Args:
        examples: n.
        statistics_from: the number of leading examples that give batch norm its statistics. None:
            all. 0: no batch norm may take statistics from the batch.
    """

    def __init__(self, examples: int, statistics_from: int | None = None) -> None:
        super().__init__()
        self.examples, self.statistics_from = examples, statistics_from

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        rule = RULES.get(func)
        if rule is None:
            return func(*args, **kwargs or {})
        return rule(self, *args, **kwargs or {})

    def batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        _refuse_averages("batch_norm", running_mean, running_var)
        if self.statistics_from is None:
            return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
        if self.statistics_from == 0:
            raise UsageError(
                "batch_norm(training=True): expected a layer, which keeps the statistics of the "
                "population. Use nn.BatchNorm2d, or statistics='task'."
            )
        if len(x) != self.examples:
            raise UsageError(
                f"batch_norm of {tuple(x.shape)}: expected the {self.examples} examples along the "
                "first axis, of which the first give the statistics. Normalise before reshaping."
            )
        gain = x.new_ones(x.shape[1]) if weight is None else weight
        shift = x.new_zeros(x.shape[1]) if bias is None else bias
        return normalisation.batch_norm(x, gain, shift, eps, self.statistics_from)

    def instance_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if use_input_stats:
            _refuse_averages("instance_norm", running_mean, running_var)
        return F.instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )

    def embedding(
        self,
        indices: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        _refuse_options("Embedding", max_norm, scale_grad_by_freq)
        return F.embedding(indices, _held(weight, padding_idx))

    def embedding_bag(
        self,
        indices: Tensor,
        weight: Tensor,
        offsets: Tensor | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Tensor:
        _refuse_options("EmbeddingBag", max_norm, scale_grad_by_freq)
        if offsets is not None or indices.dim() != 2:
            raise UsageError(
                f"EmbeddingBag of indices {tuple(indices.shape)}: expected bags of one size, (n, "
                "size), without offsets. Fill the bags up with padding_idx."
            )
        present = torch.ones_like(indices, dtype=torch.bool)
        if padding_idx is not None:
            present = indices != padding_idx % len(weight)
        rows = F.embedding(indices, weight)
        if mode == "max":
            largest = rows.masked_fill(~present[..., None], -torch.inf).max(dim=1).values
            return torch.where(present.any(1)[:, None], largest, 0.0)
        shares = present.to(rows.dtype)
        if per_sample_weights is not None:
            shares = shares * per_sample_weights
        total = (rows * shares[..., None]).sum(1)
        return total if mode == "sum" else total / shares.sum(1).clamp(min=1)[:, None]


def _held(weight: Tensor, row: int | None) -> Tensor:
    """Return the weight with a row that has no gradient; None: as it is."""
    if row is None:
        return weight
    rows = torch.arange(len(weight), device=weight.device) == row % len(weight)
    return torch.where(rows[:, None], weight.detach(), weight)


def _refuse_averages(name: str, *averages: Tensor | None) -> None:
    if any(average is not None for average in averages):
        raise UsageError(
            f"{name} with running averages in training: expected none, since tasks would share "
            "them. Set track_running_stats=False, or call eval() to keep them as constants."
        )


def _refuse_options(name: str, max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None:
        raise UsageError(
            f"{name}(max_norm={max_norm}): expected None, since its forward writes to the weights "
            "that the inner loop differentiates. Leave max_norm out."
        )
    if scale_grad_by_freq:
        raise UsageError(
            f"{name}(scale_grad_by_freq=True): expected False, since the result is no gradient. "
            "Leave scale_grad_by_freq out."
        )


_C_NAMES = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")


def _c_batch_norm(mode: TaskFunctions, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Apply the rule to `torch.batch_norm`, whose arguments have another order."""
    given = dict(zip(_C_NAMES, args, strict=False)) | kwargs
    given.pop("cudnn_enabled", None)
    return mode.batch_norm(x, **given)


def _c_native_batch_norm(mode: TaskFunctions, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    given = dict(zip(_C_NAMES, args, strict=False)) | kwargs
    if given["training"]:
        _refuse_averages("native_batch_norm", given["running_mean"], given["running_var"])
        if mode.statistics_from is not None:
            raise UsageError(
                "native_batch_norm(training=True): expected torch.nn.functional.batch_norm, which "
                "can take its statistics from some of the examples. Call that."
            )
    return torch.native_batch_norm(x, *given.values())


def _c_instance_norm(mode: TaskFunctions, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    given = dict(zip(_C_NAMES, args, strict=False)) | kwargs
    given.pop("cudnn_enabled", None)
    if "training" in given:
        given["use_input_stats"] = given.pop("training")
    return mode.instance_norm(x, **given)


def _c_embedding(
    mode: TaskFunctions,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    row = None if padding_idx < 0 else padding_idx
    return mode.embedding(indices, weight, row, scale_grad_by_freq=scale_grad_by_freq)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: TaskFunctions.batch_norm,
    F.instance_norm: TaskFunctions.instance_norm,
    F.embedding: TaskFunctions.embedding,
    F.embedding_bag: TaskFunctions.embedding_bag,
    torch.batch_norm: _c_batch_norm,
    torch.native_batch_norm: _c_native_batch_norm,
    torch.instance_norm: _c_instance_norm,
    torch.embedding: _c_embedding,
}
"""The functions that a module may call, and what is run in their place."""
