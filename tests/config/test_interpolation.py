"""What a config's texts may refer to, held against what OmegaConf itself makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from metalearn.config.interpolation import check_resolved, resolved, resolver_call
from metalearn.errors import UsageError


@pytest.mark.parametrize(
    ("value", "call"),
    [
        ("${oc.env:X}", "${oc.env:X}"),
        ("a ${b} ${oc.env:X} c", "${oc.env:X}"),
        ("${oc.${x}:X}", "${oc.${x}:X}"),
        ("${${a}.${b${c}}:X}", "${${a}.${b${c}}:X}"),
        ("${a:", "${a:"),
        ([1, {"k": ["${oc.${x}:X}"]}], "${oc.${x}:X}"),
        ({"${oc.env:X}": 1}, "${oc.env:X}"),
        ("${prox}", None),
        ("${a.b}: ${c}", None),
        ("http://localhost:9", None),
        (["${a}", "b: c"], None),
    ],
)
def test_calls(value, call):
    assert resolver_call(value) == call


def test_no_text_that_omegaconf_calls_is_missed(monkeypatch):
    monkeypatch.setenv("SECRET", "0123456789abcdef")
    parts = ["${", "}", ":", "oc", ".", "env", "SECRET", "x", "y", "\\", "'", " ", "$", "{", ","]
    options = {"x": "env", "y": "${x}", "env": "x"}
    leaks = []

    @settings(max_examples=600, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.sampled_from(parts), max_size=6).map("".join), st.sampled_from(["x", "y"]))
    def tried(around, name):
        for text in (around, f"{around}${{oc.${{{name}}}:SECRET}}", f"${{oc.env{around}:SECRET}}"):
            try:
                found = str(
                    OmegaConf.to_container(OmegaConf.create({**options, "v": text}), resolve=True)
                )
            except Exception:  # it is no text that OmegaConf takes
                continue
            if "0123456789abcdef" in found:
                leaks.append(text)
                assert resolver_call(text), text

    tried()
    assert len(leaks) > 50


def test_what_is_resolved_refers_to_nothing():
    config = OmegaConf.create({"a": 3, "b": "${a}", "c": ["${b}"]})
    assert resolved(config) == {"a": 3, "b": 3, "c": [3]}
    for text in ("${d}{a}", "\\${a}"):
        with pytest.raises(UsageError, match="refers to an option in a roundabout way"):
            resolved(OmegaConf.create({"d": "$", "a": 3, "e": {"f": [text]}}))
    check_resolved({"a": ["$a", "{b}", 3, None]})
