from __future__ import annotations

import math

import pytest

from metalearn.studies.frame.table import sort_key, table


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("900 kB", 9e5),
        ("1.2 MB", 1.2e6),
        ("999 B", 999),
        ("1 MiB", 2**20),
        ("5 ms", 5e-3),
        ("5ms", 5e-3),
        ("4 µs", 4e-6),
        ("3 min", 180),
        ("6.4e-04", 6.4e-4),
        ("-3.5", -3.5),
        ("−3", -3),
        ("< 1e-8", 1e-8),
        ("96.00 (94.2 to 97.1)", 96),
        ("98.7 ± 0.4 U", 98.7),
        ("12%", 12),
        ("200,000 tasks", 200000),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("", None),
        ("GMRES", None),
        ("unrolled, 6 steps", None),
        ("infinite", None),
        ("5w1s", None),
        ("2026-11-25", None),
        ("2.14.1", None),
        ("06f0d2d", None),
    ],
)
def test_what_a_cell_is_sorted_by(text, number):
    assert sort_key(text) == number


def test_a_column_is_numeric_where_most_of_it_begins_with_numbers():
    made = table(
        ["size", "core", "blank", "half"],
        [
            ["1.2 MB", "deq", None, "1"],
            ["did not fit", "unrolled, 30 steps", float("nan"), "two"],
            ["900 kB", "3 layers", "", "three"],
            ["–", "x", "-", ""],
        ],
    )
    assert made.numeric == [True, False, False, False]


def test_cells_read_as_in_the_markdown_table():
    ((*cells,),) = table("abcdefg", [[3, 30.0, 0.123456, 1e-9, None, True, "<b>"]]).rows
    assert [c.text for c in cells] == ["3", "30", "0.1235", "1e-09", "", "yes", "<b>"]
    assert cells[2].key == 0.123456  # sorted by what was measured, not by what is shown
