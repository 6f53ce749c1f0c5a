"""Which page a folder gets, and when it is written anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_study import study_result, write_study

from stillhouse.errors import OutputError
from stillhouse.report.folder import fresh_page, render_folder

MakeRun = Callable[..., Path]


def test_each_kind_of_folder_gets_its_page(make_run: MakeRun, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", study_result(methods=("sft", "kd"), seeds=(0, 1)), runs=False)
    assert "Study ·" in render_folder(study).read_text(encoding="utf-8")
    run = make_run("runs/kd")
    assert "Training closed 98 %" in render_folder(run).read_text(encoding="utf-8")
    make_run("runs/sft", "sft")
    make_run("runs/half", finished=False)
    assert "KD and SFT are level here." in render_folder(tmp_path / "runs").read_text(encoding="utf-8")


def test_a_folder_with_nothing_to_show_is_named(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(OutputError, match="no run, study or comparison here"):
        render_folder(tmp_path)
    make_run("alone")
    with pytest.raises(OutputError, match="no run, study or comparison here"):
        render_folder(tmp_path)
    with pytest.raises(OutputError, match="cannot be read"):
        render_folder(tmp_path / "missing")


def test_a_page_is_written_anew_only_where_it_is_old(make_run: MakeRun) -> None:
    run = make_run()
    page = fresh_page(run)
    later = page.stat().st_mtime_ns + 5_000_000_000
    os.utime(page, ns=(later, later))
    assert fresh_page(run).stat().st_mtime_ns == later
    os.utime(run / "metrics.jsonl", ns=(later + 1_000_000_000, later + 1_000_000_000))
    assert fresh_page(run).stat().st_mtime_ns != later


def test_a_page_of_other_scripts_would_be_dead_under_our_policy_and_is_replaced(make_run: MakeRun) -> None:
    run = make_run()
    page = run / "report.html"
    page.write_text("<!doctype html><p>of an older version")
    os.utime(page, (4e9, 4e9))
    assert "Training closed" in fresh_page(run).read_text(encoding="utf-8")


def test_a_page_alone_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<!doctype html><p>hello")
    assert fresh_page(tmp_path).read_text() == "<!doctype html><p>hello"
