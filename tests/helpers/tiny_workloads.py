"""One small smooth workload of each method, for the tests of the study of speed."""

from __future__ import annotations

import torch

from metalearn.studies.speed.workloads import Workload

CPU = torch.device("cpu")
TINY = {
    "imaml": Workload("imaml", 2, 3, 1, 2, 3, 2, channels=4, activation="silu"),
    "maml": Workload("maml", 2, 3, 1, 2, 3, channels=4, activation="silu"),
}
