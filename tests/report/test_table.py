"""Tables that stand for charts."""

from __future__ import annotations

from stillhouse.report.table import curve_table, interval, stacked, table


def test_intervals_in_words() -> None:
    found = {"mean": 0.0449, "low": 0.02, "high": 0.07}
    assert interval(found) == "0.045 (0.020 to 0.070)"
    assert stacked(found) == "0.045\n0.020 to 0.070"
    alone = {"mean": 0.0449, "low": None, "high": None}
    assert interval(alone) == "0.045 (one seed)"
    assert stacked(alone) == "0.045\none seed"
    assert interval(None) == stacked(None) == "–"


def test_rows_beyond_the_limit_are_counted() -> None:
    made = table("c", ["a"], [(str(i),) for i in range(7)], limit=5)
    assert (len(made.rows), made.omitted) == (5, 2)


def test_a_long_curve_keeps_its_ends_and_says_how_many_points_it_has() -> None:
    steps = [float(i) for i in range(100)]
    made = curve_table("NLL.", "Step", [("a", steps, steps), ("b", [0.0, 50.0], [1.0, None])])
    assert len(made.rows) == 12
    assert made.rows[0] == ("0", "0.000", "1.000")
    assert made.rows[-1] == ("99", "99.000", "–")
    assert made.caption == "NLL. 12 of 100 points."


def test_a_short_curve_is_whole() -> None:
    assert curve_table("NLL.", "Step", [("a", [5.0], [1.5])]).rows == (("5", "1.500"),)
