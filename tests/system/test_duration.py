"""Durations in words."""

from __future__ import annotations

import pytest

from metalearn.system.duration import format_duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (8.4, "8 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3599.8, "1 h"),
        (3 * 3600 + 6 * 60 + 20, "3 h 6 min"),
        (86400 - 20, "1 d"),
        (18.06 * 86400, "18 d 1 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds, words):
    assert format_duration(seconds) == words
