"""The hyper-parameters of a whole training: rates, decays and strengths of augmentation.

minimise over meta  the mean loss on validation examples at the params that training reaches
where               training descends on  loss + sum over layers l of exp(decay_l) / 2 |params_l|^2

The loss is the mean over augmented training examples. exp(rate_l) multiplies the inner optimiser's
rate in layer l.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.problems.classifier import Classifier
from metalearn.problems.protocol import Meta, Params

MOVES = ("turn", "zoom", "shift", "shear")
"""The parts of a random affine map whose strengths are learned."""
GROUPS = ("rates", "decays", "strengths")
"""The groups of hyper-parameters, each a vector of logarithms."""


class PenalisedTraining(Classifier):
    """A `StochasticProblem` of image classification, with decays and strengths in meta.

    meta has some of "decays" (L,), an entry for each of the L layers in `layers`, and "strengths"
    (4,), an entry for each of `MOVES`. The others keep the values of `start`. A batch is (x, y),
    with images (b, c, h, w) and labels (b,) int64.

    An inner batch is turned by a normal angle of deviation exp(strength) radians, zoomed and
    sheared by such a factor, and shifted by such a share of half its size. Each image has draws of
    its own. The map is differentiable in the strengths (Jaderberg et al. 2015).

    Args:
        model: as in `Classifier`.
        start: the value of each of `GROUPS`, (L,), (L,) and (4,); a number gives all entries.

    Raises:
        UsageError: a group is absent or unknown, or not finite.
    """

    def __init__(self, model: nn.Module, start: Mapping[str, float | Tensor]) -> None:
        super().__init__(model)
        if sorted(start) != sorted(GROUPS):
            raise UsageError(
                f"start has {', '.join(sorted(start))}: expected {', '.join(GROUPS)}. Give a value "
                "for each."
            )
        named = list(model.named_parameters())
        self.layers = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in named))
        self.layer_of = {name: self.layers.index(name.rpartition(".")[0]) for name, _ in named}
        sizes = {"rates": len(self.layers), "decays": len(self.layers), "strengths": len(MOVES)}
        like = named[0][1].detach()
        self.start = {
            name: torch.as_tensor(start[name]).to(like).expand(size).clone()
            for name, size in sizes.items()
        }
        for name, value in self.start.items():
            if not bool((value < math.inf).all()):
                raise UsageError(f"start[{name!r}]={value}: expected logarithms. Give numbers.")

    def begin(self, learned: Sequence[str]) -> Meta:
        """Return the meta of the groups that are to be learned, at their start."""
        return {name: self.start[name].clone() for name in learned}

    def inner_loss(self, params: Params, meta: Meta, batch: Any) -> Tensor:
        x, y = batch
        decays = self.value("decays", meta).exp()
        squares = [decays[self.layer_of[name]] * p.square().sum() for name, p in params.items()]
        moved = augment(x, self.value("strengths", meta).exp())
        return F.cross_entropy(self.predict(params, moved), y) + torch.stack(squares).sum() / 2

    def value(self, group: str, meta: Meta) -> Tensor:
        """Return a group's logarithms: those in meta, or those of the start."""
        found: Tensor = meta[group] if group in meta else self.start[group]
        return found


class ScheduledTraining(PenalisedTraining):
    """The `RatedStochasticProblem` whose meta may have "rates" (L,) too."""

    def inner_rates(self, meta: Meta) -> dict[str, Tensor]:
        rates = self.value("rates", meta).exp()
        return {name: rates[layer] for name, layer in self.layer_of.items()}


def augment(x: Tensor, strengths: Tensor) -> Tensor:
    """Move each image by an affine map of its own.

    Args:
        x: images (b, c, h, w).
        strengths: (4,), the deviations of the normal draws of `MOVES`. 0 leaves images unmoved.

    Returns:
        images of the same shape, by bilinear interpolation; outside is what the border is.
    """
    count = len(x)
    draws = strengths[:, None] * torch.randn(len(MOVES), count, device=x.device, dtype=x.dtype)
    shift = strengths[2] * torch.randn(count, device=x.device, dtype=x.dtype)
    turn, zoom, across, shear = draws
    scale, cos, sin = zoom.exp(), turn.cos(), turn.sin()
    rows = [
        torch.stack([scale * cos, scale * (shear * cos - sin), across], dim=1),
        torch.stack([scale * sin, scale * (shear * sin + cos), shift], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
