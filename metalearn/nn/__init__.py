"""Models, and how any of them is run for many tasks at once."""

from metalearn.nn.conv4 import Conv4
from metalearn.nn.deq import DEQ
from metalearn.nn.mlp import MLP
from metalearn.nn.resnet12 import ResNet12
from metalearn.nn.task_batched import TaskBatched

__all__ = ["DEQ", "MLP", "Conv4", "ResNet12", "TaskBatched"]
