"""
MAML and iMAML on the same tasks
================================

Both methods learn an initialisation from which a network adapts to a new task. They differ in the
inner problem and in the way to its gradient. Here they train on the same few-shot tasks, from the
same start.
"""

# %%
# The tasks
# ---------
#
# ``glyphs`` are letters of many scripts, which come with matplotlib. Whole scripts are held out for
# the test. A task has 5 letters, with one image each to adapt on, and 3 images each to judge.

import copy
from functools import partial

import torch

from metalearn import Conv4, FewShot, GradientDescent, Implicit, Unrolled
from metalearn.inner import BacktrackingDescent
from metalearn.linear_solve import CG
from metalearn.tasks import ImageTasks
from metalearn.tasks.glyphs import glyphs
from metalearn.training.evaluation import evaluate

letters = partial(glyphs, drawings=4)  # 4 drawings of each letter; built once, then kept
tasks = ImageTasks(
    *(letters, 5, 1, 3, 3),  # ways, shots, and queries in training and test
    rotations=False,
    channels=1,
    image_size=28,
)
for split in ("train", "test"):
    print(split, len(tasks.classes(split)), "letters")

# %%
# The two methods
# ---------------
#
# - MAML takes a few inner steps on the support loss. Its gradient goes back through the steps.
# - iMAML adds a proximal term to the support loss, λ/2 \|φ - θ\|², which holds the adapted
#   parameters φ near the initialisation θ. Its gradient is that of the solution, by the implicit
#   function theorem. The steps to the solution take no memory.
#
# ``BacktrackingDescent`` lowers a task's rate until its objective falls. With a fixed rate the
# training of iMAML can collapse.

torch.manual_seed(0)
start = Conv4(ways=5, channels=8, head="zero", feature_norm=True)

methods = {
    "MAML": (FewShot, 0.0, Unrolled(GradientDescent(3, lr=0.1), backend="batched")),
    "iMAML": (FewShot, 2.0, Implicit(BacktrackingDescent(10, lr=0.1), CG(5))),
}

# %%
# Training
# --------
#
# The loop is the same for both, since a meta-gradient is a function of the problem, the
# meta-parameters and the tasks. ``metalearn.train`` is this loop with checkpoints, validation and
# logs. 15 meta-steps of 8 tasks are enough to see that both learn. They are far from enough for a
# comparison.


def train(problem, method, meta, steps=15):
    sampler = tasks.sampler("train", seed=0, device="cpu")
    adam = torch.optim.Adam(meta.values(), lr=3e-3)
    losses = []
    for _ in range(steps):
        result = method(problem, meta, sampler.sample(8))
        losses.append(result.outer_loss.mean().item())
        for name, value in meta.items():
            value.grad = result.grads[name]
        adam.step()
    return losses, result


trained = {}
for name, (make, prox, method) in methods.items():
    problem = make(copy.deepcopy(start), prox=prox)
    meta = problem.begin()
    losses, result = train(problem, method, meta)
    trained[name] = problem, method, meta, result
    print(f"{name}: loss {sum(losses[:5]) / 5:.2f} at first, {sum(losses[-5:]) / 5:.2f} at last")
    assert sum(losses[-5:]) < sum(losses[:5])

# %%
# The test
# --------
#
# Both are judged on the same 40 tasks of the held-out scripts. Chance is 20 %. The interval is the
# 95 % interval over tasks. It does not contain the variation over seeds.

for name, (problem, method, meta, _) in trained.items():
    scores = evaluate(problem, method, meta, tasks.sampler("test", seed=1, device="cpu"), tasks=40)
    print(f"{name}: {scores['accuracy'].percent()}")
    assert scores["accuracy"].mean > 0.25

# %%
# The certificate
# ---------------
#
# An implicit gradient comes with a measure of its error. ``relative_residual`` is that of the
# linear solve. A value near or above 1 says that the system is not solved. The status says why: 0
# is a converged solve, 1 is the end of the iterations, and 2 is negative curvature. There the
# Hessian is indefinite, so that the point is no minimum, and the theorem does not hold.
# Gauss-Newton curvature is never negative, and its solves converge.

problem, _, meta, _ = trained["iMAML"]
batch = tasks.sampler("test", seed=2, device="cpu").sample(4)
solver = CG(20, rtol=1e-2)
for curvature in ("hessian", "gauss_newton"):
    method = Implicit(BacktrackingDescent(10, lr=0.1), solver, curvature=curvature)
    certificate = method(problem, meta, batch).certificate
    print(
        f"{curvature}: largest residual {certificate.relative_residual.max():.1e}, "
        f"status {certificate.status.tolist()}"
    )
print("inner gradient norm", [round(norm, 3) for norm in certificate.inner_grad_norm.tolist()])

# %%
# MAML's gradient is exact for its three steps, and has no certificate. :doc:`/docs/certificates`
# has the meaning of each field and status, and :doc:`/docs/which_gradient` helps to choose.

assert trained["MAML"][3].certificate is None
