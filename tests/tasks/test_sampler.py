from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.errors import UsageError
from metalearn.tasks import ImageTasks, ImageTaskSampler, LabelledImages, SinusoidTasks
from metalearn.tasks.sampler import AffineMaps


def numbered(classes: int, drawings: int) -> LabelledImages:
    """Images whose two pixels are their class and their drawing."""
    label = torch.arange(classes).repeat_interleave(drawings)
    drawing = torch.arange(drawings).repeat(classes)
    pixels = torch.stack([label, drawing], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    return LabelledImages(pixels, label, tuple(f"c{i}" for i in range(classes)))


def ids(x: torch.Tensor) -> torch.Tensor:
    return (x * 255).round().long().flatten(2)


@given(
    st.integers(2, 6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_a_task_is_ways_classes_with_disjoint_support_and_query(ways, shots, queries, tasks, seed):
    batch = ImageTaskSampler(numbered(6, 6), ways, shots, queries, seed).sample(tasks)
    assert batch.support_x.shape == (tasks, ways * shots, 1, 1, 2)
    assert batch.query_x.shape == (tasks, ways * queries, 1, 1, 2)
    for t in range(tasks):
        support, query = ids(batch.support_x[t : t + 1])[0], ids(batch.query_x[t : t + 1])[0]
        shown = {tuple(i) for i in support.tolist()}
        asked = {tuple(i) for i in query.tolist()}
        assert len(shown) == ways * shots
        assert len(asked) == ways * queries
        assert not shown & asked
        names = {}
        for (c, _), y in zip(support.tolist(), batch.support_y[t].tolist(), strict=True):
            assert names.setdefault(y, c) == c
        for (c, _), y in zip(query.tolist(), batch.query_y[t].tolist(), strict=True):
            assert names[y] == c
        assert sorted(names) == list(range(ways))
        assert len(set(names.values())) == ways


def test_the_stream_depends_on_the_seed_alone_and_leaves_the_global_state():
    one, other = (ImageTaskSampler(numbered(6, 6), 3, 1, 1, seed=4) for _ in range(2))
    random.seed(1)
    before = random.getstate()
    first = [one.sample(4).support_x for _ in range(3)]
    assert random.getstate() == before
    random.seed(2)
    assert all(torch.equal(a, other.sample(4).support_x) for a in first)
    different = ImageTaskSampler(numbered(6, 6), 3, 1, 1, seed=5)
    assert not torch.equal(different.sample(4).support_x, first[0])


@pytest.mark.parametrize("kind", ["images", "sinusoid"])
def test_a_stream_goes_on_from_its_state(kind):
    def make(seed):
        if kind == "images":
            return ImageTaskSampler(numbered(6, 6), 3, 1, 1, seed=seed)
        return SinusoidTasks().sampler("train", seed, "cpu")

    sampler = make(0)
    sampler.sample(3)
    state = sampler.state_dict()
    ahead = [sampler.sample(3).query_x for _ in range(3)]
    resumed = make(9)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, resumed.sample(3).query_x) for a in ahead)


def test_all_classes_and_drawings_come_up():
    sampler = ImageTaskSampler(numbered(6, 4), 2, 1, 1, seed=0)
    seen = ids(sampler.sample(200).support_x).flatten(0, 1)
    assert len({tuple(i) for i in seen.tolist()}) == 24


@pytest.mark.parametrize(
    ("ways", "shots", "queries", "sentence"),
    [
        (7, 1, 1, "7.*6 classes"),
        (2, 5, 2, "7 images a class, but the smallest class, 'c0', has 6"),
        (0, 1, 1, "at least 1"),
        (2, 1, 0, "at least 1"),
    ],
)
def test_what_the_data_cannot_give_is_refused(ways, shots, queries, sentence):
    with pytest.raises(UsageError, match=sentence):
        ImageTaskSampler(numbered(6, 6), ways, shots, queries)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.tensor([0, -1]), "-1 is the index of none of the 2 classes; expected 0 to 1"),
        (torch.tensor([0, 2]), "2 is the index of none"),
        (torch.tensor([0.0, 1.0]), r"labels=torch.float32 of shape \(2,\): expected an int64"),
        (torch.tensor([0.0, float("nan")]), "expected an int64"),
        (torch.tensor([0, 1], dtype=torch.int32), "labels=torch.int32"),
        (torch.tensor([False, True]), "labels=torch.bool"),
        (torch.tensor([0, 1, 1]), "one label an image"),
        ([0, 1], "labels=list"),
    ],
)
def test_labels_that_are_no_indices_of_classes_are_refused(labels, sentence):
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(UsageError, match=sentence):
        LabelledImages(images, labels, ("a", "b"))


