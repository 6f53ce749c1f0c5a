"""The page of a study: what it says, what it does with half a study, and that nothing from the data can act in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from fake_run import HOSTILE
from fake_study import study_result, write_study
from test_charts import without_color_names
from test_page import HOSTILE_DOMAINS, Page

from stillhouse.errors import OutputError
from stillhouse.report.study import render_study_report

MakeStudy = Callable[..., Path]
KINDS = ("scaling-0", "gains-0", "ladder-0", "domains-0-0", "domains-0-1", "cost-flops", "cost-seconds")
LEARNING = ("learning-0-0", "learning-0-1", "learning-0-2")


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Write a study's folder; keyword arguments go to ``study_result``."""

    def make(name: str = "chat", *, runs: bool = False, analysis: bool = True, **changes: Any) -> Path:
        return write_study(tmp_path / name, study_result(**changes), runs=runs, analysis=analysis)

    return make


def text_of(folder: Path) -> Page:
    return Page(render_study_report(folder).read_text(encoding="utf-8"))


def figures(page: Page) -> list[str]:
    return [(a["data-figure"] or "").removeprefix("figure-") for _, a in page.tags if "data-figure" in a]


def test_a_whole_study_shows_its_charts_tables_and_samples(make_study: MakeStudy) -> None:
    page = text_of(make_study(runs=True, methods=("sft", "kd"), sizes=("64", "256", "1024")))
    assert sorted(figures(page)) == sorted([*KINDS, *LEARNING])
    for part in (
        "Distillation wins with little data agrees kd, same-data teacher",
        "Arm 64 rows 256 rows 1,024 rows kd, same-data teacher 0.0",
        "Where the advantage over sft ends. “Never cross” is the share of resampled seeds",
        "Domain Start of sft, to same-data sft, to same-data Start of sft, to strong sft, to strong "
        "Start of kd, same-data teacher kd, same-data teacher Start of kd, strong teacher kd, strong teacher advice",
        "Which city is the capital of Kenya?",
        "The capital of Kenya is Nairobi. (kd, 64 rows, teacher strong)",
        "Teacher strong The capital of Kenya is Nairobi, a city in the south",
        "Every run of the grid has finished.",
        "stillhouse train studies/chat/runs/sft-64-same-data-seed0/recipe.yaml "
        "output.dir=studies/chat/runs/sft-64-same-data-seed0-again",
        "stillhouse open studies/chat",
    ):
        assert part in page.text, part


def test_every_chart_has_words_and_its_numbers_as_a_table(make_study: MakeStudy) -> None:
    page = text_of(make_study(runs=True, methods=("sft", "kd"), sizes=("64", "256", "1024")))
    plots = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in plots)
    numbers = [attrs for tag, attrs in page.tags if tag == "details" and attrs.get("class") == "numbers"]
    assert len(numbers) == len(plots) == 10
    assert page.count("table") == page.count("caption")
    assert page.count("h1") == 1


def test_plotly_accepts_every_figure(make_study: MakeStudy) -> None:
    text = render_study_report(make_study(runs=True, methods=("sft", "kd"))).read_text(encoding="utf-8")
    pieces = text.split('<script type="application/json" id="figure-')[1:]
    assert len(pieces) == 10
    for piece in pieces:
        figure = json.loads(piece.split(">", 1)[1].split("</script>", 1)[0])
        go.Figure(without_color_names(figure))  # raises on an unknown or bad property


def test_one_arm_says_until_which_size_it_wins(make_study: MakeStudy) -> None:
    # nll_of: under the same-data teacher the gain is .9 / sqrt(D) - .045, which is above 0 below 400 rows.
    page = text_of(make_study(methods=("sft", "kd"), teachers=("same-data",), seeds=range(8)))
    assert "kd beat sft up to 256 rows" in page.text


def test_many_arms_are_counted_at_both_ends(make_study: MakeStudy) -> None:
    assert "With 64 rows 4 of 4 alternatives beat sft; with 1,024 rows" in text_of(make_study()).text


def test_one_seed_is_called_chance_and_has_no_interval(make_study: MakeStudy) -> None:
    page = text_of(make_study(seeds=(0,), methods=("sft", "kd")))
    assert "with one seed each: this may be chance." in page.text
    assert "(one seed)" in page.text
    assert "agrees kd" not in page.text


def test_failed_and_missing_runs_are_listed(make_study: MakeStudy) -> None:
    def status(labels: Any, seed: int) -> str:
        states = {("kd", 0): "failed", ("kd", 1): "pending"}
        return states.get((labels["method"], seed), "done") if labels["size"] == "128" else "done"

    page = text_of(make_study(methods=("sft", "kd"), teachers=("strong",), status=status))
    assert "method kd, size 128, teacher strong 0 failed loss is not finite at step 41" in page.text
    assert "method kd, size 128, teacher strong 1 pending" in page.text
    assert "2 of 30 runs are missing or failed, so this may still change." in page.text
    assert "28 of 30" in page.text


def test_a_study_without_a_finished_run_has_a_page(make_study: MakeStudy) -> None:
    page = text_of(make_study(status=lambda labels, seed: "pending"))
    assert "No run of this study has finished yet." in page.text
    assert figures(page) == []


