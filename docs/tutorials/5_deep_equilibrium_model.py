"""
A deep equilibrium model
========================

A deep equilibrium model (DEQ) is a layer whose output is a fixed point of a small network, its
cell. The layer is as deep as the fixed point needs, and its memory is that of one application of
the cell.
"""

# %%
# The model
# ---------
#
# The cell maps the state z and the input x to the next state. ``DEQ`` solves z = cell(z, x) by
# Anderson's method. Each sample stops by itself.

import torch
from torch import nn

from metalearn.fixed_point import Anderson
from metalearn.linear_solve import GMRES
from metalearn.nn import DEQ
from metalearn.tasks.image_splits import image_splits


class Cell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.state, self.inject = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, z, x):
        return torch.tanh(0.5 * self.state(z) + self.inject(x))


torch.manual_seed(0)
layer = DEQ(Cell(32), Anderson(50, rtol=1e-4), GMRES(30, restart=30, rtol=1e-4))
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), layer, nn.Linear(32, 10))

# %%
# Training
# --------
#
# The layer is trained like any module. The backward pass solves (I - J)'u = g by GMRES, where J is
# the derivative of the cell at the fixed point. The iterations of both solvers leave no graph.

data = image_splits("digits", None, seed=0, test=0.3, validation=0.2, train=900)
adam = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(6):
    for rows in torch.randperm(len(data.train)).split(100):
        loss = nn.functional.cross_entropy(model(data.train.x[rows]), data.train.y[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    print(
        f"epoch {epoch}: loss {loss.item():.3f}, "
        f"{layer.forward_solution.iterations.double().mean():.1f} forward and "
        f"{layer.backward_solution.iterations.double().mean():.1f} backward iterations"
    )

# %%
# The test, and the certificates
# ------------------------------
#
# ``forward_solution`` and ``backward_solution`` are the solves of the last pass, a value for each
# sample. A forward solve that has not converged is no fixed point, and its gradient is that of no
# layer. Look at ``converged`` before you trust one.

with torch.no_grad():
    accuracy = (model(data.test.x).argmax(1) == data.test.y).double().mean().item()
print(f"test accuracy {100 * accuracy:.1f} %")
print("fixed points found for", int(layer.forward_solution.converged.sum()), "of", len(data.test))
print(
    "largest residual of the backward solve", layer.backward_solution.relative_residual.max().item()
)
assert accuracy > 0.85
assert layer.forward_solution.converged.all() and layer.backward_solution.converged.all()

# %%
# How stable is it?
# -----------------
#
# The iteration contracts where the spectral radius of J is below 1. Training may raise it.
# ``jacobian_norm`` is a penalty that keeps it low. See :doc:`/docs/deq`.

x = model[1](model[0](data.test.x[:64]))
radius = layer.spectral_radius(layer(x), x)
print(f"spectral radius of J: {radius.max().item():.2f} at most")
assert radius.max() < 1
