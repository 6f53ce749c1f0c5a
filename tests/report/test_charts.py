"""Figures: what they draw, that Plotly accepts them, and that long runs stay light."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest
from fake_run import AFTER, DOMAINS, HOSTILE, evaluation_line, step_line

from stillhouse.report import charts
from stillhouse.report.charts import Chart, Series

STEPS = [step_line(step, kd=True) for step in range(1, 63)]
EVALUATIONS = [evaluation_line(step, DOMAINS, AFTER["kd"]) for step in range(0, 63, 8)]


def every_chart() -> list[Chart]:
    drawn = [
        charts.domain_bars(DOMAINS, [Series("teacher", "@teacher", [1.0] * 5 + [None])]),
        charts.loss_chart(STEPS),
        charts.validation_chart(EVALUATIONS, 1.3),
        charts.gradient_chart(STEPS),
        charts.teacher_chart(STEPS),
        charts.agreement_chart(STEPS),
        charts.run_curves([("KD", "@student", EVALUATIONS), ("SFT", "@run2", EVALUATIONS)]),
    ]
    return [chart for chart in drawn if chart is not None]


def without_color_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_color_names(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_color_names(v) for v in value]
    return "#123456" if isinstance(value, str) and value.startswith("@") else value


@pytest.mark.parametrize("chart", every_chart(), ids=lambda chart: chart.id)
def test_plotly_accepts_every_figure(chart: Chart) -> None:
    figure = go.Figure(without_color_names(chart.figure))  # raises on an unknown or bad property
    assert len(figure.data) == len(chart.figure["data"])
    assert len(chart.description) > 20


def test_sft_has_no_teacher_charts_and_one_loss_curve() -> None:
    steps = [step_line(step, kd=False) for step in range(1, 10)]
    assert charts.gradient_chart(steps) is None
    assert charts.teacher_chart(steps) is None
    assert charts.agreement_chart(steps) is None
    loss = charts.loss_chart(steps)
    assert loss is not None
    assert [trace["name"] for trace in loss.figure["data"]] == ["cross-entropy"]


def test_nothing_to_draw_gives_no_chart() -> None:
    assert charts.loss_chart([]) is None
    assert charts.validation_chart([], 1.0) is None
    assert charts.run_curves([("KD", "@student", [])]) is None


def test_a_long_run_is_averaged_in_buckets_and_says_so() -> None:
    steps = [{"step": i, "loss": float(i), "ce": None, "kd": None} for i in range(1, 1001)]
    chart = charts.loss_chart(steps)
    assert chart is not None
    trace = chart.figure["data"][0]
    # ceil(1000 / 400) = 3 steps a point: 334 points, the first at step 3 with the mean of 1, 2, 3.
    assert (len(trace["x"]), trace["x"][0], trace["y"][0]) == (334, 3, 2.0)
    assert chart.note == "Each point averages 3 steps."


def test_values_that_are_missing_are_left_out() -> None:
    chart = charts.loss_chart([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}])
    assert chart is not None
    assert chart.figure["data"][0]["x"] == [1]


def test_domain_names_cannot_carry_markup_or_merge_when_shortened() -> None:
    names = [HOSTILE, "x" * 60 + "1", "x" * 60 + "2", "2024-01-01"]
    chart = charts.domain_bars(names, [Series("teacher", "@teacher", [1.0, 2.0, 3.0, 4.0])])
    labels = chart.figure["data"][0]["y"]
    assert len(set(labels)) == 4
    assert not any("<" in label for label in labels)
    assert chart.figure["layout"]["yaxis"]["type"] == "category"
