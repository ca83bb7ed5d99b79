from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from metalearn.errors import UsageError
from metalearn.report.svg import inline
from metalearn.studies.frame.plot import canvas, label_lines, svg

NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def drawing(body: str) -> str:
    return f'<svg {NAMESPACES} width="72pt" height="36pt" viewBox="0 0 72 36">{body}</svg>'


def test_a_figure_keeps_its_shapes_and_gets_ids_of_its_own():
    figure, (axes,) = canvas()
    axes.plot([0, 1], [1, 2], marker="o", label="a < b")
    label_lines(axes)
    text = svg(figure)
    made = inline(text, "memory", "memory.svg")
    body = f"<svg>{made.markup}</svg>"
    root = ElementTree.fromstring(body)
    count = len(re.findall("<path ", text))
    assert len(root.findall(".//path")) == count > 5
    assert "a < b" in [t.text for t in root.iter("text")]
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert ids and all(i.startswith("memory-") for i in ids)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    assert {a or b for a, b in used} <= ids and len(used) > 2
    assert "http" not in body and "font-family" not in body
    assert made.width == pytest.approx(4.6 * 96) and made.height == pytest.approx(3.2 * 96)


@pytest.mark.parametrize(
    "body",
    [
        "<script>alert(1)</script>",
        '<g onclick="alert(1)"/>',
        "<foreignObject><b/></foreignObject>",
        '<image xlink:href="https://example.org/x.png"/>',
        '<image href="data:image/svg+xml;base64,AAAA"/>',
        '<use xlink:href="other.svg#x"/>',
        '<path style="fill: url(https://example.org/x)"/>',
        "<path style=\"fill: url('//example.org/x')\"/>",
        '<a href="javascript:alert(1)"><path/></a>',
        '<g><animate attributeName="href" values="javascript:alert(1)"/></g>',
    ],
)
def test_what_could_act_or_call_out_is_refused(body):
    with pytest.raises(UsageError, match=r"^x\.svg "):
        inline(drawing(body), "x", "x.svg")


@pytest.mark.parametrize("text", ["", "not an SVG", "<html/>", drawing("<g>")])
def test_what_is_no_svg_is_refused(text):
    with pytest.raises(UsageError, match=r"^x\.svg "):
        inline(text, "x", "x.svg")


def test_styles_and_metadata_are_left_out():
    made = inline(drawing("<style>body{display:none}</style><metadata/><g id='a'/>"), "x", "x.svg")
    assert made.markup == '<g id="x-a" />'
