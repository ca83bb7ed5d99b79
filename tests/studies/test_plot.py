"""Figures: what every one of them shares."""

from metalearn.studies.frame.plot import canvas, label_lines


def test_labels_stand_at_the_right_of_the_longest_line_and_apart_and_shorter_lines_lead_there():
    _, (axes,) = canvas()
    axes.plot([0, 1, 2], [5.0, 3.0, 2.0], label="short")
    axes.plot([0, 5, 9], [4.0, 3.0, 2.0], label="long")
    axes.plot([0, 9], [0.0, 9.0], label="_unlabelled")
    label_lines(axes)
    assert [text.get_text() for text in axes.texts] == ["short", "long"]
    assert {text.xy for text in axes.texts} == {(9.0, 2.0)}
    assert abs(axes.texts[0].xyann[1] - axes.texts[1].xyann[1]) >= 9
    (leader,) = axes.get_lines()[3:]
    assert leader.get_xydata().tolist() == [[2.0, 2.0], [9.0, 2.0]]
    assert leader.get_color() == axes.get_lines()[0].get_color()
