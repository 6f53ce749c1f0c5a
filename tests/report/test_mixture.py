"""The mixture on the run page and the perplexities of a comparison, from the files of the runs alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import DOMAINS, HOSTILE, STEPS

from stillhouse.report.comparison import render_comparison
from stillhouse.report.mixture import mixture_section, perplexity_table
from stillhouse.report.page import render_run_report
from stillhouse.report.rundata import read_run

MakeRun = Callable[..., Path]
INTERVAL = 20


def with_intervals(run: Path, domains: tuple[str, ...] = DOMAINS, *, ratios: bool = True) -> Path:
    """Add the events of four intervals, in which the first domain lags and then catches up."""
    lines = []
    for interval, step in enumerate(range(0, STEPS, INTERVAL)):
        rows = {}
        for i, name in enumerate(domains):
            ratio = 1.2 + (1.5 / (interval + 1) if i == 0 else 0.1 * i)
            weight = 0.5 / (interval + 1) if i == 0 else (1 - 0.5 / (interval + 1)) / (len(domains) - 1)
            rows[name] = {
                "ratio": ratio if ratios else None,
                "student_nll": 2.0 + math.log(ratio) if ratios else None,
                "teacher_nll": 2.0 if ratios else None,
                "weight": weight,
                "quota_tokens": round(20_000 * weight),
                "drawn_tokens": round(20_000 * weight) + 7,
                "documents": 12,
                "balance_tokens": -7,
                "passes": 0.4 * (interval + 1) * (3 if i == 0 else 1),
            }
        lines.append(
            {
                "event": "mixture",
                "step": step,
                "stage": "main",
                "interval": interval,
                "measured_seconds": 0.2,
                "domains": rows,
            }
        )
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    return run


def overhead(result: dict[str, Any]) -> None:
    result["mixture"] = {
        "stage": "main",
        "validation_tokens_per_domain": 1234,
        "predicted_overhead": 0.021,
        "measured_overhead": 0.034,
    }


def test_weights_ratios_tokens_and_perplexities(make_run: MakeRun) -> None:
    run = read_run(with_intervals(make_run(change=overhead)))
    section = mixture_section(run)
    assert section is not None
    weights, ratios, perplexities = section.charts
    assert weights.figure["data"][0]["x"] == [0, 20, 40, 60, STEPS]  # the last weight holds to the end
    assert weights.figure["data"][0]["y"] == pytest.approx([0.5, 0.25, 1 / 6, 0.125, 0.125], abs=1e-5)
    assert weights.figure["data"][0]["line"]["shape"] == "hv"
    assert ratios.figure["data"][0]["y"] == pytest.approx([2.7, 1.95, 1.7, 1.575])
    assert "advice from 2.700 to 1.575" in ratios.description
    before, after, teacher = perplexities.figure["data"]
    assert after["x"][1] == pytest.approx(math.exp(0.97))
    assert (before["name"], teacher["name"]) == ("before", "teacher")
    assert section.table is not None
    # 20,000 * (0.5 + 0.25 + 1/6 + 0.125) = 20,833 and 4 * 7 more
    assert section.table.rows[0] == ("advice", "50 %", "12 %", "2.700", "1.575", "20,861", "26 %", "4.80")
    assert "1,234 held-out tokens a domain" in section.note
    assert "was to cost 2.1% of the training time and cost 3.4%" in section.note
    page = render_run_report(run.path).read_text(encoding="utf-8")
    assert 'id="mixture"' in page
    assert 'href="#mixture"' in page


def test_plain_epochs_have_no_mixture(make_run: MakeRun) -> None:
    path = make_run()
    assert mixture_section(read_run(path)) is None
    assert 'id="mixture"' not in render_run_report(path).read_text(encoding="utf-8")


def test_an_unfinished_run_and_one_without_ratios(make_run: MakeRun) -> None:
    section = mixture_section(read_run(with_intervals(make_run(finished=False), ratios=False)))
    assert section is not None
    assert [chart.id for chart in section.charts] == ["weights"]
    assert section.table is not None
    assert section.table.rows[0][3:5] == ("–", "–")
    assert section.note == ""


def test_a_stop_without_a_draw_is_read(make_run: MakeRun) -> None:
    path = with_intervals(make_run())
    last = {"ratio": 1.01, "student_nll": 2.01, "teacher_nll": 2.0}
    with (path / "metrics.jsonl").open("a") as file:
        rows = dict.fromkeys(DOMAINS, last)
        file.write(
            json.dumps({"event": "mixture", "step": 61, "stage": "main", "interval": None, "domains": rows}) + "\n"
        )
    section = mixture_section(read_run(path))
    assert section is not None
    assert section.charts[0].figure["data"][0]["x"][-2:] == [60, STEPS]
    assert section.charts[1].figure["data"][0]["y"][-1] == 1.01


def test_a_proxy_shows_the_weights_that_it_found(make_run: MakeRun) -> None:
    path = make_run()
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] == "step":
            shares = {name: 1 / len(DOMAINS) for name in DOMAINS}
            line["doremi"] = {"weights": shares, "average": shares, "excess": {DOMAINS[0]: 0.1 * line["step"]}}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps({**result, "doremi": {"weights": {}}}))
    section = mixture_section(read_run(path))
    assert section is not None
    assert [chart.id for chart in section.charts] == [
        "doremi-weights",
        "doremi-average",
        "doremi-excess",
        "perplexities",
    ]
    assert section.charts[2].figure["data"][1]["y"][0] is None
    assert "doremi_weights.json" in section.note
    render_run_report(path)


def test_many_domains_are_told_apart_and_counted(make_run: MakeRun) -> None:
    domains = tuple(f"domain {i}" for i in range(30))
    section = mixture_section(read_run(with_intervals(make_run(finished=False), domains)))
    assert section is not None
    looks = {(trace["line"]["color"], trace["line"]["dash"]) for trace in section.charts[0].figure["data"]}
    assert len(looks) == len(section.charts[0].figure["data"]) == 24
    assert "The first 24 of 30 domains" in section.charts[0].note


def test_hostile_domains_stay_text(make_run: MakeRun) -> None:
    domains = (HOSTILE, *DOMAINS[1:])
    page = render_run_report(with_intervals(make_run(domains=domains), domains)).read_text(encoding="utf-8")
    assert "</script><script>document" not in page


def test_a_comparison_has_the_perplexities_of_all_arms(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run{i}", kind) for i, kind in enumerate(("kd", "sft", "kd", "sft", "kd", "sft", "kd", "sft"))]
    page = render_comparison(runs, [f"arm {i}" for i in range(8)], tmp_path / "all.html").read_text(encoding="utf-8")
    assert "Perplexity by domain" in page
    results = [json.loads((run / "result.json").read_text()) for run in runs[:2]]
    found = perplexity_table(["a", "b"], results)
    assert found.columns == ("Domain", "Teacher", "Start", "a", "b")
    # knowledge: teacher e^1.06, student e^1.61: 5.00 is 1.73 times 2.89
    assert found.rows[4][:2] == ("knowledge", "2.89")
    assert found.rows[4][3] == "5.00\n× 1.73"
    expected = (
        sum(
            math.exp(a - t)
            for a, t in zip((2.24, 0.97, 1.49, 0.84, 1.61, 1.22), (1.95, 1.28, 1.77, 1.12, 1.06, 1.02), strict=True)
        )
        / 6
    )
    assert found.rows[-1][3] == f"{expected:.3f}"


def test_without_a_teacher_perplexities_stand_alone(make_run: MakeRun) -> None:
    result = json.loads((make_run("sft", "sft", teacher=False) / "result.json").read_text())
    found = perplexity_table(["a"], [result])
    assert found.rows[0][1] == "–"
    assert found.rows[0][3] == f"{math.exp(2.31):.2f}"
    assert len(found.rows) == len(DOMAINS)
