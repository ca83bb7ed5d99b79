"""The hyper-parameters as meta-parameters: penalties, weight decays, weights of examples.

minimise over meta  the validation loss at params*(meta)
where               params*(meta) minimises the training loss that meta defines

Each problem holds its training examples. The validation examples, and the params at which a
training begins, are the task's (`Starts`), so that a warm start is another task. A smooth map keeps
each hyper-parameter in its domain, so that any real number is legal: exp for a penalty, a sigmoid
for an example's weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.problems.prediction_loss import prediction_loss
from metalearn.problems.protocol import Meta, Params
from metalearn.problems.training_task import Training, TrainingTask
from metalearn.tasks.image_splits import Labelled
from metalearn.tree import task_half_square

FLOOR = 1e-6
"""The decay of all parameters of a linear model.

It determines the constant that softmax leaves free in the biases.
"""


class FixedExamples(Training):
    """A training problem whose examples are not learned."""

    def __init__(self, model: nn.Module, train: Labelled, decay: float) -> None:
        super().__init__(model, decay)
        self.train = train

    def examples(self, meta: Meta) -> tuple[Tensor, Tensor]:
        return self.train.x, self.train.y


class FeaturePenalties(FixedExamples):
    """The learned penalties of a linear model's features.

    inner = loss + sum over features i and outputs of exp(l_i) w_i^2 / 2 (+ FLOOR / 2 |.|^2).

    With targets it is ridge regression, with labels multinomial logistic regression. meta is
    {"common": ()}, with l_i = common. It may have "own": (features,) too, with l_i = common +
    spread own_i. Then prior |own|^2 / 2 is added to the outer objective, but not to its metric
    "loss".

    With the prior 1 / (number of validation examples) that is a normal prior, of standard deviation
    `spread`, on the features' deviations from the common logarithm. It keeps many penalties from
    fitting a small validation set's noise.

    Raises:
        UsageError: `spread` is not above 0, or `prior` is negative.
    """

    def __init__(
        self, train: Labelled, outputs: int, spread: float = 1.0, prior: float = 0.0
    ) -> None:
        if not (0 < spread < math.inf and 0 <= prior < math.inf):
            raise UsageError(
                f"spread={spread}, prior={prior}; expected a number above 0 and one of at least 0"
            )
        super().__init__(nn.Linear(train.x.shape[1], outputs), train, FLOOR)
        self.outputs, self.spread, self.prior = outputs, spread, prior

    def begin(self, log: float, per_feature: bool) -> Meta:
        """Return the meta in which every penalty is exp(log)."""
        common = self.train.x.new_full((), log)
        own = {"own": torch.zeros_like(self.train.x[0])} if per_feature else {}
        return {"common": common, **own}

    def zeros(self) -> Params:
        """Return zero params of one task, at which to begin."""
        features = self.train.x.shape[1]
        shapes = {"weight": (1, self.outputs, features), "bias": (1, self.outputs)}
        return {name: self.train.x.new_zeros(shape) for name, shape in shapes.items()}

    def log_penalties(self, meta: Meta) -> Tensor:
        """Return the logarithms of the penalties, (features,) or ()."""
        found: Tensor = meta["common"]
        return found + self.spread * meta["own"] if "own" in meta else found

    def curvature(self, meta: Meta) -> float:
        """Return an upper bound on the inner Hessian's largest eigenvalue, at any params."""
        x = torch.cat([self.train.x, torch.ones_like(self.train.x[:, :1])], dim=1)
        largest = torch.linalg.eigvalsh(x.T @ x / len(x))[-1]
        # The second derivative of the squared error; and a bound on that of softmax.
        factor = 2.0 if self.train.y.is_floating_point() else 0.5
        return float(factor * largest + self.log_penalties(meta).exp().max()) + FLOOR

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TrainingTask) -> Tensor:
        scaled = (self.log_penalties(meta) / 2).exp() * outputs["params"]["weight"]
        return super().inner_loss(outputs, meta, task) + task_half_square(scaled)

    def outer_objective(
        self, params: Params, meta: Meta, task: TrainingTask
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().outer_objective(params, meta, task)
        metrics = {"loss": loss.detach(), **metrics}
        if "own" not in meta:
            return loss, metrics
        return loss + self.prior / 2 * meta["own"].square().sum(), metrics


class ParameterDecays(FixedExamples):
    """The learned decays, one for each number of the network.

    inner = loss + sum_i exp(l_i) w_i^2 / 2. meta is {name: the logarithms l, of the parameter's own
    shape}.
    """

    def __init__(self, model: nn.Module, train: Labelled) -> None:
        super().__init__(model, train, decay=0.0)

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TrainingTask) -> Tensor:
        scaled = [(meta[name] / 2).exp() * p for name, p in outputs["params"].items()]
        loss = super().inner_loss(outputs, meta, task)
        return loss + sum(task_half_square(p) for p in scaled)


class ExampleWeights(FixedExamples):
    """The learned weights of training examples, which say which examples to trust.

    inner = mean_n sigmoid(logit_n) loss_n + decay / 2 |w|^2, with loss_n as `prediction_loss` has
    it. meta is {"logits": (n,)}, one for each training example.
    """

    def weights(self, meta: Meta) -> Tensor:
        """Return the weights of the examples, (n,)."""
        return torch.sigmoid(meta["logits"])

    def inner_loss(self, outputs: dict[str, Any], meta: Meta, task: TrainingTask) -> Tensor:
        y = self.train.y.expand(len(task), *self.train.y.shape)
        # Each example stands alone, as a task of its own would.
        alone = [x.flatten(0, 1).unsqueeze(1) for x in (outputs["predictions"], y)]
        losses = prediction_loss(*alone)
        loss = (self.weights(meta) * losses.view(len(task), -1)).mean(dim=1)
        return loss + self.decay * sum(task_half_square(p) for p in outputs["params"].values())


class ExampleInfluence(ExampleWeights):
    """The influence of each training example on the validation loss.

    inner = mean_n weight_n loss_n + decay / 2 |w|^2. meta is {"weights": (n,)}. At weights of 1 the
    implicit gradient, with its sign changed, is the first-order effect of leaving each example out
    (Koh & Liang 2017, equation 2, summed over the validation examples). One gradient has the
    influence of all examples.
    """

    def begin(self) -> Meta:
        """Return the weights with which every example counts once."""
        return {"weights": self.train.x.new_ones(len(self.train.x))}

    def without(self, example: int) -> Meta:
        """Return the weights that leave one example out."""
        weights = self.begin()["weights"]
        weights[example] = 0.0
        return {"weights": weights}

    def weights(self, meta: Meta) -> Tensor:
        found: Tensor = meta["weights"]
        return found
