"""What ``stillhouse advise`` and ``check-adviser`` print (cli/advise.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.cli.advise import advice_lines, check_adviser, measurement_table, parse_sizes
from stillhouse.errors import RecipeError
from stillhouse.study.adviser.evidence import DomainMeasurement, Evidence, Measurement
from stillhouse.study.adviser.recommend import recommend

MEASUREMENT = Measurement(
    {name: DomainMeasurement(2.0, nll, 0.5, 1.25, 0.4, 0.3, 500) for name, nll in (("code", 2.5), ("math", 3.5))}
)


def test_sizes() -> None:
    assert parse_sizes("300, 100") == (100, 300)
    assert parse_sizes(None) is None


@pytest.mark.parametrize("text", ["100", "100,100", "a,b", "0,5", ""])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--sizes"):
        parse_sizes(text)


def test_table_has_domains_and_their_mean() -> None:
    table = measurement_table(MEASUREMENT)
    assert [list(column.cells) for column in table.columns][:3] == [
        ["code", "math", "macro average"], ["2.000"] * 3, ["2.500", "3.500", "3.000"],
    ]  # fmt: skip


def test_lines_end_with_what_cannot_be_told() -> None:
    advice = recommend(Evidence("sft", "kd", 5000, measurement=MEASUREMENT, assumptions=["one stage"]))
    lines = advice_lines(advice)
    assert lines[1].startswith("Whether kd or sft is better here cannot be told")
    assert lines[-1] == "- one stage"
    assert "What this cannot tell:" in lines


def test_check_writes_the_hit_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "labels": {"method": method, "size": str(size)},
            "seed": seed,
            "status": "done",
            "run": "r",
            "error": None,
            "result": {
                "nll": 2.0 + 0.001 * seed * (method == "kd") - 0.1 * (method == "kd"),
                "teacher_nll": 1.5,
                "train_rows": size,
                "flops": None,
            },
        }
        for method in ("sft", "kd")
        for size in (100, 300, 900)
        for seed in range(3)
    ]
    axes = {"method": ["sft", "kd"], "size": ["100", "300", "900"]}
    (tmp_path / "study_result.json").write_text(
        json.dumps({"name": "x", "axes": axes, "seeds": [0, 1, 2], "rows": rows})
    )
    check_adviser(tmp_path, None)
    assert json.loads((tmp_path / "adviser.json").read_text())["right"] == 1
    assert "right in 1 of 1 held-out cells" in " ".join(capsys.readouterr().out.split())
