"""Task samplers, and the datasets from which they draw."""

from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.sampler import ImageTaskSampler
from metalearn.tasks.sinusoid import SinusoidSampler, SinusoidTasks
from metalearn.tasks.source import ImageTasks, Sampler, Tasks
from metalearn.tasks.tensor_sampler import TensorTaskSampler
from metalearn.tasks.tensors import DatasetTasks, TensorTasks

__all__ = [
    "DatasetTasks",
    "ImageTaskSampler",
    "ImageTasks",
    "LabelledImages",
    "Sampler",
    "SinusoidSampler",
    "SinusoidTasks",
    "TaskBatch",
    "Tasks",
    "TensorTaskSampler",
    "TensorTasks",
]
