"""A run whose data have changed since: what is refused, and what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TINY

from metalearn.commands.main import main
from metalearn.tasks import ImageTasks, TensorTasks
from metalearn.tasks.glyphs import glyphs
from metalearn.training import checkpoint
from metalearn.training.fingerprint import (
    describe_data,
    find_leak,
    find_other_data,
    hash_each,
    join_earlier,
)

CLASSES = range(12)


def photos(root: Path, classes: Sequence[int], each: int = 6, name: str = "class") -> Path:
    """Noise that is another for each class and number."""
    for label in classes:
        folder = root / f"{name}{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            noise = np.random.default_rng([*name.encode(), label, number]).integers(0, 256, (8, 8))
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def train_words(root: Path, folder: Path, *words: str) -> list[str]:
    own = [f"data={root}", "tasks.ways=2", "tasks.queries=2", "tasks.image_size=8"]
    own += ["tasks.channels=1", "model.sizes=[64,4,2]", "wandb=disabled", f"run_dir={folder}"]
    tiny = [word for word in TINY if not word.startswith(("tasks", "model.sizes"))]
    return ["train", *tiny, *own, *words]


def train(root: Path, folder: Path, *words: str) -> Path:
    assert main(train_words(root, folder, *words)) == 0
    return folder / "best.pt"


def places(path: Path) -> dict[str, list[str]]:
    """The classes of each split in the training of a checkpoint."""
    return {split: own["classes"] for split, own in checkpoint.load(path)["data"].items()}


def split_folders(root: Path, of: Path, places: dict[str, list[str]]) -> Path:
    """The images in folders of splits."""
    for split, classes in places.items():
        for name in classes:
            shutil.copytree(of / name, root / split / name)
    return root


def evaluated(path: Path) -> dict:
    row: dict = json.loads((path.parent / "evaluation.json").read_text())["rows"][0]
    return row


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    root = photos(tmp_path / "photos", CLASSES)
    return root, train(root, tmp_path / "run")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    return said[-1]


def judge(path: Path, *words: str) -> list[str]:
    return ["evaluate", f"checkpoint={path}", "tasks=4", *words]


def test_more_classes_are_refused_where_they_move_the_others(made, capsys):
    """With three more the draw has class4 in the validation split, which was in training."""
    root, path = made
    photos(root, range(3), name="k")
    said = refused(judge(path, "split=validation"), capsys)
    assert f"{path} was trained on 6 of the" in said and "of the validation split" in said
    assert not (path.parent / "evaluation.json").exists()

    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    said = refused(["train", f"resume={path.parent}", "steps=8"], capsys)
    assert "was trained on other data (class 'class4' is in validation, and was in train)" in said
    assert "Put them back, or give their place by source=" in said
    assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


def test_a_table_keeps_the_splits_beside_new_classes(made, tmp_path):
    """The page on data has this way."""
    root, path = made
    photos(root, [50])
    splits = {name: split for split, names in places(path).items() for name in names}
    splits["class50"] = "test"
    rows = [f"{n}/{i}.png,{n},{split}" for n, split in splits.items() for i in range(6)]
    table = root / "splits.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    assert main(judge(path, f"source={table}")) == 0
    assert "class 'class50' is in test, and was in no split" in evaluated(path)["other_data"]


def test_the_same_data_elsewhere_are_the_same(made, tmp_path):
    root, path = made
    moved = split_folders(tmp_path / "moved", root, places(path))
    assert main(judge(path, f"source={moved}")) == 0
    assert "other_data" not in evaluated(path)
    assert main(["train", f"resume={path.parent}", "steps=8", f"source={moved}"]) == 0


def test_images_are_known_under_another_name(made, tmp_path, capsys):
    root, path = made
    held = places(path)
    renamed = split_folders(tmp_path / "renamed", root, held)
    shutil.copytree(root / held["train"][0], renamed / "test" / "new")
    assert f"{path} was trained on 6 of the" in refused(judge(path, f"source={renamed}"), capsys)

    single = split_folders(tmp_path / "single", root, held)
    shutil.copy(root / held["train"][0] / "1.png", single / "test" / held["test"][0] / "x.png")
    assert f"{path} was trained on 1 of the" in refused(judge(path, f"source={single}"), capsys)

    swapped = held | {"test": held["validation"], "validation": held["test"]}
    other = split_folders(tmp_path / "swapped", root, swapped)
    assert f"{path} was chosen by 12 of the 12" in refused(judge(path, f"source={other}"), capsys)


def test_other_data_are_judged_with_a_remark(made, tmp_path, capsys):
    root, path = made
    held = places(path)
    one = split_folders(tmp_path / "one", root, held | {"test": []})
    # Other images, some in classes with the names of training classes.
    photos(one / "test", [100, 101])
    for name in held["train"][:2]:
        shutil.copytree(one / "test" / "class100", one / "test" / name)
        for image in (one / "test" / name).iterdir():
            noise = np.random.default_rng([*name.encode(), int(image.stem), 9]).integers(0, 256, 64)
            Image.fromarray(noise.reshape(8, 8).astype(np.uint8)).save(image)
    shutil.rmtree(one / "train" / held["train"][0])
    shutil.rmtree(one / "train" / held["train"][1])
    assert main(judge(path, f"source={one}")) == 0
    remark = evaluated(path)["other_data"]
    assert remark.startswith("the data of run/best.pt have changed: class 'class")
    assert remark in capsys.readouterr().out
    ensemble = f"checkpoint=[{path},{path.parent / 'last.pt'}]"
    assert main(["evaluate", ensemble, "ensemble=true", "tasks=4", f"source={one}"]) == 0
    assert "the data of run/best.pt have changed" in evaluated(path)["other_data"]


@pytest.mark.parametrize("split_by", ["classes", "images"])
def test_changed_images_of_the_same_classes(split_by, tmp_path, capsys):
    root = photos(tmp_path / "photos", CLASSES, each=15)
    path = train(root, tmp_path / "run", f"tasks.dataset.split_by={split_by}")
    assert main(judge(path)) == 0
    assert "other_data" not in evaluated(path)
    photos(root, CLASSES, each=30)
    said = refused(["train", f"resume={path.parent}", "steps=8"], capsys)
    assert "(the examples of the train split have changed)" in said
    if split_by == "images":  # a new draw brings images of the training into the test
        assert "of the test split: expected ones that it has not seen" in refused(
            judge(path), capsys
        )
    else:
        assert main(judge(path)) == 0
        assert "the examples of the train split have changed" in evaluated(path)["other_data"]


def test_weights_to_start_from_keep_what_they_were_trained_on(made, tmp_path, capsys):
    root, path = made
    seed = ["tasks.dataset.seed=1", f"init_from={path}"]
    folder = tmp_path / "next"
    said = refused(train_words(root, folder, *seed), capsys)
    assert f"init_from={path} was trained on" in said and not folder.exists()

    new = photos(tmp_path / "new", range(100, 112))
    other = train(new, folder, f"init_from={path}")
    held = places(path)
    shown = split_folders(
        tmp_path / "shown", root, held | {"train": held["test"], "test": held["train"]}
    )
    assert f"{other} was trained on" in refused(judge(other, f"source={shown}"), capsys)
    assert main(["train", f"resume={folder}", "steps=8"]) == 0
    assert checkpoint.load(folder / "last.pt")["data"]["before"]["classes"] == places(path)["train"]


def test_a_checkpoint_of_an_earlier_release_says_nothing_of_its_data(made, tmp_path):
    _, path = made
    root = photos(tmp_path / "new", range(100, 112))
    for file in path.parent.glob("*.pt"):
        state = checkpoint.load(file)
        del state["data"]
        checkpoint.save(file, state)
    assert main(judge(path, f"source={root}")) == 0
    assert "other_data" not in evaluated(path)
    assert main(["train", f"resume={path.parent}", "steps=8", f"source={root}"]) == 0


def test_altered_records_are_refused(made, capsys):
    _, path = made
    state = checkpoint.load(path)
    odd = {"classes": ["a"], "examples": torch.zeros(3)}
    for data in ([], {"train": {}}, {"train": {"classes": [1]}}, {"train": odd}):
        checkpoint.save(path, {**state, "data": data})
        assert "holds another data than a run saves" in refused(judge(path), capsys)


class Named(TensorTasks):
    """Tasks of one's own, whose classes are numbers, and which have no examples to hash."""

    examples = None  # type: ignore[assignment]

    def classes(self, split: str) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(map(int, super().classes(split)))


