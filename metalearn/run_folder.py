"""A run's folder: config.yaml, metrics.jsonl, best.pt, last.pt, summary.json; and its W&B run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.tracking import Tracker


@dataclass
class RunFolder:
    """Opened by `with`; `resume` adds to the rows that are there."""

    folder: Path
    config: DictConfig
    resume: bool

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    def cut(self, step: int) -> None:
        """Drops the rows after `step`, which the resumed run makes again."""
        path = self.folder / "metrics.jsonl"
        rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        _write(path, "".join(f"{line}\n" for line in rows))

    def __enter__(self) -> RunFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        self._rows = (self.folder / "metrics.jsonl").open("a" if self.resume else "w", buffering=1)
        return self

    def start(self, say: Any) -> None:
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        self._tracker = Tracker(
            self.folder, config, mode=self.config.wandb, name=self.config.name, warn=say
        )

    def log(self, row: dict[str, Any]) -> None:
        self._rows.write(json.dumps(row) + "\n")
        self._tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def finish(self, summary: dict[str, Any]) -> None:
        _write(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        shown = [k for k in summary if isinstance(summary[k], int | float | str)]
        self._tracker.table("comparison", shown, [[summary[k] for k in shown]])
        self._tracker.finish(summary)

    def __exit__(self, *error: object) -> None:
        self._rows.close()
        if hasattr(self, "_tracker"):
            self._tracker.finish({})

    def written(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
