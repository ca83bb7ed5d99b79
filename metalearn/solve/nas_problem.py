"""Architecture search as a bilevel problem: the weights of the mixtures are the meta-parameters."""

from __future__ import annotations

from torch import Tensor, nn

from metalearn.problem import Meta, Params
from metalearn.solve.image_splits import Labelled
from metalearn.solve.training import Training


class Search(Training):
    """Mixture weights such that the network trained with them does well on the validation split
    (DARTS, Liu et al. 2019).

    meta = {"edge_0_1.alpha": (operations,), ...}, the model's other parameters are trained. The
    outer objective depends on meta directly, so that every meta-gradient applies: with a descent
    of one step `FirstOrder` is DARTS' first order, `Unrolled(truncate=1)` its second.
    """

    def __init__(self, model: nn.Module, train: Labelled, decay: float) -> None:
        super().__init__(model, decay)
        self.train = train

    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        return self.train.x, self.train.y

    def predict(self, params: Params, meta: Meta, x: Tensor) -> Tensor:
        tasks = len(next(iter(params.values())))
        shared = {name: alpha.expand(tasks, *alpha.shape) for name, alpha in meta.items()}
        return super().predict({**params, **shared}, meta, x)


def parted(params: Params) -> tuple[Params, dict[str, Tensor]]:
    """A supernet's params (T, ...) as weights, (T, ...), and the mixtures' alphas, without a task
    axis: they all begin as one."""
    alphas = {name: p[0] for name, p in params.items() if name.endswith(".alpha")}
    return {name: p for name, p in params.items() if name not in alphas}, alphas
