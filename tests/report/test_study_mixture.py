"""The mixture on a study's page, and the start in its perplexity ratios."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fake_run import BEFORE, DOMAINS, HOSTILE
from fake_study import study_result, write_study
from test_page import Page

from stillhouse.report.study import render_study_report
from stillhouse.report.study_arms import Arms
from stillhouse.report.study_data import StudyData, read_study_folder
from stillhouse.report.study_mixture import MAX_CURVED, StudyMixture, study_mixture
from stillhouse.report.study_ratios import ratio_tables


def written(folder: Path, methods: Sequence[str], **changes: Any) -> StudyData:
    settings = {"sizes": ("64",), "teachers": ("strong",), "seeds": (0, 1)} | changes
    return read_study_folder(write_study(folder, study_result(methods=methods, **settings)))


def section_of(study: StudyData) -> StudyMixture:
    section = study_mixture(study, Arms(study.analysis))
    assert section is not None
    return section


def change_results(folder: Path, pattern: str, change: Mapping[str, Any]) -> None:
    for path in folder.glob(f"runs/{pattern}/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        for name, value in change.items():
            result[name] |= value
        path.write_text(json.dumps(result), encoding="utf-8")


def test_arms_that_follow_the_gap_have_curves_on_one_axis(tmp_path: Path) -> None:
    section = section_of(written(tmp_path / "s", ("sft", "ddk", "ddk_unsmoothed")))
    assert [chart.title for chart in section.charts] == [
        "Weights, ddk",
        "Discrepancy, ddk",
        "Weights, ddk_unsmoothed",
        "Discrepancy, ddk_unsmoothed",
    ]
    weights, ratios = section.charts[:2]
    assert weights.figure["data"][0]["y"] == [0.5, 0.4, 0.3, 0.3]
    assert ratios.figure["data"][0]["y"] == [3.0, 2.5, 2.0]
    # the highest weight is .5 and 5 % above it are free; ratios lie between 2 - .1 * 5 and 3
    assert weights.figure["layout"]["yaxis"]["range"] == [0.0, 0.525]
    assert section.charts[3].figure["layout"]["yaxis"]["range"] == [1.5 - 0.075, 3.0 + 0.075]
    assert weights.note.startswith("Seed 0, size 64. Share of the tokens")
    assert weights.table is not None
    assert len({chart.id for chart in section.charts}) == 4


def test_more_following_arms_than_are_drawn_are_counted(tmp_path: Path) -> None:
    section = section_of(written(tmp_path / "s", ("sft", "ddk"), teachers=("a", "b", "c", "d", "e"), seeds=(0,)))
    assert len(section.charts) == 2 * MAX_CURVED
    assert "The first 4 of 5 such arms" in section.note


def test_arms_of_plain_epochs_are_counted_in_targets(tmp_path: Path) -> None:
    tokens, targets = section_of(written(tmp_path / "s", ("sft", "ddk"))).tables
    # drawn of the first domain: 5,000 + 4,000 + 3,000 of 30,000; its training set holds 872 * 12 tokens
    assert tokens.columns == ("Domain", "Training set", "ddk")
    assert tokens.rows[0] == ("advice", "10,464\n17 %", "12,000\n40 %")
    assert tokens.caption.startswith("Tokens trained on, by domain at size 64")
    # 60 steps of 10, 20, ... 60 targets: 600 of 12,600 in the first domain, for both arms
    assert targets.columns == ("Domain", "Training set", "Every arm")
    assert targets.rows[0][2] == "600\n5 %"
    assert targets.rows[-1] == ("Total", "20,928", "12,600")
    assert "Target tokens" in targets.caption


def test_where_all_draw_by_intervals_tokens_are_enough(tmp_path: Path) -> None:
    section = section_of(written(tmp_path / "s", ("ddk", "ddk_unsmoothed")))
    assert [table.columns[-1] for table in section.tables] == ["Every arm"]


def test_draws_that_were_not_all_trained_on_are_not_called_tokens(tmp_path: Path) -> None:
    study = written(tmp_path / "s", ("ddk", "ddk_unsmoothed"))
    change_results(tmp_path / "s", "ddk-64-*", {"training": {"tokens": 29_000}})
    tokens, targets = section_of(study).tables
    assert tokens.columns[2:] == ("ddk_unsmoothed",)
    assert targets.columns[2:] == ("Every arm",)


def test_a_study_of_plain_epochs_shows_targets_alone(tmp_path: Path) -> None:
    study = written(tmp_path / "s", ("sft", "kd"))
    section = section_of(study)
    assert (section.charts, section.note, len(section.tables)) == ([], "", 1)
    text = Page(render_study_report(study.folder).read_text(encoding="utf-8")).text
    assert "Tokens by domain Target tokens (those that are scored) trained on" in text


def test_without_run_directories_there_is_no_section(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", study_result(methods=("sft", "ddk"), sizes=("64",)), runs=False)
    study = read_study_folder(folder)
    arms = Arms(study.analysis)
    assert study_mixture(study, arms) is None
    assert "Start" not in ratio_tables(study, arms)[0].columns


def test_ratios_begin_with_the_start_that_all_arms_share(tmp_path: Path) -> None:
    study = written(tmp_path / "s", ("sft", "kd"))
    (found,) = ratio_tables(study, Arms(study.analysis))
    assert found.columns[:3] == ("Domain", "Start", "sft")
    # advice: the student starts at 3.10; the strong teacher has 1.44 + 0.5 * 0.55
    ratios = [math.exp(b - 1.44 - 0.5 * o) for b, o in zip(BEFORE, (0.55, -0.42, 0.1, -0.2, 0.15, -0.18), strict=True)]
    assert found.rows[0][1] == f"{ratios[0]:.2f}"
    assert found.rows[-2][1] == f"{sum(ratios) / 6:.2f}"
    assert found.rows[-1][1] == f"{max(ratios) / min(ratios):.2f}"
    assert "Start: before training" in found.caption


def test_arms_that_start_apart_have_a_start_each(tmp_path: Path) -> None:
    study = written(tmp_path / "s", ("sft", "kd"))
    other = {"domains": {name: {"nll": 1.44} for name in DOMAINS}}
    change_results(tmp_path / "s", "kd-*", {"evaluation": {"student_before": other}})
    (found,) = ratio_tables(study, Arms(study.analysis))
    assert found.columns == ("Domain", "Start of sft", "sft", "Start of kd", "kd")
    assert found.rows[0][3] == f"{math.exp(-0.5 * 0.55):.2f}"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    study = written(tmp_path / HOSTILE.replace("/", "_")[:20], ("sft", "ddk"), domains=(HOSTILE, *DOMAINS[1:]))
    page = render_study_report(study.folder).read_text(encoding="utf-8")
    assert 'id="mixture"' in page
    assert 'href="#mixture"' in page
    assert "</script><script>document" not in page
