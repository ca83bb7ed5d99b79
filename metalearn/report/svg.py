"""Figures inside the page: only shapes and text, and no id that another figure has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from metalearn.errors import UsageError

# What matplotlib draws with. Whatever else a file holds could act, or ask the network.
_SHAPES = {
    *("svg", "g", "defs", "use", "symbol", "clipPath", "mask", "pattern", "marker"),
    *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan", "image"),
    *("linearGradient", "radialGradient", "stop", "title", "desc"),
}
_DROPPED = {"metadata", "style"}  # matplotlib's only style, that of joins, is in page.css
_PIXELS = {"pt": 4 / 3, "px": 1.0, "in": 96.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "": 1.0}
_HREF = "href"


@dataclass(frozen=True)
class Figure:
    """An SVG to write into HTML as it is.

    Args:
        id: of the group that holds all of it, for a `<use>` that shows it again.
        width, height: CSS pixels.
    """

    id: str
    markup: Markup
    width: float
    height: float
    view_box: str


def inline(text: str, prefix: str, where: str) -> Figure:
    """The SVG in `text`, its ids beginning with `prefix`; `where` names it in errors.

    Raises:
        UsageError: it is no SVG, or holds a script, a handler, or a reference to another place.
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
    return Figure(prefix, Markup(body), width, height, box)  # cleaned above


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _pixels(root: ElementTree.Element, side: str) -> float:
    found = re.fullmatch(r"([\d.]+)(pt|px|in|mm|cm|)", root.get(side, ""))
    box = (root.get("viewBox") or "0 0 640 480").replace(",", " ").split()
    return float(found[1]) * _PIXELS[found[2]] if found else float(box[2 if side == "width" else 3])


def _clean(element: ElementTree.Element, prefix: str, where: str) -> None:
    """In place: names without namespaces, ids prefixed, and no more than shapes."""
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
    return re.sub(r"font-family:[^;]*;?\s*", "", value)  # the page's own is at hand everywhere
