"""The pages in a real browser, where one is installed: desktop, phone, dark and paper; hostile strings do nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, Opened
from fake_run import DOMAINS, HOSTILE
from fake_study import study_result, write_study
from test_page import HOSTILE_DOMAINS, hostile
from test_serve import served
from test_study import hostile_study

from stillhouse.report.comparison import render_comparison
from stillhouse.report.page import render_run_report
from stillhouse.report.study import render_study_report

DESKTOP, PHONE = 1280, 390
DARK = {"prefers-color-scheme": "dark"}
MakeRun = Callable[..., Path]
MakePage = Callable[[str, bool], Path]
PLOTS = {"run": 6, "comparison": 2, "study": 10}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        started = Browser(tmp_path_factory.mktemp("profile"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with started:
        yield started


@pytest.fixture
def make_page(make_run: MakeRun, tmp_path: Path) -> MakePage:
    """Write a page of one kind, with ordinary numbers or with strings that try to break out of it."""

    def make(kind: str, nasty: bool) -> Path:
        domains, change = (HOSTILE_DOMAINS, hostile) if nasty else (DOMAINS, None)
        if kind == "run":
            return render_run_report(make_run(domains=domains, change=change))
        if kind == "comparison":
            kinds = ("kd", "kd") if nasty else ("kd", "sft")  # runs of one kind go by the names that are given
            runs = [make_run(f"run{i}", kind, domains=domains, change=change) for i, kind in enumerate(kinds)]
            return render_comparison(runs, [HOSTILE, "b" * 5000], tmp_path / "both.html")
        if nasty:
            return render_study_report(hostile_study(tmp_path / "hostile"))
        study = study_result(methods=("sft", "kd"), sizes=("64", "256", "1024"))
        return render_study_report(write_study(tmp_path / "study", study))

    return make


def overflow(page: Opened, width: int) -> list[str]:
    """What sticks out to the right of a window, but for what scrolls inside its own frame.

    A phone zooms out to show a page that is too wide, so ``innerWidth`` is no measure.
    """
    found: list[str] = page.evaluate(
        f"""[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > {width} + 1
              && !e.closest(".scroll, pre, nav, .skip, .mark")).map((e) => e.outerHTML.slice(0, 120))"""
    )
    wide = page.evaluate("Math.max(innerWidth, document.documentElement.scrollWidth)")
    return [*found, *([f"the page is {wide} px wide"] if wide > width else [])]


@pytest.mark.parametrize("nasty", [False, True], ids=["ordinary", "hostile"])
@pytest.mark.parametrize("kind", PLOTS)
def test_pages_draw_without_complaint_on_every_screen_and_on_paper(
    browser: Browser, make_page: MakePage, kind: str, nasty: bool
) -> None:
    path = make_page(kind, nasty)
    page = browser.open(path.as_uri())
    assert page.complaints == []
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.trace, .point')).length"
    )
    assert drawn == page.evaluate("document.querySelectorAll('.plot').length") >= (1 if nasty else PLOTS[kind])
    assert overflow(page, DESKTOP) == []
    document = page.document()
    assert "data-pwned" not in document
    assert "javascript:" not in "".join(re.findall(r"<a [^>]*>", document))
    labels = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", document, re.DOTALL))
    assert ("&lt;/script&gt;" in labels) == nasty
    assert "bold</tspan>" not in labels
    page.close()

    phone = browser.open(path.as_uri(), width=PHONE, media=DARK)
    assert overflow(phone, PHONE) == []
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 20, 17)"
    assert phone.evaluate("document.querySelector('.plot').layout.font.color") == "#f0ebe4"
    if not nasty:
        assert phone.pdf().startswith(b"%PDF-")
        phone.evaluate("dispatchEvent(new Event('beforeprint'))")  # paper is light in the dark too
        assert phone.evaluate("document.querySelector('.plot').layout.font.color") == "#221d18"
    assert phone.complaints == []
    phone.close()


def test_a_served_study_leads_to_the_pages_of_its_runs(browser: Browser, make_page: MakePage) -> None:
    folder = make_page("study", False).parent
    with served(folder) as server:
        page = browser.open(server.url)
        link = "document.querySelector('#runs .served a')"
        page.evaluate("document.querySelector('#runs details').open = true")
        assert page.evaluate(f"getComputedStyle({link}.parentElement).display") == "inline"
        run = browser.open(page.evaluate(f"{link}.href"))
        assert "Training closed" in run.evaluate("document.querySelector('h1').textContent")
        assert page.complaints == run.complaints == []
        run.close()
        page.close()
    page = browser.open((folder / "report.html").as_uri())  # opened as a file, where such a link would be dead
    assert page.evaluate(f"getComputedStyle({link}.parentElement).display") == "none"
    page.close()


def test_a_legend_answers_to_the_keyboard(browser: Browser, make_page: MakePage) -> None:
    page = browser.open(make_page("comparison", False).as_uri())
    page.evaluate("document.querySelector('.legend button').focus()")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") in ("solid", "auto")
    shown = "document.querySelector('.plot').data.filter((trace) => trace.visible).length"
    before = page.evaluate(shown)
    for event in ("rawKeyDown", "char", "keyUp"):
        key = {"type": event, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        browser.call("Input.dispatchKeyEvent", {**key, **({"text": "\r"} if event == "char" else {})}, page.session)
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    assert page.evaluate(shown) == before - 1
    page.close()
