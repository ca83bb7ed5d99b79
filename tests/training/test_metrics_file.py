"""The rows of a run, and what may have become of them."""

from __future__ import annotations

import pytest

from metalearn.errors import UsageError
from metalearn.training.metrics_file import MetricsFile


def opened(path, steps=()):
    path.write_text("".join(f'{{"step": {step}, "step_s": 0.1}}\n' for step in steps))
    file = MetricsFile(path)
    file.open(resume=True)
    return file


@pytest.mark.parametrize("steps", [(1, 3), (2, 3), (1, 1, 2, 3), (1, 2)])
def test_a_row_that_is_missing_or_twice_there_is_noticed(tmp_path, steps):
    file = opened(tmp_path / "metrics.jsonl", steps)
    before = file.path.read_bytes()
    with pytest.raises(UsageError, match="checkpoint's 3"):
        file.cut(3)
    assert file.path.read_bytes() == before
    file.close()


def test_later_rows_are_dropped_whatever_they_are(tmp_path):
    file = opened(tmp_path / "metrics.jsonl", (1, 2, 7))
    file.cut(2)
    assert [row["step"] for row in file.rows()] == [1, 2]
    file.close()


@pytest.mark.parametrize("row", ['{"step": "1", "step_s": 0.1}', '{"step": 1, "step_s": null}'])
def test_a_row_of_other_types_is_refused(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{row}\n{{"step": 2, "step_s": 0.1}}\n')
    with pytest.raises(UsageError, match="line 1"):
        list(MetricsFile(path).rows())


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_written_through(tmp_path, resume, there):
    other, link = tmp_path / "other", tmp_path / "metrics.jsonl"
    if there:
        other.write_text("kept")
    link.symlink_to(other)
    with pytest.raises(UsageError):
        MetricsFile(link).open(resume)
    assert other.exists() is there and (not there or other.read_text() == "kept")
