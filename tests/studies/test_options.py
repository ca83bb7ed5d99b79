"""The options of every study, over the defaults of each preset."""

from __future__ import annotations

import pytest
from omegaconf import ListConfig, OmegaConf

from metalearn import config
from metalearn.errors import UsageError
from metalearn.studies.frame import options

STUDIES = [(verb, name) for verb in ("bench", "solve") for name in options.names(verb)]


@pytest.mark.parametrize(
    "word", ["ways=[5]", "inner_steps=[2]", "cg_iterations=[1,3]", "widths=[8]", "tasks=[2]"]
)
def test_a_list_that_a_preset_leaves_empty_takes_the_items_of_the_whole_study(word):
    study, publication, _ = options.study("bench", "speed", ["preset=quick", word])
    key, _, value = word.partition("=")
    assert list(getattr(study, key)) == publication.options[key] == OmegaConf.create(value)


@pytest.mark.parametrize("word", ["ways=[x]", "widths=[1.5]", "cg_iterations=['3']", "ways=5"])
def test_and_no_others(word):
    with pytest.raises(UsageError, match="expected a"):
        options.study("bench", "speed", ["preset=quick", word])


@pytest.mark.parametrize(("verb", "name"), STUDIES)
def test_what_one_preset_holds_may_be_given_to_the_other(verb, name):
    own = OmegaConf.load(config.config_folder() / verb / f"{name}.yaml")
    lists = {key: own[key] for key in own if isinstance(own[key], ListConfig)}
    presets = [options.study(verb, name, [f"preset={p}"])[1].options for p in options.PRESETS]
    for preset, found in zip(reversed(options.PRESETS), presets, strict=True):
        given = {key: list(found[key]) for key in lists}
        words = [f"{key}={_written(value)}" for key, value in given.items()]
        made = options.study(verb, name, [f"preset={preset}", *words])[1].options
        assert {key: made[key] for key in lists} == given


def _written(values: list[object]) -> str:
    quoted = [f"'{value}'" if isinstance(value, str) else str(value) for value in values]
    return f"[{','.join(quoted)}]"


def test_a_study_may_lie_in_a_folder_of_another_name():
    assert options.study("bench", "cg", [])[1].name == "cg"
    assert options.study("bench", "cg", ["name=cg_an_hour"])[1].name == "cg_an_hour"
    for bad in ("a/b", "..", "", ".hidden"):
        with pytest.raises(UsageError, match="expected a folder's own name"):
            options.study("bench", "cg", [f"name='{bad}'"])


@pytest.mark.parametrize(("verb", "name"), STUDIES)
def test_an_option_of_a_study_means_no_other_thing_than_the_common_one(verb, name):
    common, own = (
        OmegaConf.load(config.config_folder() / path)
        for path in ("study.yaml", f"{verb}/{name}.yaml")
    )
    both = set(common).intersection(own)
    assert all(common[key] is None or isinstance(own[key], type(common[key])) for key in both)
