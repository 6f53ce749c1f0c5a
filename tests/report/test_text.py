"""Numbers and foreign strings in pages."""

from __future__ import annotations

import html
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.report.text import amount, chart_label, clip, count, duration, enumeration, number, share


def test_clip_says_what_it_cut() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("abcdef" * 1000, 4) == "abcd … [shortened, 5,996 more characters]"


def test_clip_shows_control_characters_and_keeps_line_breaks() -> None:
    assert clip("a\x00b\x1bc\nd\te", 20) == "a␀b␛c\nd\te"


@given(st.text())
def test_chart_labels_hold_no_markup_and_one_line(text: str) -> None:
    label = chart_label(text)
    assert "<" not in label
    assert ">" not in label
    assert "\n" not in label
    assert len(html.unescape(label)) <= 28 + 2


def test_chart_label_keeps_the_start_and_isolates_direction() -> None:
    assert chart_label("a<b> & c") == "\u2068a&lt;b&gt; &amp; c\u2069"
    assert chart_label("x" * 100) == "\u2068" + "x" * 27 + "…\u2069"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(1.005, 1), "1.0"),
        (number(None), "–"),
        (number(math.nan), "–"),
        (number(True), "–"),
        (count(61070), "61,070"),
        (share(0.734), "73 %"),
        (share(None), "–"),
        (amount(134_515_008), "135 M"),
        (amount(61_070), "61.1 k"),
        (amount(7e9), "7 B"),
        (amount(12), "12"),
        (amount(None), "–"),
        (duration(59.6), "1 min 0 s"),
        (duration(48), "48 s"),
        (duration(7500), "2 h 5 min"),
        (duration(None), "–"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_enumeration() -> None:
    assert enumeration(["a"]) == "a"
    assert enumeration(["a", "b", "c"]) == "a, b and c"
    assert enumeration(list("abcdefgh"), 3) == "a, b, c and 5 more"
