"""Tables of typed values, and how findings format them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from metalearn.studies.frame.findings import format_count, format_list, format_number
from metalearn.studies.frame.table import Cell, Table, make_cell, make_table
from metalearn.training.estimate import Estimate


@pytest.mark.parametrize(
    ("value", "form", "text", "key"),
    [
        (3, None, "3", 3),
        (30.0, None, "30", 30),
        (0.123456, None, "0.1235", 0.123456),
        (1234.5, ",.0f", "1,234", 1234.5),
        (np.int64(7), "d", "7", 7),
        (np.float32(0.5), ".2f", "0.50", 0.5),
        (2000, lambda n: f"{n / 1000:g} kB", "2 kB", 2000),
        (math.inf, None, "inf", math.inf),
        (None, ".2f", "", None),
        (math.nan, ".2f", "", None),
        (True, None, "yes", None),
        (np.bool_(False), None, "no", None),
        ("GMRES", ".2f", "GMRES", None),
        (Estimate(0.5, 0.25), "+.2f", "+0.50 ± 0.25", 0.5),
        (Estimate(0.5, math.inf), ".2f", "0.50", 0.5),
        (Cell("5 at 2", 5.0), ".2f", "5 at 2", 5),
    ],
)
def test_make_cell_formats_a_value_and_sorts_by_it(value, form, text, key):
    assert make_cell(value, form) == Cell(text, key)


def test_table_is_numeric_where_half_of_a_column_is_numbers():
    made = make_table(
        ["size", "core", "blank", "half"],
        [[1.2e6, "deq", None, 1], ["did not fit", "x", math.nan, "two"], [9e5, "y", "", "three"]],
    )
    assert made.numeric == [True, False, False, False]
    assert make_table(["a", "b"], []).numeric == [False, False]


def test_table_survives_json():
    made = make_table({"a": ".1f", "b": None}, [{"a": 1.25}, {"a": math.inf, "b": "x"}], marked=[1])
    assert Table.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_table_of_an_earlier_release_is_read():
    old = Table.from_json({"columns": ["n", "what"], "rows": [[2, "1.2 MB"], [None, "x"]]})
    assert old.texts().values.tolist() == [["2", "1.2 MB"], ["", "x"]]
    assert old.rows[0][0].key == 2


def test_findings_format_numbers_counts_and_lists():
    assert format_number(Estimate(1.25, 0.5), "+.1f") == "+1.2 ± 0.5"
    assert format_number(Estimate(1.25, math.inf), ".2f") == "1.25"
    assert format_count(1, "inner step") == "1 inner step"
    assert format_count(2000, "study", "studies") == "2,000 studies"
    assert format_list(["a"]) == "a" and format_list(["a", "b", "c"]) == "a, b and c"


def test_a_cell_with_a_bar_or_several_lines_stays_one_cell_of_a_markdown_table():
    table = make_table(["a|b", "c\nd"], [["x|y", "1\n\n2"], ["\r\n|", "| z |"]])
    lines = table.to_markdown().splitlines()
    assert len(lines) == 4
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert table.rows[0][0].text == "x|y"


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_beyond_the_floats_is_shown_and_sorted_as_infinite(sign):
    cell = make_cell(sign * 10**400)
    assert cell.text == str(sign * 10**400) and cell.key == sign * math.inf
