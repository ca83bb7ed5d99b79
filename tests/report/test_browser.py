"""The page in a browser: Debian's chromium and chromium-driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import NEEDS_BROWSER, open_browser
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from metalearn.commands.main import main

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def driver(made: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("browser")
    assert main(["report", f"results={made}", f"out={folder}/report.html"]) == 0
    with open_browser(folder / "profile") as driver:
        driver.get((folder / "report.html").as_uri())
        yield driver


@pytest.fixture
def page(driver):
    driver.refresh()
    return driver


def open_all(page) -> None:
    """Open every folded part, and wait for what is unpacked in it."""
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    left = """return document.querySelectorAll('[data-packed]').length
        + [...document.images].filter(i => !i.complete || !i.naturalWidth).length"""
    WebDriverWait(page, 60).until(lambda page: page.execute_script(left) == 0)


def table(page, caption: str) -> WebElement:
    """The first table with this caption, shown."""
    open_all(page)
    region = page.find_element(By.CSS_SELECTOR, f'.scroll[aria-label="{caption}"]')
    return region.find_element(By.XPATH, "./..")


def column(element: WebElement, name: str) -> list[str]:
    """Its cells' texts, top down, of the rows that are shown."""
    heads = [h.text.split("\n")[0].strip() for h in element.find_elements(By.TAG_NAME, "th")]
    at = heads.index(name)
    rows = element.find_elements(By.CSS_SELECTOR, "tbody tr")
    return [r.find_elements(By.TAG_NAME, "td")[at].text for r in rows if r.is_displayed()]


def head(element: WebElement, name: str) -> WebElement:
    return element.find_element(By.XPATH, f".//th[normalize-space()='{name}']")


def test_a_click_sorts_by_value_and_units_and_a_third_puts_the_rows_back(page):
    sizes = table(page, "Sizes")
    as_made = column(sizes, "size")
    assert as_made == ["35.0 MB", "900 kB", "1.1 GB", "1.2 MB"]
    for state, expected in (
        ("ascending", ["900 kB", "1.2 MB", "35.0 MB", "1.1 GB"]),
        ("descending", ["1.1 GB", "35.0 MB", "1.2 MB", "900 kB"]),
        ("none", as_made),
    ):
        head(sizes, "size").find_element(By.TAG_NAME, "button").click()
        assert head(sizes, "size").get_attribute("aria-sort") == state
        assert column(sizes, "size") == expected


def test_infinity_is_large_and_blanks_are_last_both_ways(page):
    sizes = table(page, "Sizes")
    head(sizes, "bound").find_element(By.TAG_NAME, "button").click()
    assert column(sizes, "bound") == ["1e-08", "2.5", "inf", ""]
    head(sizes, "bound").find_element(By.TAG_NAME, "button").click()
    assert column(sizes, "bound") == ["inf", "2.5", "1e-08", ""]


def test_words_sort_by_the_numbers_in_them_from_the_keyboard(page):
    sizes = table(page, "Sizes")
    head(sizes, "size").find_element(By.TAG_NAME, "button").click()
    head(sizes, "steps").find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column(sizes, "steps") == [f"unrolled, {10**i} steps" for i in range(4)]
    sorted_by = [h.get_attribute("aria-sort") for h in sizes.find_elements(By.TAG_NAME, "th")]
    assert sorted_by.count("none") == len(sorted_by) - 1  # one column at a time


def test_the_filter_keeps_the_rows_that_hold_every_word(page):
    growth = table(page, "Growth by n")
    box = growth.find_element(By.CSS_SELECTOR, "input[type=search]")
    count = growth.find_element(By.TAG_NAME, "output")
    assert count.text == "12 rows"
    box.send_keys("IMPLICIT 512")
    assert column(growth, "n") == ["8"]
    assert count.text == "1 of 12 rows"
    head(growth, "n").find_element(By.TAG_NAME, "button").click()
    assert column(growth, "n") == ["8"]  # sorting brings nothing back
    box.clear()
    box.send_keys("nothing")
    assert column(growth, "n") == [] and count.text == "0 of 12 rows"
    box.clear()
    box.send_keys(" ")
    assert len(column(growth, "n")) == 12


def test_measurements_and_further_figures_come_when_they_are_looked_at(page):
    packed = page.find_elements(By.CSS_SELECTOR, "[data-packed]")
    assert len(packed) >= 4  # the rows and the second figure of both studies
    details = page.find_element(By.CSS_SELECTOR, ".study details")
    details.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(page, 60).until(lambda _: details.find_elements(By.CSS_SELECTOR, "img[src]"))
    rows = details.find_element(By.CSS_SELECTOR, "details:last-of-type")
    assert not rows.find_elements(By.TAG_NAME, "table")
    rows.find_element(By.TAG_NAME, "summary").click()
    WebDriverWait(page, 60).until(lambda _: rows.find_elements(By.TAG_NAME, "tbody"))
    assert column(rows, "n") == [str(n) for n in range(12)]
    head(rows, "cube").find_element(By.TAG_NAME, "button").click()
    head(rows, "cube").find_element(By.TAG_NAME, "button").click()
    assert column(rows, "cube")[:2] == ["1332", "1000"]
    rows.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("none")
    assert column(rows, "n") == ["11", "9", "7", "5", "3", "1"]


def test_a_link_into_a_folded_part_opens_it(page):
    folded = page.find_element(By.CSS_SELECTOR, "details.aside")
    assert folded.get_attribute("open") is None
    name = folded.find_element(By.TAG_NAME, "summary").get_attribute("id")
    page.execute_script("location.hash = arguments[0]", name)
    WebDriverWait(page, 60).until(lambda _: folded.get_attribute("open") is not None)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    open_all(page)
    assert page.execute_script("return innerWidth") == width
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    figures = page.find_elements(By.CSS_SELECTOR, "figure img, .small img")
    assert figures and all(f.size["width"] > 0 and f.size["height"] > 0 for f in figures)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_leaves_no_controls_and_fits_the_paper(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = page.find_elements(By.CSS_SELECTOR, "input, nav")
    assert shown and not any(element.is_displayed() for element in shown)
    metrics = {"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4, margins
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 703
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_dark_where_the_reader_wants_it(page):
    background = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(background)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    assert page.execute_script(background) != light == "rgb(255, 255, 255)"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_browser_has_nothing_to_say(page):
    assert page.get_log("browser") == []
    entries = page.execute_script("return performance.getEntriesByType('resource').length")
    assert entries == 0  # nothing was asked for