def test_without_sizes_each_arm_is_one_line(make_study: MakeStudy) -> None:
    study = study_result(sizes=("64",), teachers=("strong",))
    for row in study["rows"]:
        del row["labels"]["size"], row["labels"]["teacher"]
    study["axes"] = {"method": study["axes"]["method"]}
    page = text_of(write_study(make_study("flat"), study, runs=False))
    assert "kd and two-stage beat sft." in page.text
    assert "only one data size was run" not in page.text
    assert "Results Gain over sft" in page.text
    assert "gains-0" in figures(page)
    assert "scaling-0" not in figures(page)


def test_a_study_of_one_axis_takes_it_for_the_method_and_compares_perplexity_ratios(make_study: MakeStudy) -> None:
    study = study_result(sizes=("64",), teachers=("strong",))
    for row in study["rows"]:
        row["labels"] = {"mixture": row["labels"]["method"]}
    study["axes"] = {"mixture": ["sft", "kd", "two-stage"]}
    page = text_of(write_study(make_study("mixtures"), study, runs=False))
    assert "Domain sft kd two-stage advice" in page.text
    assert "Largest over smallest" in page.text


def test_groups_get_charts_of_their_own(make_study: MakeStudy) -> None:
    study = study_result(methods=("sft", "kd"), teachers=("small", "large"))
    for row in study["rows"]:
        row["labels"]["student"] = row["labels"].pop("teacher")
    study["axes"]["student"] = study["axes"].pop("teacher")
    page = text_of(write_study(make_study("students"), study, runs=False))
    assert {"scaling-0", "scaling-1", "gains-0", "gains-1"} <= set(figures(page))
    assert "Gain over sft by data size, student small" in page.text


def test_an_analysis_of_an_earlier_state_is_not_shown(make_study: MakeStudy) -> None:
    folder = make_study(methods=("sft", "kd"), seeds=(0, 1))
    (folder / "study_result.json").write_text(json.dumps(study_result(methods=("sft", "kd"))), encoding="utf-8")
    assert "60 of 60" in text_of(folder).text


def test_run_directories_may_be_missing_or_damaged(make_study: MakeStudy) -> None:
    folder = make_study(runs=True, methods=("sft", "kd"), teachers=("strong",), sizes=("64", "128"), seeds=(0, 1))
    (folder / "runs/kd-64-strong-seed0/result.json").write_text("{", encoding="utf-8")
    (folder / "runs/kd-64-strong-seed1/recipe.yaml").unlink()
    page = text_of(folder)
    assert "This run cannot be read and was left out of curves and samples" in page.text
    assert "Some run directories are not here" in page.text
    assert "learning-0-0" in figures(page)


def test_a_run_outside_the_folder_is_not_read(make_study: MakeStudy, tmp_path: Path) -> None:
    study = study_result(methods=("sft", "kd"), teachers=("strong",), sizes=("64", "128"), seeds=(0,))
    folder = write_study(tmp_path / "inside", study, runs=True)
    (folder / "runs/kd-64-strong-seed0").rename(tmp_path / "secret")
    for row in study["rows"]:
        if row["run"].endswith("kd-64-strong-seed0"):
            row["run"] = "../secret"
    (folder / "study_result.json").write_text(json.dumps(study), encoding="utf-8")
    page = text_of(folder)
    assert "../secret: this run lies outside the study's folder" in page.text
    assert "(kd, 64 rows" not in page.text
    assert not any("secret" in (attrs.get("href") or "") for _, attrs in page.tags)


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    page = Page(render_study_report(hostile_study(tmp_path / "hostile")).read_text(encoding="utf-8"))
    assert page.count("script") == len(figures(page)) + 2  # Plotly, and what draws with it
    assert page.count("b") == 0
    assert not any((attrs.get("href") or "").startswith("javascript") for _, attrs in page.tags)
    assert "</script><script>document" in page.text
    assert "مجال عربي" in page.text


def hostile_study(folder: Path) -> Path:
    """A study whose labels, domains, errors and samples all try to break out."""
    study = study_result(
        name=HOSTILE + "🥃" * 5000,
        methods=("sft", HOSTILE),
        teachers=("\u202eשלום", "x" * 3000),
        domains=HOSTILE_DOMAINS,
        status=lambda labels, seed: "failed" if (labels["size"], seed) == ("128", 1) else "done",
    )
    for number, row in enumerate(study["rows"]):
        row["run"] = f"runs/{number}"
        row["error"] = HOSTILE + "e" * 100_000 if row["error"] else None
    write_study(folder, study)
    for path in (folder / "runs").glob("*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        result["samples"][0] |= {"prompt": HOSTILE, "student_after": "🥃" * 50_000, "teacher": "\u202eשלום\x00\ud800"}
        path.write_text(json.dumps(result), encoding="utf-8")
    return folder


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no study is here \(study_result\.json is missing\)"):
        render_study_report(tmp_path)


def test_a_large_study_makes_no_endless_page(make_study: MakeStudy) -> None:
    few, many = (make_study(f"n{n}", seeds=range(n), methods=("sft", "kd")) for n in (2, 30))
    # 280 runs more: a line each in the folded list, and nothing else.
    assert render_study_report(many).stat().st_size - render_study_report(few).stat().st_size < 100_000
