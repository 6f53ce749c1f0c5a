"""Runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_page import HOSTILE_DOMAINS, Page, hostile

from stillhouse.errors import OutputError
from stillhouse.report.comparison import render_comparison
from stillhouse.report.page import render_run_report

MakeRun = Callable[..., Path]


def test_sft_beside_kd(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("sft arm", "sft"), make_run("kd", "kd")]
    render_run_report(runs[0])
    page = Page(render_comparison(runs, ["a", "b"], tmp_path / "out" / "both.html").read_text(encoding="utf-8"))
    # (2.31+.93+1.38+.79+1.72+1.25)/6 = 1.3967 and (2.24+.97+1.49+.84+1.61+1.22)/6 = 1.395.
    assert "KD and SFT are level here." in page.text
    assert "KD 1.395, SFT 1.397" in page.text
    assert "knowledge 1.060 2.440 1.720 1.610 best" in page.text
    assert [a["href"] for tag, a in page.tags if tag == "a" and "html" in (a["href"] or "")] == [
        "../sft%20arm/report.html"
    ]
    assert "SFT student The capital of Kenya is Nairobi. KD student" in page.text


def test_runs_of_one_method_go_by_their_names(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["seed 0", "</script><b>x", "seed 2"]
    runs = [make_run(f"run{i}", "kd", domains=HOSTILE_DOMAINS, change=hostile) for i in range(3)]
    page = Page(render_comparison(runs, names, tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "seed 0 beside </script><b>x beside seed 2" in page.text
    assert page.count("b") == 0


def test_an_unfinished_run_cannot_be_compared(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", finished=False)]
    with pytest.raises(OutputError, match="this run is not finished"):
        render_comparison(runs, ["a", "b"], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("number", [1, 9])
def test_too_few_or_too_many_runs(make_run: MakeRun, tmp_path: Path, number: int) -> None:
    with pytest.raises(OutputError, match=f"takes 2 to 8 runs and got {number}"):
        render_comparison([tmp_path] * number, ["x"] * number, tmp_path / "x.html")
