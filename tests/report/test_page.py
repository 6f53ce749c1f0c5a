"""``report.html``: what it says, and that nothing from a run can act in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import DOMAINS, HOSTILE

from stillhouse.errors import OutputError
from stillhouse.report.html import script_json
from stillhouse.report.page import render_run_report

MakeRun = Callable[..., Path]
HOSTILE_DOMAINS = (HOSTILE, "مجال عربي", "emoji 🥃 domain", "%{x} 50% $math$", "2024-01-01", "long " * 3000)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._skip = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skip += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def page_of(folder: Path) -> Page:
    return Page(render_run_report(folder).read_text(encoding="utf-8"))


def hostile(result: dict[str, Any]) -> None:
    result["warnings"] = [HOSTILE, "w" * 100_000]
    result["samples"][0] |= {
        "prompt": HOSTILE,
        "student_after": "🥃" * 50_000,
        "teacher": "\u202eשלום\x00\ud800",
        "domain": HOSTILE,
    }
    result["data"]["train"]["rejected"][HOSTILE] = 3
    result["data"]["train"]["rejected_examples"] = [HOSTILE]
    result["training"]["stopped_because"] = HOSTILE


def test_a_finished_run_shows_its_numbers(make_run: MakeRun) -> None:
    page = page_of(make_run())
    for part in (
        "Training closed 98 % of the gap to the teacher.",
        "advice 1.95 3.10 2.24 75 % 310",
        "arithmetic teacher worse 1.28 2.52 0.97 125 % 407",
        "The capital of Kenya is Nairobi.",
        "Rejected: bad role order 2 2 2",
        "advice: only 310 held-out content tokens",
        "stillhouse train runs/kd/recipe.yaml output.dir=runs/kd-again",
        "113 M parameters, 84 % of the teacher's",
    ):
        assert part in page.text, part
    figures = [a["data-figure"] for _, a in page.tags if "data-figure" in a]
    assert figures == [f"figure-{n}" for n in ("domains", "validation", "loss", "gradients", "teacher", "agreement")]


def test_the_file_is_whole_and_opens_offline(make_run: MakeRun) -> None:
    page = page_of(make_run())
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert links
    assert all(link is not None and link.startswith(("#", "data:,")) for link in links)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_plot_has_words_and_every_table_a_caption(make_run: MakeRun) -> None:
    page = page_of(make_run())
    plots = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 20 for attrs in plots)
    # Four of results, and one for each of the five charts that stand beside none.
    assert page.count("table") == page.count("caption") == 4 + 5
    assert page.count("h1") == 1


def test_hostile_strings_stay_text(make_run: MakeRun) -> None:
    clean = page_of(make_run("clean"))
    page = page_of(make_run("hostile", domains=HOSTILE_DOMAINS, change=hostile))
    assert page.count("script") == clean.count("script")
    assert page.count("b") == 0
    assert not any((attrs.get("href") or "").startswith("javascript") for _, attrs in page.tags)
    assert HOSTILE in page.text
    assert "[shortened, 48,800 more characters]" in page.text
    assert "[shortened, 99,500 more characters]" in page.text
    assert "مجال عربي" in page.text


def test_a_page_with_hostile_strings_is_not_much_longer(make_run: MakeRun) -> None:
    clean = render_run_report(make_run("clean")).stat().st_size
    dirty = render_run_report(make_run("hostile", domains=HOSTILE_DOMAINS, change=hostile)).stat().st_size
    assert dirty - clean < 100_000


def test_json_in_a_script_cannot_end_it() -> None:
    text = str(script_json({"</script>": "\u2028<!--&"}))
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"</script>": "\u2028<!--&"}


def test_an_unfinished_run_has_curves_and_no_results(make_run: MakeRun) -> None:
    page = page_of(make_run(finished=False))
    assert "This run is not finished: its last record is of step 20." in page.text
    figures = [a["data-figure"] for _, a in page.tags if "data-figure" in a]
    assert figures == [f"figure-{n}" for n in ("validation", "loss", "gradients", "teacher", "agreement")]
    assert page.count("table") == len(figures)


def test_a_run_that_only_just_began(make_run: MakeRun) -> None:
    folder = make_run(finished=False)
    (folder / "metrics.jsonl").unlink()
    (folder / "environment.json").unlink()
    page = page_of(folder)
    assert "There is no evaluation yet." in page.text
    assert "metrics.jsonl is missing" in page.text


def test_without_a_teacher_there_is_no_gap(make_run: MakeRun) -> None:
    page = page_of(make_run("alone", "sft", teacher=False))
    assert "Gap closed" not in page.text
    assert "not generated" in page.text
    assert "Domain Before After Tokens" in page.text


def test_a_place_that_cannot_be_written_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "report.html").mkdir()
    (folder / "report.html" / "x").touch()
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        render_run_report(folder)


def test_the_domains_of_the_recipe_are_the_rows(make_run: MakeRun) -> None:
    text = page_of(make_run()).text
    assert all(f"{name} " in text for name in DOMAINS)
