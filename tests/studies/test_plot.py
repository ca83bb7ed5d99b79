"""Figures: what every one of them shares."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from metalearn.studies.frame import colours
from metalearn.studies.frame.colours import method_colour, styles
from metalearn.studies.frame.draw import Mark, bars, dots, label_lines, legend, lines
from metalearn.studies.frame.plot import DOUBLE, SINGLE, canvas, caption_of, pdf, png, style, svg
from metalearn.training.estimate import Estimate


def drawn(caption: str = ""):
    with style():
        figure, (axes,) = canvas(caption=caption)
        axes.plot([0.123456789, 1], [0, 2], label="0.123456789 of CG")
        label_lines(axes)
    return figure


def test_labels_stand_at_the_right_of_the_longest_line_and_apart_and_shorter_lines_lead_there():
    _, (axes,) = canvas()
    axes.plot([0, 1, 2], [5.0, 3.0, 2.0], label="short")
    axes.plot([0, 5, 9], [4.0, 3.0, 2.0], label="long")
    axes.plot([0, 9], [0.0, 9.0], label="_unlabelled")
    label_lines(axes)
    assert [text.get_text() for text in axes.texts] == ["short", "long"]
    assert {text.xy for text in axes.texts} == {(9.0, 2.0)}
    assert abs(axes.texts[0].xyann[1] - axes.texts[1].xyann[1]) >= 8
    (leader,) = axes.get_lines()[3:]
    assert leader.get_xydata().tolist() == [[2.0, 2.0], [9.0, 2.0]]
    assert leader.get_color() == axes.get_lines()[0].get_color()


@pytest.mark.parametrize(("panels", "columns", "size"), [(1, None, SINGLE), (5, 3, DOUBLE)])
def test_a_figure_has_a_column_width_in_every_file(panels, columns, size):
    with style():
        figure, axes = canvas(panels, columns=columns, height=2.0)
    assert len(axes) == panels == len(figure.axes)
    rows = -(-panels // (columns or panels))
    root = ElementTree.fromstring(svg(figure))
    assert root.get("width") == f"{72 * size:g}pt" and root.get("height") == f"{144 * rows:g}pt"
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf(figure))
    assert box and (float(box[1]), float(box[2])) == (72 * size, 144 * rows)
    width, height = np.frombuffer(png(figure, dpi=100)[16:24], ">u4")
    assert (width, height) == (int(100 * size), 200 * rows)


def test_an_svg_keeps_its_texts_and_title_and_refers_only_to_what_is_there():
    text = svg(drawn("What it shows: 0.123456789."))
    root = ElementTree.fromstring(text)
    assert root.find("{*}title").text == "What it shows: 0.123456789."
    assert "0.123456789 of CG" in [element.text for element in root.findall(".//{*}text")]
    ids = {element.get("id") for element in root.iter()} - {None}
    assert set(re.findall(r"""(?:href="|url\()#([^")]+)""", text)) == ids
    classes = {element.get("class") for element in root.iter()} - {None}
    assert classes == set(re.findall(r"\.(c\d+)\{", text))
    assert not any(re.search(r"\.\d{3}", element.get("d", "")) for element in root.iter())
    assert caption_of(drawn(" A \n caption. ")) == "A caption."


@pytest.mark.parametrize("form", [svg, pdf])
def test_equal_figures_give_equal_files(form):
    assert form(drawn()) == form(drawn())


def test_a_method_has_one_colour_beside_any_others():
    names = ["mine", "implicit, 5 CG", "unrolled", "implicit, 10 CG", "another"]
    look = styles(names)
    for name in names[1:4]:
        assert {styles([name])[name]["color"], look[name]["color"]} == {method_colour(name)}
    assert len({own["color"] for own in look.values()}) == 4  # of two numbers of CG, one
    assert len({(own["color"], own["linestyle"]) for own in look.values()}) == 5
    assert method_colour("iMAML, gradient descent") == method_colour("implicit")
    assert method_colour("first-order MAML") != method_colour("MAML")
    assert method_colour("mine") is None


# The matrices of Machado, Oliveira & Fernandes 2009 for a full deficiency, in linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colour_blind_readers_tell_the_main_methods_apart(deficiency):
    """At 0.1 of the unit cube of RGB two swatches differ clearly; equal ones are at 0."""
    names = ("unrolled", "implicit", "truncated", "first-order", "checkpointed", "Neumann")
    rgb = np.array([to_rgb(method_colour(name)) for name in names])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DEFICIENCIES[deficiency]).T, 0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert apart[~np.eye(len(names), dtype=bool)].min() > 0.1


def test_no_colour_is_too_pale_for_white_paper():
    """1.8 is the contrast of a yellow that is hard to see; WCAG asks 3 of text."""
    for name in {*colours.METHODS.values(), *colours.OTHERS}:
        rgb = np.array(to_rgb(name))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 1.8, name


def test_lines_have_bands_and_a_legend_names_each_once():
    rows = pd.DataFrame({"x": [0, 1] * 2, "y": [1.0, 2, 3, 4], "half": 0.5, "m": list("aabb")})
    figure, panels = canvas(2)
    for axes in panels:
        lines(axes, rows, "x", "y", "m", interval="half", direct=False)
    legend(figure)
    band = panels[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.5, 2.5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize("draw", [dots, bars])
def test_marks_stand_in_rows_from_the_top_with_their_intervals(draw):
    _, (axes,) = canvas()
    draw(axes, [Mark.of("known", Estimate(2.0, 0.5), "#000000"), Mark.of("lone", 1.0, "#000000")])
    labels = [text.get_text() for text in axes.get_yticklabels()]
    places = dict(zip(labels, axes.get_yticks(), strict=True))
    assert places["known"] > places["lone"]
    (interval,) = axes.collections  # of the known one alone
    assert interval.get_segments()[0][:, 0].tolist() == [1.5, 2.5]
