"""The models, and the means to run any model for many tasks at once."""

from metalearn.nn.body import Body, body_and_head
from metalearn.nn.conv4 import Conv4
from metalearn.nn.deq import DEQ
from metalearn.nn.head import SymmetricHead
from metalearn.nn.mlp import MLP
from metalearn.nn.resnet12 import ResNet12
from metalearn.nn.task_batched import TaskBatched

__all__ = [
    "DEQ",
    "MLP",
    "Body",
    "Conv4",
    "ResNet12",
    "SymmetricHead",
    "TaskBatched",
    "body_and_head",
]
