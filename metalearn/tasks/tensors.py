"""Tasks of a user's own arrays and datasets: vectors, series or images, classes or targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import UsageError, check_known
from metalearn.tasks.drawn_splits import MODE_OF, MODES, check_fractions, draw
from metalearn.tasks.table import read_table
from metalearn.tasks.tensor_sampler import TensorTaskSampler

Splits = Sequence[float] | Mapping[str, Sequence[Any]] | Sequence[str] | np.ndarray


class TensorTasks:
    """The tasks of N examples in memory.

    Classification: a task has `ways` classes, drawn from those of a split, with labels 0 .. ways -
    1. Regression: a task is one group of examples, such as one patient or one function; support and
    query are drawn from the group.

    Args:
        x: (N, ...) tensor or array; (N,) becomes (N, 1). Floating-point values and flags become
            `torch.get_default_dtype()`. Bytes are scaled to [0, 1], as those of images. Other whole
            numbers, such as tokens, become int64.
        y: (N,) whole numbers or texts, the class of each example; or (N,) or (N, outputs)
            floating-point targets of a regression.
        ways: the number of classes of a task; not for a regression.
        shots, queries: the number of support and of query examples of each class; a sequence has
            one number for each of the labels 0 .. ways - 1. Of a regression: of the task.
        test_queries: `queries` of validation and test; None: the same.
        groups: (N,) whole numbers or texts, the task of each example of a regression.
        splits: the split of each class, or of each group: three fractions, by which `seed` draws
            them; or a list of names for each of "train", "validation" and "test". Or the split of
            each example, N texts, so that splits may share classes.
        seed: of the drawn splits.

    Raises:
        UsageError: the arrays do not fit each other, a value is not finite, or a number is out of
            its range. `sampler` refuses a split that is too small for a task.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        ways: int = 5,
        shots: int | Sequence[int] = 1,
        queries: int | Sequence[int] = 5,
        test_queries: int | Sequence[int] | None = None,
        groups: Any = None,
        splits: Splits = (0.6, 0.2, 0.2),
        seed: int = 0,
    ) -> None:
        self.x = _inputs(x)
        targets = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
        self.targets: Tensor | None = None
        if targets.dtype.kind == "f":
            if groups is None:
                raise UsageError(
                    "y has floating-point targets and groups=None: expected the task of each "
                    "example in groups. For classes, give whole numbers or texts as y"
                )
            self.targets = _inputs(targets)
            units, ways = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups), 1
        elif groups is not None:
            raise UsageError(
                "groups: expected None for classes, since a task is drawn from its classes. For a "
                "regression, give floating-point y"
            )
        else:
            units = targets
        if units.shape != (len(self.x),) or units.dtype.kind not in "iubU":
            raise UsageError(
                f"{'y' if groups is None else 'groups'}: expected {len(self.x)} whole numbers or "
                f"texts, one for each row of x, and not {units.dtype} of shape {units.shape}"
            )
        if self.targets is not None and len(self.targets) != len(self.x):
            raise UsageError(
                f"y has {len(self.targets)} rows and x {len(self.x)}: expected as many"
            )
        self.ways = ways
        self.shots, self.queries = (
            _numbers(name, value, ways) for name, value in (("shots", shots), ("queries", queries))
        )
        self.test_queries = (
            self.queries if test_queries is None else _numbers("test_queries", test_queries, ways)
        )
        names = [str(unit) for unit in units.tolist()]
        self._members = _members(names, splits, seed)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        target: str | Sequence[str] = "label",
        group: str | None = None,
        split: str | None = None,
        **options: Any,
    ) -> TensorTasks:
        """Return the tasks of a CSV file, whose other columns are the features.

        Args:
            target: the column of the class; with `group` the columns of a regression's targets.
            group: the column of the task of each example of a regression.
            split: the column of each example's split; None: `splits` of `options`.
            options: of `TensorTasks`.

        Raises:
            UsageError: the file cannot be read, a feature is no number, or as `TensorTasks` does.
        """
        targets = [target] if isinstance(target, str) else list(target)
        named = [*targets, *(name for name in (group, split) if name is not None)]
        try:
            rows = read_table(Path(path), named)
        except (OSError, ValueError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else fault
            raise UsageError(f"{path} cannot be read: {reason}") from fault
        features = [name for name in rows[0] if name not in named]
        if not features:
            raise UsageError(f"{path}: expected a column of features beside {', '.join(named)}")
        y: Any = [row[targets[0]] for row in rows]
        if group is not None:
            y = np.stack([_column(rows, name, path) for name in targets], axis=1)
            options["groups"] = [row[group] for row in rows]
        if split is not None:
            options["splits"] = [row[split] for row in rows]
        return cls(np.stack([_column(rows, f, path) for f in features], axis=1), y, **options)

    def sampler(
        self, split: str, seed: int = 0, device: torch.device | str = "cpu"
    ) -> TensorTaskSampler:
        """Return a sampler of a split.

        Raises:
            UsageError: the split is unknown or has fewer classes than ways, or a class has too few
                examples.
        """
        check_known("split", [split], self._members)
        queries = self.queries if split == "train" else self.test_queries
        sizes = list(zip(self.shots, queries, strict=True))
        members = self._members[split]
        kind = "classes" if self.targets is None else "groups"
        if len(members) < self.ways:
            raise UsageError(
                f"ways={self.ways}: expected up to {len(members)}, the number of {kind} of the "
                f"{split} split. Ask for fewer, or give the split more by splits="
            )
        needed = max(sum(pair) for pair in sizes)
        for name, rows in members.items():
            if len(rows) < needed:
                raise UsageError(
                    f"shots={self.shots}, queries={queries}: expected {needed} examples in each of "
                    f"the {kind} of the {split} split, and {name!r} has {len(rows)}. Ask for "
                    "fewer, or leave it out"
                )
        return TensorTaskSampler(self.x, self.targets, list(members.values()), sizes, seed, device)

    def classes(self, split: str) -> tuple[str, ...]:
        return () if self.targets is not None else tuple(self._members[split])

    def examples(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the rows of a split, class by class, and their labels or targets."""
        members = list(self._members[split].values())
        rows = torch.cat([torch.zeros(0, dtype=torch.int64), *members])
        if self.targets is not None:
            return self.x[rows], self.targets[rows]
        sizes = torch.tensor([len(own) for own in members], dtype=torch.int64)
        return self.x[rows], torch.arange(len(members)).repeat_interleave(sizes)


class DatasetTasks(TensorTasks):
    """The tasks of a `torch.utils.data.Dataset` of pairs (x, y), which is read once into memory.

    Args:
        dataset: the pairs; every x has the same shape, and is a tensor, an array, a number or a
            Pillow image. y is a number, a text, or an array of targets.
        options: of `TensorTasks`.

    Raises:
        UsageError: an item is no pair, two items differ in shape, or as `TensorTasks` does.
    """

    def __init__(self, dataset: torch.utils.data.Dataset[Any], **options: Any) -> None:
        source: Any = dataset
        if not hasattr(source, "__getitem__") and not hasattr(source, "__iter__"):
            raise UsageError(
                f"dataset={source!r}: expected a torch.utils.data.Dataset of pairs x and y"
            )
        items = (source[i] for i in range(len(source))) if hasattr(source, "__len__") else source
        xs: list[np.ndarray] = []
        ys: list[Any] = []
        for i, item in enumerate(items):
            if not isinstance(item, tuple | list) or len(item) != 2:
                length = f" of length {len(item)}" if isinstance(item, tuple | list) else ""
                raise UsageError(
                    f"dataset[{i}]: expected a pair of x and y, not {type(item).__name__}{length}"
                )
            xs.append(_array(item[0]))
            ys.append(item[1] if isinstance(item[1], str) else _array(item[1]))
            if xs[i].shape != xs[0].shape or np.shape(ys[i]) != np.shape(ys[0]):
                raise UsageError(
                    f"dataset[{i}]: expected the shapes of dataset[0], x {xs[0].shape} and y "
                    f"{np.shape(ys[0])}, not {xs[i].shape} and {np.shape(ys[i])}. Resize the items"
                )
        if not xs:
            raise UsageError("dataset has no items: expected pairs of x and y")
        super().__init__(np.stack(xs), np.array(ys), **options)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


def _inputs(values: Any) -> Tensor:
    """Return finite values as a tensor of the types that `TensorTasks` names."""
    array = _array(values)
    if array.dtype.kind not in "fiub" or array.ndim == 0 or len(array) == 0:
        raise UsageError(
            f"x or y is {array.dtype} of shape {array.shape}: expected real numbers of shape "
            "(N, ...), a row for each example"
        )
    tensor = torch.tensor(array)
    if array.dtype.kind in "fb":
        tensor = tensor.to(torch.get_default_dtype())
        finite = tensor.flatten(1).isfinite().all(1) if tensor.dim() > 1 else tensor.isfinite()
        if not finite.all():
            row = int(finite.logical_not().nonzero()[0])
            raise UsageError(f"row {row} of x or y has a value that is not finite. Leave it out")
    elif tensor.dtype != torch.uint8:
        tensor = tensor.to(torch.int64)
    return tensor if tensor.dim() > 1 else tensor[:, None]


def _numbers(name: str, value: int | Sequence[int], ways: int) -> tuple[int, ...]:
    """Return a number for each of the labels, each at least 1."""
    numbers = (value,) * ways if isinstance(value, int) else tuple(value)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers)
    if ways < 1 or not whole or len(numbers) != ways:
        raise UsageError(
            f"{name}={value}, ways={ways}: expected a whole number of at least 1, or one for each "
            "label"
        )
    return numbers


def _members(names: Sequence[str], splits: Any, seed: int) -> dict[str, dict[str, Tensor]]:
    """Return the rows of each class, or group, in each split."""
    known = sorted(set(names))
    if isinstance(splits, Mapping):
        split_of: dict[str, str] = {}
        for given, own in splits.items():
            if given not in MODE_OF:
                raise UsageError(f"splits has {given!r}: expected {', '.join(MODES)}")
            for name in map(str, own):
                if name not in known or name in split_of:
                    raise UsageError(
                        f"splits has {name!r} in {given}: expected names of y or groups, each once"
                    )
                split_of[name] = MODE_OF[given]
        modes = [split_of.get(name) for name in names]
    elif all(isinstance(share, int | float) for share in splits):
        check_fractions(splits)
        split_of = draw(known, splits, seed)
        modes = [split_of[name] for name in names]
    else:
        modes = [MODE_OF.get(str(given)) for given in splits]
        if len(modes) != len(names) or None in modes:
            raise UsageError(
                f"splits: expected {len(names)} texts, each of them {', '.join(MODES)}. Give the "
                "split of each example, three fractions, or names for each split"
            )
    rows: dict[str, dict[str, list[int]]] = {mode: {} for mode in MODES}
    for row, (name, mode) in enumerate(zip(names, modes, strict=True)):
        if mode is not None:
            rows[mode].setdefault(name, []).append(row)
    return {
        mode: {name: torch.tensor(own[name]) for name in sorted(own)} for mode, own in rows.items()
    }


def _column(rows: Sequence[Mapping[str, str]], name: str, path: str | Path) -> np.ndarray:
    """Return a column of numbers."""
    try:
        return np.array([float(row[name]) for row in rows])
    except ValueError as fault:
        raise UsageError(
            f"{path}: column {name!r} has a value that is no number ({fault})"
        ) from fault
