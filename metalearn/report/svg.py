"""SVG figures in the page: only shapes and text, with ids that are unique in the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from metalearn.errors import UsageError

# The elements that matplotlib writes. Any other element could run a script or load a resource.
_SHAPES = {
    *("svg", "g", "defs", "use", "symbol", "clipPath", "mask", "pattern", "marker"),
    *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan", "image"),
    *("linearGradient", "radialGradient", "stop", "title", "desc"),
}
_DROPPED = {"metadata", "style"}  # page.css has matplotlib's only style, which sets the line joins
_PIXELS = {"pt": 4 / 3, "px": 1.0, "in": 96.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "": 1.0}
_HREF = "href"


@dataclass(frozen=True)
class Figure:
    """An SVG that can be written into HTML without changes.

    Args:
        id: the id of the group of the whole figure, for a `<use>` that shows it again.
        markup: the elements within the SVG's root.
        width, height: the size in CSS pixels.
        view_box: the SVG's viewBox.
    """

    id: str
    markup: Markup
    width: float
    height: float
    view_box: str


def inline(text: str, prefix: str, where: str) -> Figure:
    """Return the SVG in `text` for use in a page.

    Args:
        text: the content of the SVG file.
        prefix: the beginning of the ids in the figure.
        where: the name of the figure in error messages.

    Raises:
        UsageError: the text is not an SVG, or has a script, an event handler or an external
            reference.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UsageError(f"{where} is no SVG ({error}); run the study's command again") from error
    if _local(root.tag) != "svg":
        raise UsageError(f"{where} holds <{_local(root.tag)}>, not an SVG; run its command again")
    width, height = _pixels(root, "width"), _pixels(root, "height")
    box = root.get("viewBox") or f"0 0 {width:g} {height:g}"
    _clean(root, prefix, where)
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return Figure(prefix, Markup(body), width, height, box)  # `_clean` has checked the body


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _pixels(root: ElementTree.Element, side: str) -> float:
    found = re.fullmatch(r"([\d.]+)(pt|px|in|mm|cm|)", root.get(side, ""))
    box = (root.get("viewBox") or "0 0 640 480").replace(",", " ").split()
    return float(found[1]) * _PIXELS[found[2]] if found else float(box[2 if side == "width" else 3])


def _clean(element: ElementTree.Element, prefix: str, where: str) -> None:
    """Clean an element in place: drop namespaces, prefix ids, and refuse all but shapes."""
    tag = _local(element.tag)
    if tag not in _SHAPES:
        raise UsageError(f"{where} holds <{tag}>, which no figure needs; run its command again")
    element.tag = tag
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        element.set(_local(name), _attribute(_local(name), value, tag, prefix, where))
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, prefix, where)


def _attribute(name: str, value: str, tag: str, prefix: str, where: str) -> str:
    outside = f"{where} refers to another place ({name}={value[:60]}); run its command again"
    if name == "id":
        return f"{prefix}-{value}"
    if name.lower().startswith("on"):
        raise UsageError(f"{where} holds the handler {name}; run the study's command again")
    if name == _HREF:
        if value.startswith("#"):
            return f"#{prefix}-{value[1:]}"
        if tag == "image" and value.startswith("data:image/png;base64,"):
            return value
        raise UsageError(outside)
    if re.search(r"url\((?!#)|@import|javascript:", value, re.IGNORECASE):
        raise UsageError(outside)
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    return re.sub(r"font-family:[^;]*;?\s*", "", value)  # the figure then uses the font of the page
