"""
Hyper-parameters of a whole training
====================================

A hyper-parameter is judged by the validation loss after a training. Its gradient goes through the
whole training. By the implicit function theorem this gradient costs one training and one linear
system, for any number of hyper-parameters. Here they are 200: a weight for each training example,
where half of the examples are mislabelled.
"""

# %%
# Data with wrong labels
# ----------------------
#
# The images are scikit-learn's digits. 200 are for training, and 100 of those get a wrong label.
# The validation examples have their true labels.

import torch
from torch import nn

from metalearn.inner import LBFGS
from metalearn.linear_solve import CG
from metalearn.metagrad import Implicit
from metalearn.problems.hyper_parameters import ExampleWeights
from metalearn.problems.training_task import TrainingTask
from metalearn.tasks.image_splits import Labelled, image_splits

torch.manual_seed(0)
data = image_splits("digits", None, seed=0, test=0.3, validation=0.3, train=200)
wrong = torch.zeros(200, dtype=torch.bool)
wrong[torch.randperm(200)[:100]] = True
shifted = (data.train.y + torch.randint(1, 10, (200,))) % 10
train = Labelled(data.train.x, torch.where(wrong, shifted, data.train.y))

# %%
# The problem
# -----------
#
# The inner problem trains a linear classifier on the weighted examples, with a weight decay. A
# weight is the sigmoid of its logit. The outer objective is the validation loss. One task is one
# training, which starts from zero weights.

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
problem = ExampleWeights(model, train, decay=0.01)
zeros = {name: torch.zeros(1, *p.shape) for name, p in model.named_parameters()}
meta = {"logits": torch.zeros(200)}

# %%
# The search
# ----------
#
# Each hyper-gradient solves the inner problem by L-BFGS, and the linear system by conjugate
# gradients. The next training starts where the last one ended. The inner problem is strongly
# convex, so that the theorem's assumptions hold.

method = Implicit(LBFGS(100, tol=1e-4), CG(50, rtol=1e-3))
adam = torch.optim.Adam(meta.values(), lr=0.5)
losses, params = [], zeros
for _ in range(15):
    task = TrainingTask(params, data.validation.x, data.validation.y)
    result = method(problem, meta, task)
    losses.append(result.outer_loss.item())
    params = result.inner.params
    meta["logits"].grad = result.grads["logits"]
    adam.step()
print(f"validation loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
print("inner gradient norm", result.certificate.inner_grad_norm.item())
print("relative residual", result.certificate.relative_residual.item())
assert losses[-1] < losses[0]

# %%
# What it found
# -------------
#
# The learned weights separate the clean examples from the mislabelled ones. They were never told
# which is which.

weights = torch.sigmoid(meta["logits"])
print(f"mean weight of clean examples      {weights[~wrong].mean():.2f}")
print(f"mean weight of mislabelled examples {weights[wrong].mean():.2f}")
assert weights[~wrong].mean() > weights[wrong].mean() + 0.2

test = TrainingTask(params, data.test.x, data.test.y)
unweighted = method(
    problem, {"logits": torch.zeros(200)}, TrainingTask(zeros, data.test.x, data.test.y)
)
_, metrics = problem.outer_objective(params, meta, test)
print(
    f"test accuracy {100 * metrics['accuracy'].item():.1f} %, with equal weights "
    f"{100 * unweighted.metrics['accuracy'].item():.1f} %"
)
assert metrics["accuracy"] > unweighted.metrics["accuracy"]

# %%
# ``metalearn solve hpo`` runs this search beside unrolled gradients and grid search, on more
# problems. See :doc:`/docs/hpo`.
