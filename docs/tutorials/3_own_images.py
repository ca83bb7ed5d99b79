"""
Your own images
===============

A network is trained on many classes of your images. Then it learns new classes from a few images
each, and predicts them. Four commands do this: ``train``, ``evaluate``, ``adapt`` and ``predict``.
Each is shown as it is typed in a terminal.
"""

# %%
# A folder for each class
# -----------------------
#
# Put your images into ``photos/CLASS/IMAGE``. Sizes and modes may differ. This page makes its own:
# 12 classes of noisy textures in ``photos/``, and 3 other classes in ``new/`` and ``unknown/``.

import os
import shlex
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from metalearn.commands.main import main

folder = Path(tempfile.mkdtemp())
random = np.random.default_rng(0)
for label in range(15):
    colour = random.integers(0, 256, 3)
    for number in range(10):
        pixels = colour + random.normal(0, 20, (32, 40, 3))
        pixels[:, : 40 // (1 + label % 3)] *= 0.6
        place = f"photos/class{label}" if label < 12 else "unknown"
        if label >= 12 and number < 3:
            place = f"new/class{label}"
        path = folder / place / f"class{label}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def run(command):
    """Run a command in the folder of the images."""
    os.chdir(folder)
    assert main(shlex.split(command)[1:]) == 0


# %%
# Train
# -----
#
# The classes are split into those for training, validation and test. The options of the model and
# the small number of meta-steps are for this page alone. Leave them out for photos.

run(
    "metalearn train data=photos tasks.ways=2 tasks.image_size=28 model.channels=8 "
    "metagrad=maml_batched steps=10 meta_batch=4 validation.every=5 validation.tasks=20 "
    "test.tasks=20 run_dir=runs/photos wandb=disabled"
)

# %%
# Evaluate
# --------
#
# The accuracy is that on classes which were not trained on. ``ways`` and ``shots`` are those of
# the work to come.

run("metalearn evaluate checkpoint=runs/photos/best.pt ways=2 shots=3 tasks=40")

# %%
# Adapt
# -----
#
# ``new/CLASS/IMAGE`` has three images of each new class. The result is one file, which needs
# neither the run nor its data.

run("metalearn adapt checkpoint=runs/photos/best.pt support=new out=mine.pt")

# %%
# Predict
# -------
#
# The rows of the table are the images, with the predicted class and the probability of each class.

run("metalearn predict checkpoint=mine.pt images=unknown out=predictions.csv")

import pandas as pd

rows = pd.read_csv(folder / "predictions.csv")
right = [label in path for path, label in zip(rows.path, rows.label, strict=True)]
print(f"{sum(right)} of {len(right)} are right")
assert sum(right) > len(right) / 2

# %%
# :doc:`/docs/your_images` has the options of each command, and :doc:`/docs/data` the layouts and
# file types.