def test_two_classes_of_one_name_are_refused():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(UsageError, match="'a' is there twice"):
        LabelledImages(images, torch.tensor([0, 1]), ("a", "a"))


def test_rotations_are_classes_of_their_own_in_training_alone():
    splits = {name: numbered(3, 2) for name in ("train", "validation", "test")}
    square = {
        k: LabelledImages(torch.rand(6, 1, 4, 4).mul(255).byte(), v.labels, v.classes)
        for k, v in splits.items()
    }
    tasks = ImageTasks(lambda: square, 8, 1, 1, 1, rotations=True, channels=1, image_size=4)
    assert tasks.sampler("train", 0, "cpu").sample(2).support_x.shape == (2, 8, 1, 4, 4)
    with pytest.raises(UsageError, match="3 classes"):
        tasks.sampler("test", 0, "cpu")
    turned = square["train"].with_rotations()
    assert torch.equal(turned.images[6:12], torch.rot90(square["train"].images, 1, (2, 3)))
    assert len(set(turned.classes)) == 12


def test_images_of_another_size_are_refused():
    tasks = ImageTasks(lambda: {"train": numbered(3, 2)}, 2, 1, 1, 1, False, 1, 28)
    with pytest.raises(UsageError, match="image_size"):
        tasks.sampler("train", 0, "cpu")


def test_sinusoids_are_what_the_paper_says():
    batch = SinusoidTasks(shots=50, queries=10).sampler("train", 0, "cpu").sample(100)
    assert batch.support_x.shape == (100, 50, 1)
    assert batch.support_x.abs().max() <= 5
    assert batch.support_y.abs().max() <= 5
    basis = torch.cat([batch.support_x.sin(), batch.support_x.cos()], dim=2)
    fit = torch.linalg.lstsq(basis, batch.support_y).solution
    assert (basis @ fit - batch.support_y).abs().max() < 1e-4


def drawn(sampler: ImageTaskSampler, tasks: int) -> list[str]:
    """Each task as a text of its images."""
    batch = sampler.sample(tasks)
    return [str(ids(x[None]).tolist()) for x in torch.cat([batch.support_x, batch.query_x], dim=1)]


def test_distinct_tasks_recur_and_are_the_same_in_every_run():
    def sampler(seed: int) -> ImageTaskSampler:
        return ImageTaskSampler(numbered(9, 8), 3, 1, 2, seed, task_pool=5)

    first = drawn(sampler(0), 100)
    assert len(set(first)) == 5  # each is missed in 100 draws with probability 0.8^100
    assert first == drawn(sampler(0), 100)
    assert not set(first) & set(drawn(sampler(1), 100))
    assert len(set(drawn(ImageTaskSampler(numbered(9, 8), 3, 1, 2, 0), 100))) > 90


def test_distinct_tasks_go_on_from_a_saved_state():
    sampler = ImageTaskSampler(numbered(9, 8), 3, 1, 2, 0, task_pool=50)
    drawn(sampler, 7)
    state, outside = sampler.state_dict(), random.getstate()
    expected = drawn(sampler, 20)
    sampler.load_state_dict(state)
    assert drawn(sampler, 20) == expected
    assert random.getstate() == outside


def test_only_training_has_its_own_shots_and_distinct_tasks():
    labels = torch.arange(9).repeat_interleave(8)
    images = torch.arange(72, dtype=torch.uint8).view(72, 1, 1, 1)
    data = LabelledImages(images, labels, tuple("abcdefghi"))
    splits = dict.fromkeys(("train", "validation", "test"), data)
    tasks = ImageTasks(lambda: splits, 3, 1, 2, 2, False, 1, 1, train_shots=4, task_pool=2)
    train, test = (tasks.sampler(split, 0, "cpu") for split in ("train", "test"))
    assert train.sample(1).support_x.shape[1] == 12 and test.sample(1).support_x.shape[1] == 3
    assert len(set(drawn(train, 40))) == 2 and len(set(drawn(test, 40))) > 2


