"""A tiny run that several tests train: glyphs in an MLP, a few steps of a second in all."""

from __future__ import annotations

import json
from pathlib import Path

from metalearn.commands.main import main

TINY = [
    "tasks=glyphs",
    "tasks.dataset.drawings=4",
    "model=mlp",
    "model.sizes=[784,8,5]",
    "steps=6",
    "meta_batch=3",
    "validation.every=3",
    "validation.tasks=6",
    "test.tasks=8",
    "metagrad.inner.steps=3",
    "threads=1",
]


def run(folder: Path, *words: str) -> int:
    return main(["train", *TINY, f"run_dir={folder}", *words])


def conv_run(folder: Path, *words: str) -> Path:
    """The best checkpoint of a tiny run of MAML with a network that has batch norm."""
    own = [
        "model=conv4",
        "model.head=free",
        "model.channels=4",
        "metagrad=maml_batched",
        "wandb=disabled",
    ]
    tiny = [word for word in TINY if not word.startswith("model")]
    assert main(["train", *tiny, *own, f"run_dir={folder}", *words]) == 0
    return folder / "best.pt"


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows(folder)]
