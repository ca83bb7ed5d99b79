from __future__ import annotations

import torch

torch.set_num_threads(1)  # the tests' tensors are small; pytest-xdist brings the parallelism
