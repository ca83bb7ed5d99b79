"""Task samplers, and the datasets from which they draw."""

from metalearn.tasks.batch import TaskBatch
from metalearn.tasks.images import LabelledImages
from metalearn.tasks.sampler import ImageTaskSampler
from metalearn.tasks.sinusoid import SinusoidSampler, SinusoidTasks
from metalearn.tasks.source import ImageTasks, Sampler, Tasks

__all__ = [
    "ImageTaskSampler",
    "ImageTasks",
    "LabelledImages",
    "Sampler",
    "SinusoidSampler",
    "SinusoidTasks",
    "TaskBatch",
    "Tasks",
]
