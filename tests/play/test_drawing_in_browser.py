"""The page in a browser, drawn on by pointers and keys."""

from __future__ import annotations

import math
import re

import pytest
from browser import NEEDS_BROWSER, open_browser
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = NEEDS_BROWSER

BAR = [(0.0, -0.35), (0.02, 0.0), (0.0, 0.35)]
RING = [(0.35 * math.sin(t * math.pi / 8), -0.35 * math.cos(t * math.pi / 8)) for t in range(17)]


@pytest.fixture(scope="module")
def driver(port, tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(driver, port):
    """The page without a drawing, for a reader who wants no motion."""
    media(driver, "prefers-reduced-motion", "reduce")
    screen(driver, 1280)
    driver.get(f"http://127.0.0.1:{port}/")
    wait(driver, lambda: canvases(driver))
    return driver


def media(page, name: str, value: str) -> None:
    features = [{"name": name, "value": value}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def screen(page, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(page, condition):
    return WebDriverWait(page, 60, poll_frequency=0.05).until(lambda _: condition())


def element(page, id: str):
    return page.find_element(By.ID, id)


def choose(page, id: str, value: int) -> None:
    element(page, id).send_keys(Keys.CONTROL, "a")
    element(page, id).send_keys(str(value), Keys.TAB)


def canvases(page) -> list:
    return page.find_elements(By.CSS_SELECTOR, "#classes canvas")


def query(page):
    return page.find_element(By.CSS_SELECTOR, "#query canvas")


def named(canvas) -> str:
    return canvas.get_attribute("aria-label")


def stroke(page, canvas, points, pointer: str = "mouse") -> None:
    """Draw a stroke through points, in units of the canvas's side from its middle."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    side = canvas.size["width"]
    builder = ActionBuilder(page, mouse=PointerInput(pointer, pointer), duration=10)
    for i, (x, y) in enumerate(points):
        builder.pointer_action.move_to(canvas, round(x * side), round(y * side))
        if i == 0:
            builder.pointer_action.pointer_down()
    builder.pointer_action.pointer_up()
    builder.perform()


def verdicts(page) -> list[str]:
    return [v.text for v in page.find_elements(By.CSS_SELECTOR, ".verdict")]


def dots(page) -> int:
    """The number of points in the chart of the stability."""
    return len(page.find_elements(By.CSS_SELECTOR, "#stability circle"))


@pytest.mark.parametrize("pointer", ["mouse", "touch", "pen"])
def test_drawings_become_predictions_by_inner_step(page, pointer):
    choose(page, "ways", 2)
    bar, ring = canvases(page)
    stroke(page, bar, BAR, pointer)
    assert element(page, "hint").text.startswith("Draw a character of class B")
    stroke(page, ring, RING, pointer)
    wait(page, lambda: verdicts(page) == ["No new character yet"] * 2)
    choose(page, "steps", 8)
    for points, name in ((RING, "B"), (BAR, "A")):
        stroke(page, query(page), points, pointer)
        wait(page, lambda: re.search(r"^Predicted \d+ ms after", element(page, "timing").text))
        assert all(re.match(rf"Class {name}, \d+ %$", verdict) for verdict in verdicts(page))
        assert len(re.findall(f"class {name} with", element(page, "hint").text)) == 2
        page.find_element(By.CSS_SELECTOR, "#query [aria-label^=Clear]").click()
    stroke(page, query(page), BAR, pointer)
    wait(page, lambda: element(page, "timing").text.startswith("Predicted"))
    element(page, "step").send_keys(Keys.HOME)
    wait(page, lambda: verdicts(page) == ["No class yet, all are equal"] * 2)
    assert element(page, "step-label").text == "Inner step 0 of 8"


def test_the_numbers_stand_in_charts_and_in_a_table(page):
    element(page, "examples").click()
    wait(page, lambda: dots(page) == 8)  # 4 points of 2 initialisations
    page.find_element(By.TAG_NAME, "summary").click()
    heads, *rows = page.find_elements(By.CSS_SELECTOR, "#numbers tr")
    assert len(rows) == 4 and heads.text.count("stability") == 2
    assert rows[0].text.startswith("0 1.609") and rows[0].text.count("1.609") == 2  # log 5
    numbers = [float(cell.text) for cell in rows[3].find_elements(By.TAG_NAME, "td")[:3]]
    assert numbers[0] == 3 and all(number >= 0 for number in numbers[1:])


def test_undo_and_clear(page):
    first = canvases(page)[0]
    undo, clear = first.find_elements(By.XPATH, "..//button")
    assert not undo.is_enabled() and not clear.is_enabled()
    for _ in range(3):
        stroke(page, first, BAR)
    assert named(first) == "Class A, drawing 1: drawn, 3 strokes"
    undo.click()
    assert named(first).endswith("2 strokes")
    first.send_keys(Keys.CONTROL, "z")
    assert named(first).endswith("1 stroke")
    clear.click()
    assert named(first) == "Class A, drawing 1: empty"


def test_a_keyboard_draws(page):
    first = canvases(page)[0]
    first.send_keys(" ", Keys.ARROW_DOWN * 5, " ")
    assert named(first).endswith("drawn, 1 stroke")
    ink = page.execute_script(
        "const c = arguments[0];"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 127;"
        "return 4 * n / d.length",
        first,
    )
    assert 0.005 < ink < 0.05  # a line of 5 / 24 of the side, 5 / 105 wide, and the pen
    first.send_keys(Keys.DELETE)
    assert named(first).endswith("empty")


def test_examples_show_it_learn_without_a_drawing(page):
    media(page, "prefers-reduced-motion", "no-preference")
    choose(page, "shots", 2)
    page.execute_script(
        "window.shown = new Set(); const label = document.getElementById('step-label');"
        "new MutationObserver(() => shown.add(label.textContent)).observe(label, {childList: true})"
    )
    element(page, "examples").click()
    wait(page, lambda: element(page, "step-label").text == "Inner step 3 of 3")
    wait(page, lambda: element(page, "play").text == "Play")
    steps = page.execute_script("return [...shown]")
    assert steps == [f"Inner step {step} of 3" for step in range(4)]
    assert all(named(canvas).endswith("an example") for canvas in canvases(page))
    assert len(canvases(page)) == 10
    label = re.search(r"another drawing of class ([A-E])", element(page, "truth").text).group(1)
    for verdict in verdicts(page):
        assert verdict.endswith("✓") == verdict.startswith(f"Class {label},")
        assert verdict.endswith(("✓", f"✗, it is {label}"))
    element(page, "clear-all").click()
    assert not element(page, "results").is_displayed() and element(page, "truth").text == ""
    assert all(named(canvas).endswith("empty") for canvas in canvases(page))


def test_the_number_of_classes_stays_between_2_and_10(page):
    for asked, shown in ((1, 2), (99, 10), (3, 3)):
        choose(page, "ways", asked)
        assert len(canvases(page)) == shown
    stroke(page, canvases(page)[0], BAR)
    choose(page, "ways", 4)
    choose(page, "shots", 3)
    drawn = [named(canvas) for canvas in canvases(page)]
    assert len(drawn) == 12 and drawn[0].endswith("drawn, 1 stroke")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    screen(page, width)
    choose(page, "ways", 10)
    choose(page, "shots", 2)
    element(page, "examples").click()
    wait(page, lambda: element(page, "results").is_displayed())
    page.find_element(By.TAG_NAME, "summary").click()
    assert page.execute_script("return innerWidth") == width
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for button in page.find_elements(By.CSS_SELECTOR, ".drawing button"):
        assert button.size["height"] >= 36 and button.size["width"] >= 36


def test_dark_where_the_reader_wants_it(page):
    stroke(page, canvases(page)[0], BAR)
    middle = (
        "const c = arguments[0], x = c.width / 2;"
        "return [getComputedStyle(document.body).backgroundColor,"
        " ...c.getContext('2d').getImageData(x, x, 1, 1).data]"
    )
    paper, *ink = page.execute_script(middle, canvases(page)[0])
    assert paper == "rgb(255, 255, 255)" and max(ink[:3]) < 64
    media(page, "prefers-color-scheme", "dark")
    wait(page, lambda: min(page.execute_script(middle, canvases(page)[0])[1:4]) > 192)
    assert page.execute_script(middle, canvases(page)[0])[0] != paper


def test_every_control_has_a_name(page):
    choose(page, "shots", 2)
    named_twice = [named(canvas) for canvas in canvases(page)]
    assert len(set(named_twice)) == 10
    element(page, "examples").click()
    wait(page, lambda: element(page, "results").is_displayed())
    for control in page.find_elements(By.CSS_SELECTOR, "button, input, canvas:not(.thumb)"):
        assert control.accessible_name
    charts = "return [...document.querySelectorAll('svg')].map(s => s.getAttribute('aria-label'))"
    assert len(set(page.execute_script(charts)) - {None, ""}) == 4
    buttons = [b.accessible_name for b in page.find_elements(By.CSS_SELECTOR, ".drawing button")]
    assert len(set(buttons)) == len(buttons) == 22


def test_the_browser_asks_this_machine_alone_and_complains_of_nothing(page, port):
    page.get_log("browser")
    element(page, "examples").click()
    wait(page, lambda: dots(page) >= 2)
    asked = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(asked) > 5
    assert all(name.startswith(f"http://127.0.0.1:{port}/") for name in asked)
    assert page.get_log("browser") == []


def test_a_refusal_is_shown(page):
    page.execute_script("document.getElementById('steps').max = 99")
    element(page, "examples").click()
    wait(page, lambda: element(page, "results").is_displayed())
    choose(page, "steps", 99)
    wait(page, lambda: element(page, "fault").is_displayed())
    assert element(page, "fault").text == "steps: expected a whole number from 0 to 30"
    choose(page, "steps", 2)
    wait(page, lambda: not element(page, "fault").is_displayed())
