"""The record of a run's data, by which changed data are known, and a digest of its start.

A checkpoint holds the record: for each split the names of its classes ("classes"), a hash of each
of its examples ("examples") and a digest of their labels ("labels"). Tasks without examples in
memory have names alone, and samplers given in Python no record. "before" has the training data of
the run whose weights a run starts from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from metalearn.tasks import Tasks
from metalearn.tasks.source import TasksOfExamples
from metalearn.training import checkpoint
from metalearn.training.experiment import Setup
from metalearn.training.given import GivenSamplers, task_tensors
from metalearn.tree import leaves_of

SPLITS = ("train", "validation", "test")
BEFORE = "before"
"""The entry of a record with what the weights at the start were trained on."""
_USED = {"train": "trained on", BEFORE: "trained on", "validation": "chosen by"}

DataRecord = Mapping[str, Mapping[str, Any]]
"""The record of data, by split, as the top of this file has it."""


def describe_data(tasks: Tasks) -> dict[str, dict[str, Any]]:
    """Return the record of the data of tasks; a split with neither classes nor examples is absent.

    It takes a second for about 1 GB of examples.
    """
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS if not isinstance(tasks, GivenSamplers) else ():
        names = list(map(str, tasks.classes(split)))
        record: dict[str, Any] = {"classes": names} if names else {}
        if isinstance(tasks, TasksOfExamples) and callable(tasks.examples):
            examples, labels = tasks.examples(split)
            record |= {"classes": names, "examples": hash_each(examples)}
            record["labels"] = _digest([labels])
        if record:
            found[split] = record
    return found


def join_earlier(record: DataRecord) -> dict[str, Any]:
    """Return the entry `BEFORE` for a run that starts from weights with this record.

    Training data that the earlier run had in another split too are left out.
    """
    used = [record[name] for name in ("train", BEFORE) if name in record]
    held = [record[name] for name in ("validation", "test") if name in record]
    names = {n for part in used for n in part["classes"]}
    names -= {n for part in held for n in part["classes"]}
    hashes = _join_examples(used)
    return {
        "classes": sorted(names),
        "examples": hashes[~torch.isin(hashes, _join_examples(held))],
    }


def _join_examples(parts: Iterable[Mapping[str, Any]]) -> Tensor:
    found = [part["examples"] for part in parts if "examples" in part]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *found])


def read_data(word: str) -> DataRecord:
    """Return the record in a checkpoint; empty for one without it, and for a file of weights.

    Args:
        word: as `checkpoint.find` takes it.

    Raises:
        UsageError: as `checkpoint.load` does, but for another kind of file.
    """
    try:
        found: DataRecord = checkpoint.load(checkpoint.find(word)).get("data", {})
    except checkpoint.DamagedCheckpoint:
        return {}
    return found


def find_other_data(own: DataRecord, saved: DataRecord) -> str | None:
    """Return what differs between the data of now and those of a checkpoint; None: nothing.

    The splits that either record lacks are not compared.
    """
    splits = [split for split in SPLITS if split in own and split in saved]
    now, then = _splits_by_class(own, splits), _splits_by_class(saved, splits)
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            places = [" and ".join(found.get(name, ["no split"])) for found in (now, then)]
            return f"class {name!r} is in {places[0]}, and was in {places[1]}"
    for split in splits:
        one, other = own[split], saved[split]
        if not {"examples", "labels"} <= one.keys() & other.keys():
            continue
        same = torch.equal(one["examples"], other["examples"])
        if not same or one["labels"] != other["labels"]:
            return f"the examples of the {split} split have changed"
    return None


def _splits_by_class(record: DataRecord, splits: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for split in splits:
        for name in record[split]["classes"]:
            found.setdefault(name, []).append(split)
    return found


def find_leak(own: DataRecord, saved: DataRecord, split: str) -> str | None:
    """Return how a split of now was used in the training of a checkpoint; None: not at all.

    Examples that were in the training and in that split at the time do not count. Without a hash
    of each example the names of the classes are compared.
    """
    for used, how in _USED.items():
        if split not in own or used not in saved or used == split:
            continue
        now, then = own[split], saved[used]
        at_the_time = saved.get(split, {}) if used != BEFORE else {}
        if "examples" in now and "examples" in then:
            seen = torch.isin(now["examples"], then["examples"])
            seen &= ~torch.isin(now["examples"], at_the_time.get("examples", now["examples"][:0]))
            if count := int(seen.sum()):
                return f"was {how} {count} of the {len(seen)} examples of the {split} split"
        else:
            both = set(now["classes"]) & set(then["classes"]) - set(at_the_time.get("classes", ()))
            if both:
                return f"was {how} class {min(both)!r} of the {split} split"
    return None


def hash_each(examples: Tensor) -> Tensor:
    """Return a hash of 8 bytes of each example (N, ...), (N,) int64."""
    rows = examples.cpu().contiguous().view(len(examples), -1) if len(examples) else examples
    hashes = [
        int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little", signed=True)
        for row in rows.view(torch.uint8).numpy()
    ]
    return torch.tensor(hashes, dtype=torch.int64)


def describe_start(
    experiment: Setup, data: DataRecord, splits: Iterable[str] = SPLITS
) -> dict[str, Any]:
    """Return digests of the initial weights and of the data of some splits, which ranks share.

    Args:
        data: the record of the experiment's tasks. The first task stands for absent examples.
    """
    tasks = experiment.tasks
    if isinstance(tasks, GivenSamplers):
        splits = tasks.samplers
    found: dict[str, dict[str, Any]] = {}
    for split in splits:
        record = data.get(split, {})
        found[split] = {"classes": digest_names(record.get("classes", ()))}
        if "examples" in record:
            found[split] |= {"examples": _digest([record["examples"]]), "labels": record["labels"]}
        else:
            found[split]["tasks"] = _digest_task(tasks, split)
    return {
        "data": found,
        "initial weights": _digest(
            x.detach().cpu() for x in [*leaves_of(experiment.meta), *experiment.constants.values()]
        ),
    }


def digest_names(names: Sequence[str]) -> str:
    """Return the SHA-256 of the names, a line each."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _digest_task(tasks: Tasks, split: str) -> str:
    """Return a digest of the first task of a split, whose sampler stays at its start."""
    sampler = tasks.sampler(split, 0, "cpu")
    start = deepcopy(sampler.state_dict())
    task = sampler.sample(1)
    sampler.load_state_dict(start)
    return _digest(x.detach().cpu() for x in task_tensors(task))


def _digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU, with their types and shapes."""
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
