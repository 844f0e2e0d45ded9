"""The page in a browser: it renders without a word on the console or a request, at every width, and by keyboard.

Needs Chromium (Debian: ``apt-get install chromium``) and Playwright, which drives it and installs no browser here.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reported
from tightrope.reports.gather import gather
from tightrope.reports.html import render

PATH = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(PATH is None, reason="Chromium is not installed: apt-get install chromium")

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)><b>bold</b>"
WIDTHS = {"phone": 390, "desktop": 1280}
TIMEOUT = 300_000  # milliseconds; only a machine that does much else comes near


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of part, one run with a name that would like to be HTML, and a word that is very long."""
    folder = tmp_path_factory.mktemp("page")
    verdicts = ["verified"] * 6 + ["falsified"] * 2 + ["unknown", "wrong"]
    for name, title in (("one", HOSTILE), ("two", "x" * 90)):
        run = reported.make_run(folder / name, title)
        for record in reported.certify(run, verdicts if name == "one" else verdicts[::-1]):
            if record.verdict == "falsified" and record.natural:
                reported.keep_counterexample(run, record)
    reported.search_radii(folder / "one", [None, "0", "1/20", "1/5"])
    for seed in range(2):
        reported.make_cell(folder / "cells", "rgs", "deeppoly", seed, 0.5)
        reported.make_cell(folder / "cells", "none", "ibp", seed, 0.25)
    path = folder / "report.html"
    path.write_text(render(gather([folder / "one", folder / "two", folder / "cells"])))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page, and what it said and asked for meanwhile."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": WIDTHS["desktop"], "height": 800}, color_scheme="dark")
        self.page.set_default_timeout(TIMEOUT)
        self.troubles: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]")

    def becomes(self, condition: str) -> None:
        """Wait until it is so. The page's own policy forbids it to evaluate text, so that it is asked from outside."""
        deadline = time.monotonic() + TIMEOUT / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def opened(browser: Any, page_file: Path) -> Opened:
    return Opened(browser, page_file)


@pytest.fixture(params=WIDTHS)
def at_width(request: pytest.FixtureRequest, opened: Opened) -> Opened:
    """The page, as wide as a desktop's window or a phone's."""
    opened.page.set_viewport_size({"width": WIDTHS[request.param], "height": 800})
    return opened


def test_it_renders_silently_and_asks_for_nothing(opened: Opened, page_file: Path) -> None:
    plots = opened.page.locator(".plot").count()
    assert plots >= 8
    assert opened.page.locator(".plot .main-svg .xtick, .plot .main-svg .xtick text").count() >= plots
    assert opened.page.locator(".plot:has(.main-svg)").count() == plots
    assert opened.troubles == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [page_file.as_uri()]


def test_pictures_are_there(opened: Opened) -> None:
    widths = opened.page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 12  # image, counterexample and difference of two images of two runs
    assert min(widths) > 0


def test_the_page_never_scrolls_sideways(at_width: Opened) -> None:
    """Folded tables unfolded and not."""
    for unfolded in ("true", "false"):
        at_width.page.evaluate(f"document.querySelectorAll('details').forEach(each => {{ each.open = {unfolded} }})")
        at_width.becomes("document.documentElement.scrollWidth <= window.innerWidth")


def test_charts_stay_in_their_cards(at_width: Opened) -> None:
    """They follow the width, and nothing of them covers what comes after."""
    at_width.becomes("""[...document.querySelectorAll(".plot")].every(plot => {
        const card = plot.closest(".chart").getBoundingClientRect(), next = plot.nextElementSibling;
        const svg = plot.querySelector(".main-svg").getBoundingClientRect();
        return svg.right <= card.right + 1 && svg.bottom <= next.getBoundingClientRect().top + 1;
    })""")


def test_tables_sort_both_ways(opened: Opened) -> None:
    table = opened.page.locator("#verdicts table:has(button:text-is('last word'))").first
    head = table.locator("thead button:text-is('verified')")
    for wanted in ("ascending", "descending"):
        head.focus()
        opened.page.keyboard.press("Enter")
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == wanted
        shown = [int(text.replace(",", "")) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
        assert shown == sorted(shown, reverse=wanted == "descending")
        assert len(set(shown)) > 1


def test_the_keyboard_reaches_all_that_acts(opened: Opened) -> None:
    """Tab visits links, buttons, folded tables, charts and their buttons, and boxes that scroll."""
    page = opened.page
    acting = "a[href], button, summary, .plot, .modebar-btn, [tabindex='0']"
    page.evaluate(f"""() => {{
        window.unvisited = new Set([...document.querySelectorAll("{acting}")].filter(each => each.checkVisibility()));
        document.addEventListener("focusin", event => window.unvisited.delete(event.target));
        document.activeElement.blur();
    }}""")
    for _ in range(page.evaluate("window.unvisited.size") + 5):
        page.keyboard.press("Tab")
    assert page.evaluate("[...window.unvisited].map(each => each.outerHTML.slice(0, 80))") == []


def test_a_chart_is_read_and_zoomed_by_keyboard(opened: Opened) -> None:
    page = opened.page
    plot = page.locator("#training .plot").first
    plot.focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#said").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#said").inner_text()
    assert first
    assert first != second
    assert "<script>alert(1)</script>" in first  # the name, as it is
    assert plot.locator(".hoverlayer .hovertext").count() == 1
    extent = "plot => plot._fullLayout.xaxis.range[1] - plot._fullLayout.xaxis.range[0]"
    before = plot.evaluate(extent)
    page.keyboard.press("+")
    assert plot.evaluate(extent) == pytest.approx(0.6 * before)
    page.keyboard.press("0")
    page.wait_for_timeout(50)
    assert plot.evaluate(extent) == pytest.approx(before)
    plot.locator(".modebar-btn").first.focus()
    page.keyboard.press("Enter")
    assert plot.evaluate(extent) < before
    assert opened.troubles == []


def test_names_are_shown_as_they_are(opened: Opened) -> None:
    """In the page and in the charts: the legend has no bold text and no picture in it."""
    assert opened.page.locator("text=alert(1)").count() > 3
    assert opened.page.locator("img[src='x'], .plot image, .plot a[href], .legend tspan").count() == 0
    legends = opened.page.locator(".legendtext").all_text_contents()
    assert any(HOSTILE in legend for legend in legends)


def test_the_theme_can_be_chosen_and_paper_is_light_and_narrow(opened: Opened) -> None:
    page = opened.page
    theme, ink = "document.documentElement.dataset.theme", "getComputedStyle(document.querySelector('.xtitle')).fill"
    before = page.evaluate(theme), page.evaluate(ink)
    page.click("#theme")
    assert page.evaluate(theme) != before[0]
    opened.becomes(f"{ink} !== '{before[1]}'")
    page.click("#theme")
    assert page.evaluate(theme) == before[0]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(theme) == "light"
    closed = page.locator("details:not([open])").count()
    assert closed == page.locator(".chart details").count() > 0
    widths = "[...document.querySelectorAll('.plot')].map((p) => [p.clientWidth, p.querySelector('svg').clientWidth])"
    assert all(0 < drawn == place < 718 for place, drawn in page.evaluate(widths))
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(theme) == before[0]
    assert page.locator("details[open]").count() == 0
    assert opened.troubles == []
