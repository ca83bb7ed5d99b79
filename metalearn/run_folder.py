"""A run's folder: config.yaml, metrics.jsonl, best.pt, last.pt, summary.json; and its W&B run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.errors import UsageError
from metalearn.files import replace_text
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

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all meta-steps. A last line that a crash cut short is none.

        Raises:
            UsageError: the file is not there, or another line is no row.
        """
        try:
            lines = self._metrics.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{self._metrics} is absent or cannot be read; put it back, or train anew"
            ) from error
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                row["step"], row["step_s"]
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines):
                    break
                raise UsageError(
                    f"line {number} of {self._metrics} is no row of a run; mend it, or train anew"
                ) from error
            rows.append(row)
        return rows

    def cut(self, step: int) -> None:
        """Drops the rows after `step`, which the resumed run makes again; raises as `rows` does."""
        rows = [_json(row) for row in self.rows() if row["step"] <= step]
        try:
            replace_text(self._metrics, "".join(f"{row}\n" for row in rows))
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> RunFolder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
            self._rows = self._metrics.open("a" if self.resume else "w", buffering=1)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"run_dir={self.folder} cannot be written ({error.strerror}); choose another folder"
        )

    def start(self, say: Any, wandb_id: str | None) -> None:
        """Starts the W&B run; `wandb_id` is that of the run which is resumed."""
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        self._tracker = Tracker(
            self.folder,
            config,
            mode=self.config.wandb,
            name=self.config.name,
            run_id=wandb_id,
            warn=say,
        )

    @property
    def wandb_id(self) -> str | None:
        return self._tracker.run_id

    def log(self, row: dict[str, Any]) -> None:
        self._rows.write(_json(row) + "\n")
        self._tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def finish(self, summary: dict[str, Any]) -> None:
        replace_text(self.folder / "summary.json", _json(summary, indent=2) + "\n")
        shown = [k for k in summary if isinstance(summary[k], int | float | str)]
        self._tracker.table("comparison", shown, [[summary[k] for k in shown]])
        self._tracker.finish(summary)

    def __exit__(self, *error: object) -> None:
        self._rows.close()
        if hasattr(self, "_tracker"):
            self._tracker.finish({})

    def written(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))


def _json(values: dict[str, Any], indent: int | None = None) -> str:
    """JSON knows no infinity and no nan: null stands for them."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return json.dumps(finite, indent=indent, allow_nan=False)
