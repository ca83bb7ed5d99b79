"""Overrides whose values are paths, and Hydra inside another Hydra."""

from __future__ import annotations

import shlex

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given
from hypothesis import strategies as st

from metalearn import config
from metalearn.errors import UsageError

ODD = ["é & co", "a!b", "(a)", "a;b", "it's", "a#b", "~a", "a^b", "[a", "{a", "a'\\", "a$b", 'a"b']


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("key", ["resume", "run_dir", "checkpoint", "tasks.dataset.source", "out"])
def test_paths_are_taken_as_they_stand(key, name):
    assert config.values([f"{key}=/tmp/{name}/x"]) == {key: f"/tmp/{name}/x"}


def test_quoted_paths_lists_and_references_are_as_before():
    assert config.values(["run_dir='a b'"])["run_dir"] == "a b"
    assert config.values(["checkpoint=[a/é.pt,b.pt]"])["checkpoint"] == ["a/é.pt", "b.pt"]
    assert config.values(["run_dir=runs/${name}"])["run_dir"] == "runs/${name}"
    assert config.parse(["run_dir=a,b"])[0].is_sweep_override()


@example('""')
@given(st.text(st.sampled_from("é &!(;'#~^[{\\\"a,0)]}=:.%/"), min_size=1))
def test_a_word_that_is_printed_names_the_same_folder(path):
    (word,) = shlex.split(config.shell_word("resume", path))
    assert config.values([word]) == {"resume": path}


@pytest.mark.parametrize("word", ["steps=a&b", "run_dir=/tmp/\udcff", "seed=(1"])
def test_other_words_are_refused(word):
    with pytest.raises(UsageError, match="cannot be read"):
        config.parse([word])


def test_a_config_is_composed_inside_a_callers_own_hydra(tmp_path):
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        assert config.compose("train", ["seed=3"]).seed == 3
        assert GlobalHydra.instance().hydra is own
        with pytest.raises(UsageError):
            config.compose("train", ["sead=3"])
        assert GlobalHydra.instance().hydra is own
    assert not GlobalHydra.instance().is_initialized()
