"""How numbers and foreign strings look in pages and cards."""

from __future__ import annotations

import html
import math

MAX_LABEL = 28
_FIRST_STRONG_ISOLATE, _POP_ISOLATE = "\u2068", "\u2069"
# Control characters become their pictures, so that none is invisible and none breaks a page.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
# Embeddings and overrides would turn the sentence around them; right-to-left letters need none of these.
_VISIBLE |= dict.fromkeys(range(0x202A, 0x202F), 0xFFFD)


def clip(text: object, limit: int) -> str:
    """Return at most ``limit`` characters of ``text``; what was cut is said at the end."""
    shown = str(text).translate(_VISIBLE)
    if len(shown) <= limit:
        return shown
    return f"{shown[:limit].rstrip()} … [shortened, {len(shown) - limit:,} more characters]"


def shorten(text: object, limit: int) -> str:
    """Return one line of at most ``limit`` characters; a cut one ends in an ellipsis."""
    line = " ".join(str(text).translate(_VISIBLE).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def chart_label(text: object, limit: int = MAX_LABEL) -> str:
    """Return one short line for a Plotly label.

    Plotly reads tags (<b>, <a>) and entities in labels, so markup is escaped; the direction of
    right-to-left text is kept from spreading over its neighbors.
    """
    line = shorten(text, limit)
    return f"{_FIRST_STRONG_ISOLATE}{html.escape(line, quote=False)}{_POP_ISOLATE}"


def number(value: object, digits: int = 2) -> str:
    """Return a number with fixed digits; an en dash where there is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}"


def count(value: object) -> str:
    """Return a whole number with thousands separators; an en dash where there is none."""
    return number(value, 0)


def share(value: object) -> str:
    """Return a fraction as percent, 0.734 as ``73 %``; an en dash where there is none."""
    return f"{value * 100:.0f} %" if isinstance(value, int | float) and math.isfinite(value) else "–"


def amount(value: object) -> str:
    """Return a large count in words of three digits: 134515008 as ``135 M``."""
    if not isinstance(value, int | float):
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def flops(value: object) -> str:
    """Return floating-point operations in words of three digits: 1.24e15 as ``1.24 PFLOP``."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value:.0f} FLOP"


def duration(seconds: object) -> str:
    """Return seconds as people say them: ``48 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def enumeration(names: list[str], limit: int = 6) -> str:
    """Join names as in a sentence: ``a, b and c``; more than ``limit`` are counted."""
    if len(names) > limit:
        names = [*names[:limit], f"{len(names) - limit} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
