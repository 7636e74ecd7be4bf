"""The report in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("jinja2", reason="needs jinja2 for the report")
pytest.importorskip("plotly", reason="needs plotly for the report")

from csr_deploy.bench.html import write_report  # noqa: E402
from tests.report_results import everything, evil  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Visit

PHONE = 375
DRAWN = "document.querySelectorAll('.plot .main-svg .cartesianlayer').length"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report([everything(folder / "all.jsonl")], folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def desktop(address: str, visit_of_module: Callable[..., Visit]) -> Visit:
    """The report on a large screen without a network, scrolled through. Drawing 35 plots takes seconds."""
    seen = visit_of_module(address, offline=True)
    scroll_through(seen.page)
    return seen


def scroll_through(page: Page) -> int:
    """Brings every plot into view, and waits until it is drawn; their number."""
    return page.evaluate(
        """async () => {
             const plots = [...document.querySelectorAll(".plot")];
             for (const plot of plots) {
               plot.scrollIntoView({ behavior: "instant" });
               while (!plot.querySelector(".main-svg")) await new Promise(requestAnimationFrame);
             }
             return plots.length;
           }"""
    )


def test_everything_is_drawn_without_an_error_and_without_the_network(desktop: Visit) -> None:
    page = desktop.page
    assert page.locator(".plot").count() > 30
    assert page.evaluate(DRAWN) >= page.locator(".plot").count()
    assert page.locator(".plot .violins path.violin").count() == 9
    assert page.locator(".plot .bars path").count() > 20
    assert page.locator(".plot .scatterlayer path.point").count() > 100
    assert desktop.errors == []
    assert desktop.requests == []


def test_a_phone_scrolls_down_only(address: str, visit: Callable[..., Visit]) -> None:
    seen = visit(address, width=PHONE, height=800, is_mobile=True, has_touch=True, color_scheme="dark")
    page = seen.page
    scroll_through(page)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    # The browser would zoom out instead of scrolling, were the page wider than the screen.
    assert page.evaluate("visualViewport.scale") == 1
    wide = page.evaluate(
        """[...document.querySelectorAll("main *")].filter((each) =>
             !each.closest(".scroll, .plot, .unseen") && each.getBoundingClientRect().right > innerWidth
           ).map((each) => each.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    assert page.locator("#summary .scroll").evaluate("each => each.scrollWidth > each.clientWidth")
    assert seen.errors == []


def test_both_colour_schemes_reach_the_plots(desktop: Visit) -> None:
    colours = []
    for scheme in ("dark", "light"):
        desktop.page.emulate_media(color_scheme=scheme)
        desktop.page.wait_for_function(
            """() => [...document.querySelectorAll(".plot .ytick text")].every(
                 (text) => getComputedStyle(text).fill === getComputedStyle(document.body).color)"""
        )
        colours.append(desktop.page.evaluate("getComputedStyle(document.body).color"))
    assert colours[0] != colours[1]


def column(page: Page, name: str) -> list[str]:
    index = page.locator("table.sortable th button").all_inner_texts().index(name)
    cells = page.locator(f"table.sortable tbody tr > :nth-child({index + 1})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def test_the_summary_sorts_by_number_and_by_text(desktop: Visit) -> None:
    page = desktop.page
    before = column(page, "latency")
    head = page.get_by_role("columnheader", name="latency")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rising = column(page, "latency")
    times = [float(t.split()[0]) for t in rising[:6]]
    assert times == sorted(times)
    # What has no time that counts stands last either way.
    rest = sorted(rising[6:])
    assert sum(t.startswith("not measured") for t in rest) == 4
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    falling = column(page, "latency")
    assert [float(t.split()[0]) for t in falling[:6]] == times[::-1]
    assert sorted(falling[6:]) == rest
    page.get_by_role("button", name="network").click()
    assert head.get_attribute("aria-sort") is None
    networks = column(page, "network")
    assert networks == sorted(networks)
    assert sorted(before) == sorted(column(page, "latency"))


def test_headings_are_in_order_and_regions_have_names(desktop: Visit) -> None:
    page = desktop.page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    names = page.evaluate("[...document.querySelectorAll('[role=region]')].map(e => e.ariaLabel)")
    assert names
    assert all(names)
    ids = page.evaluate("[...document.querySelectorAll('main [id]:not(.plot *)')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_paper_has_every_plot_and_table(desktop: Visit) -> None:
    page = desktop.page
    page.emulate_media(color_scheme="dark")
    page.evaluate(
        """addEventListener("beforeprint", () => { window.printed = {
             closed: document.querySelectorAll("details:not([open])").length,
             drawn: document.querySelectorAll(".plot .main-svg .cartesianlayer").length,
             tick: document.querySelector(".plot .ytick text").style.fill,
           }; })"""
    )
    assert page.pdf(format="A4").startswith(b"%PDF")
    printed = page.evaluate("printed")
    assert printed["closed"] == 0
    assert printed["drawn"] >= page.locator(".plot").count()
    assert printed["tick"] == "rgb(0, 0, 0)"
    assert page.locator("details[open]").count() == 1


def test_the_policy_stops_a_script_that_is_put_into_the_page(desktop: Visit) -> None:
    desktop.errors.clear()
    desktop.page.evaluate(
        """() => {
             const script = document.createElement("script");
             script.textContent = "document.title = 'changed'";
             document.body.append(script);
             const picture = document.createElement("img");
             picture.src = "https://example.invalid/x.png";
             document.body.append(picture);
           }"""
    )
    desktop.page.wait_for_function("document.querySelector('img').complete")
    assert desktop.page.title() == "resnet56-csr2 and resnet56-csr4 against resnet56"
    assert len(desktop.errors) == 2
    assert all("Content Security Policy" in error for error in desktop.errors)


def test_a_malicious_label_runs_nothing(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    write_report([evil(tmp_path / "evil")], tmp_path / "evil.html")
    seen = visit((tmp_path / "evil.html").as_uri())
    alerts: list[str] = []
    seen.page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    scroll_through(seen.page)
    assert seen.page.locator("img").count() == 0
    assert "<script>alert(1)</script>" in seen.page.locator("h1").inner_text()
    assert "<script>" in "".join(seen.page.locator(".plot text").all_text_contents())
    assert alerts == []
    assert seen.errors == []
    assert seen.requests == []


def test_without_scripts_the_numbers_are_there(address: str, visit: Callable[..., Visit]) -> None:
    page = visit(address, java_script_enabled=False).page
    details = page.locator("#latency details").first
    details.locator("summary").click()
    assert "resnet56-csr2" in details.locator("table").inner_text()
