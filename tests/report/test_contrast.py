"""Text and marks of the pages stand out from their ground, in light and in dark (WCAG 2.2, 1.4.3 and 1.4.11)."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from stillhouse.report.comparison import COLORS as ARMS
from stillhouse.report.study_arms import COLORS

STYLE = files("stillhouse.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
TEXT = [
    *((ink, ground) for ink in ("ink", "muted", "accent") for ground in ("page", "card", "accent-soft", "warn-soft")),
    *(("ink", ground) for ground in ("good-soft", "bad-soft")),
]
MARKS = [(name.removeprefix("@"), "card") for name in (*COLORS, *ARMS, "@before", "@teacher", "@muted")]


def themes() -> dict[str, dict[str, str]]:
    """The CSS variables of both themes; dark ones replace light ones."""
    light = STYLE[: STYLE.index("@media")]
    dark = STYLE[STYLE.index("@media screen and (prefers-color-scheme: dark)") :].split("}", 1)[0]
    pattern = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")
    found = dict(pattern.findall(light))
    return {"light": found, "dark": found | dict(pattern.findall(dark))}


def luminance(color: str) -> float:
    """Relative luminance of an sRGB colour, by the formula of WCAG 2.2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # #767676 on white is the well-known edge: 0.2126+0.7152+0.0722 = 1 times ((118/255+.055)/1.055)^2.4 = .1812.
    assert contrast("#767676", "#ffffff") == pytest.approx(1.05 / 0.2312, rel=1e-3)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), TEXT)
def test_text_can_be_read(theme: str, ink: str, ground: str) -> None:
    colors = themes()[theme]
    assert contrast(colors[ink], colors[ground]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("mark", "ground"), MARKS)
def test_marks_can_be_seen(theme: str, mark: str, ground: str) -> None:
    colors = themes()[theme]
    assert contrast(colors[mark], colors[ground]) >= 3


def test_the_dark_theme_names_every_color_again() -> None:
    names = themes()
    assert {n for n in names["light"] if names["light"][n] == names["dark"][n]} == set()