def tensor_tasks(kind: type[TensorTasks], **options) -> TensorTasks:
    g = torch.Generator().manual_seed(0)
    return kind(torch.rand(60, 3, generator=g), np.arange(60) // 5, ways=2, queries=2, **options)


@pytest.mark.parametrize(("kind", "said"), [(TensorTasks, "5 of the 5 examples"), (Named, "'1'")])
def test_tasks_of_ones_own_have_a_record(kind, said):
    splits = {"train": [0, 1, 2], "validation": [3, 4], "test": [5]}
    then = describe_data(tensor_tasks(kind, splits=splits))
    assert find_other_data(then, then) is None and find_leak(then, then, "test") is None
    now = describe_data(tensor_tasks(kind, splits=splits | {"train": [0, 2], "test": [1]}))
    assert find_other_data(now, then) == "class '1' is in test, and was in train"
    leak = find_leak(now, then, "test")
    assert leak is not None and "trained on" in leak and said in leak
    assert find_leak(now, {"before": join_earlier(then)}, "test") == leak
    chosen = describe_data(tensor_tasks(kind, splits=splits | {"validation": [4], "test": [3]}))
    assert "chosen by" in str(find_leak(chosen, then, "test"))


def test_examples_that_two_splits_shared_in_training_are_no_leak():
    x = torch.rand(8, 3)
    x[6] = x[0]
    splits = {"train": [0, 1], "test": [2, 3]}
    tasks = TensorTasks(x, np.arange(8) // 2, ways=2, queries=1, splits=splits)
    record = describe_data(tasks)
    assert find_leak(record, record, "test") is None
    assert find_leak(record, {"before": join_earlier(record)}, "test") is None


def test_a_regressions_targets_are_in_its_record():
    x, y, groups = torch.rand(20, 2), torch.rand(20), np.arange(20) // 2
    records = [
        describe_data(TensorTasks(x, z, groups=groups, shots=1, queries=1)) for z in (y, y + 1)
    ]
    assert find_other_data(records[0], records[0]) is None
    assert "examples of the train split" in str(find_other_data(*records))


def test_one_bit_makes_another_hash():
    x = torch.randint(256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    y = x.clone()
    y[3, 0, 2, 2] ^= 1
    assert (hash_each(x) != hash_each(y)).nonzero().flatten().tolist() == [3]
    assert hash_each(x[:0]).shape == (0,)


def test_one_pixel_makes_another_dataset():
    splits = glyphs(drawings=4)
    tasks = ImageTasks(lambda: splits, 5, 1, 1, 1, False, 1, 28)
    before = describe_data(tasks)
    assert find_other_data(describe_data(tasks), before) is None
    splits["test"].images[-1, 0, 3, 3] ^= 1
    now = describe_data(tasks)
    assert find_other_data(now, before) == "the examples of the test split have changed"
    assert now["train"]["labels"] == before["train"]["labels"]