def squares() -> dict[str, LabelledImages]:
    """Three splits of 9 classes of 8 noisy drawings of 28 x 28 pixels, the border empty."""
    images = torch.zeros(72, 1, 28, 28, dtype=torch.uint8)
    noise = torch.randint(256, (72, 1, 14, 14), generator=torch.Generator().manual_seed(0))
    images[:, :, 7:21, 7:21] = noise.byte()
    data = LabelledImages(images, torch.arange(9).repeat_interleave(8), tuple("abcdefghi"))
    return dict.fromkeys(("train", "validation", "test"), data)


def augmented(affine: float, seed: int = 0, split: str = "train") -> ImageTaskSampler:
    tasks = ImageTasks(squares, 3, 1, 2, 2, False, 1, 28, affine=affine)
    return tasks.sampler(split, seed, "cpu")


def test_affine_maps_change_training_images_alone_and_no_choice_of_images():
    plain, moved = augmented(0.0).sample(4), augmented(1.0).sample(4)
    assert not torch.equal(plain.support_x, moved.support_x)
    assert not torch.equal(plain.query_x, moved.query_x)
    slight = augmented(1e-6).sample(4)  # the same images, hardly moved
    assert (slight.support_x - plain.support_x).abs().max() < 1e-4
    assert (slight.query_x - plain.query_x).abs().max() < 1e-4
    tests = [augmented(affine, split="test").sample(4).query_x for affine in (0.0, 1.0)]
    assert torch.equal(*tests)
    assert moved.support_x.min() >= 0 and moved.support_x.max() <= 1 + 1e-6


def test_affine_maps_follow_the_seed_and_go_on_from_a_state():
    sampler = augmented(1.0)
    first = sampler.sample(4).query_x
    assert torch.equal(first, augmented(1.0).sample(4).query_x)
    state, outside = sampler.state_dict(), torch.get_rng_state()
    ahead = [sampler.sample(4).query_x for _ in range(2)]
    resumed = augmented(1.0, seed=9)
    resumed.load_state_dict(state)
    assert all(torch.equal(x, resumed.sample(4).query_x) for x in ahead)
    assert torch.equal(torch.get_rng_state(), outside)
    # A state of before the option says which images come next, and loads.
    assert augmented(0.0).state_dict().keys() == {"random"}
    resumed.load_state_dict(augmented(0.0).state_dict())
    resumed.sample(1)


def moments(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre of (H, W) ink and its second moments about it, in pixels, x first."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in image.shape), indexing="ij")
    places, ink = torch.stack([x, y], dim=-1).flatten(0, 1), image.flatten() / image.sum()
    centre = ink @ places
    return centre, (places - centre).T @ ((places - centre) * ink[:, None])


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_an_affine_map_is_what_its_numbers_say(strength):
    """An ellipse's centre and second moments go as the map in closed form says."""
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(56.0), indexing="ij")
    blob = torch.exp(-((x - 27.5) ** 2) / 60 - (y - 27.5) ** 2 / 20)[None, None]
    centre, spread = moments(blob[0, 0])
    maps = AffineMaps(strength, seed=3)
    numbers = torch.rand(8, 5, generator=torch.Generator().manual_seed(3)) * 2 - 1
    for image, (angle, size, shear, right, down) in zip(
        maps.apply(blob.expand(8, -1, -1, -1)), strength * numbers, strict=True
    ):
        turn = torch.deg2rad(10 * angle)
        rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).view(2, 2)
        shearing = torch.tensor([[1.0, 0.1 * float(shear)], [0.0, 1.0]])
        linear = (1 + 0.1 * size) * rotation @ shearing
        moved_centre, moved_spread = moments(image[0])
        shift = linear @ torch.stack([right, down]) * 56 / 14
        assert torch.allclose(moved_centre - centre, shift, atol=0.05)
        assert torch.allclose(moved_spread, linear @ spread @ linear.T, rtol=0.03, atol=0.3)


@pytest.mark.parametrize("strength", [-1.0, 6.0, float("nan"), float("inf")])
def test_an_affine_strength_that_is_none_is_refused(strength):
    with pytest.raises(UsageError, match=r"affine=.*from 0 to 5"):
        augmented(strength)
