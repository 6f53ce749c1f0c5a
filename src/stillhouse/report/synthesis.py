"""The page on a synthetic set: what was kept, what was not and why, and how varied it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import OutputError
from stillhouse.report.charts import BAR_HEIGHT, BAR_MARGIN, Chart, axis_title, base_layout, distinct_labels
from stillhouse.report.html import write_page
from stillhouse.report.text import number, share
from stillhouse.run_directory import read_json
from stillhouse.synthesis.candidates import REASONS, Candidate, keep
from stillhouse.synthesis.journal import read_candidates
from stillhouse.synthesis.run import JOURNAL, PAGE, REPORT

KEPT_SHOWN = 12
REJECTED_SHOWN = 3
"""For each reason."""
LABELS_SHOWN = 20
_MEASURES = (
    ("texts", "Texts", 0),
    ("words", "Words", 0),
    ("distinct_1", "Distinct words", 3),
    ("distinct_2", "Distinct word pairs", 3),
    ("distinct_3", "Distinct word triples", 3),
    ("self_bleu", "Self-BLEU (1: all alike)", 3),
    ("vendi", "Vendi score (effective number of texts)", 1),
    ("mean_pairwise_cosine", "Mean cosine of pairs", 3),
)


@dataclass(frozen=True)
class _Headline:
    title: str
    details: tuple[str, ...]


def render_synthesis(directory: Path, command: str = "stillhouse synthesize RECIPE") -> Path:
    """Write ``report.html`` into the folder of a synthesis and return its path.

    Raises OutputError when the folder holds none, or the page cannot be written.
    """
    if not (directory / REPORT).is_file():
        raise OutputError(f"{directory}: there is no {REPORT}; finish the synthesis with `stillhouse synthesize` first")
    report = read_json(directory / REPORT)
    candidates = _final(read_candidates(directory / JOURNAL), report)
    return write_page(
        directory / PAGE,
        "synthesis.html.jinja",
        headline=_headline(report),
        report=report,
        human=report["diversity"]["sets"]["human"],
        synthetic=report["diversity"]["sets"]["synthetic"],
        reasons=[(name, REASONS[name], count) for name, count in report["rejected"].items()],
        outcomes=_outcomes(report),
        distances=_distances(report["diversity"]),
        labels=_labels(report["labels"]),
        measures=[
            (title, *(number(report["diversity"]["sets"][which][key], digits) for which in ("human", "synthetic")))
            for key, title, digits in _MEASURES
        ],
        kept=[c for c in candidates if c.passed][:KEPT_SHOWN],
        rejected=_examples(candidates),
        command=command,
    )


def _final(candidates: Sequence[Candidate], report: Mapping[str, Any]) -> list[Candidate]:
    """The candidates with what was decided at the end."""
    tail = report["identity"]["settings"]["filters"]["nll_tail"]
    final = {c.number: c for c in keep([c for c in candidates if c.passed], report["target"], tail)}
    return [final.get(c.number, c) for c in candidates]


def _headline(report: Mapping[str, Any]) -> _Headline:
    details = (
        f"{report['kept']:,} new rows in the manner of {report['seeds']:,} human ones: "
        f"{number(report['ratio_achieved'])} for each, {number(report['ratio_wanted'])} were wanted.",
        f"{share(report['acceptance'])} of {report['candidates']:,} candidates were kept.",
    )
    return _Headline("Synthetic rows", details)


def _examples(candidates: Sequence[Candidate]) -> list[tuple[str, str, list[Candidate]]]:
    """The first candidates for each reason, as (reason, meaning, candidates)."""
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.rejection is not None:
            found.setdefault(candidate.rejection.reason, []).append(candidate)
    return [(name, meaning, found[name][:REJECTED_SHOWN]) for name, meaning in REASONS.items() if name in found]


def _outcomes(report: Mapping[str, Any]) -> Chart:
    named = {"kept": report["kept"], **report["rejected"]}
    titles = distinct_labels([name.replace("_", " ") for name in named])
    trace = {
        "type": "bar",
        "orientation": "h",
        "name": "candidates",
        "y": titles,
        "x": list(named.values()),
        "text": [f"{count:,}" for count in named.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": "@student"},
    }
    layout = base_layout(height=BAR_MARGIN + len(named) * (BAR_HEIGHT + 10))
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False}
    layout["xaxis"] |= {"title": axis_title("candidates"), "rangemode": "tozero"}
    layout |= {"showlegend": False, "hovermode": "closest"}
    described = ", ".join(f"{name} {count}" for name, count in named.items())
    return Chart("outcomes", "What became of the candidates", f"Bar chart: {described}.", "", _figure([trace], layout))


def _distances(diversity: Mapping[str, Any]) -> Chart | None:
    """How far new texts are from their nearest seed, beside how far seeds are from each other."""
    sets = [
        ("new to nearest seed", "@student", diversity["distance_to_nearest_seed"]),
        ("seed to nearest other seed", "@before", diversity["distance_between_seeds"]),
    ]
    if not sets[0][2]:
        return None
    traces = [
        {
            "type": "histogram",
            "name": name,
            "x": values,
            "xbins": {"start": 0, "end": 1.0001, "size": 0.05},
            "histnorm": "percent",
            "opacity": 0.65,
            "marker": {"color": color},
        }
        for name, color, values in sets
        if values
    ]
    layout = base_layout()
    layout["xaxis"] |= {"title": axis_title("1 - cosine"), "range": [0, 1]}
    layout["yaxis"] |= {"title": axis_title("% of texts")}
    layout |= {"barmode": "overlay", "hovermode": "closest"}
    described = "; ".join(f"{name}: mean {number(sum(v) / len(v))}" for name, _, v in sets if v)
    note = f"0 repeats a seed, 1 shares no word with any. Vectors: {diversity['vectors']}."
    return Chart("distances", "Distance to the human rows", f"Histogram. {described}.", note, _figure(traces, layout))


def _labels(counts: Mapping[str, Mapping[str, int]] | None) -> Chart | None:
    """Shares of the labels that humans gave most; None where answers are no labels."""
    if not counts:
        return None
    shown = list(counts)[:LABELS_SHOWN]
    titles = distinct_labels(shown)
    traces = []
    for which, color in (("human", "@before"), ("synthetic", "@student")):
        total = max(1, sum(label[which] for label in counts.values()))
        values = [100 * counts[name][which] / total for name in shown]
        marker = {"color": color}
        traces.append({"type": "bar", "orientation": "h", "name": which, "y": titles, "x": values, "marker": marker})
    layout = base_layout(height=BAR_MARGIN + len(shown) * (2 * BAR_HEIGHT + 10))
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False}
    layout["xaxis"] |= {"title": axis_title("% of rows"), "rangemode": "tozero"}
    layout |= {"barmode": "group", "hovermode": "closest"}
    missing = sum(1 for label in counts.values() if label["human"] and not label["synthetic"])
    note = f"{missing} of the {sum(1 for c in counts.values() if c['human'])} human labels have no synthetic row."
    if len(counts) > len(shown):
        note += f" The {len(shown)} most frequent of {len(counts)} are shown."
    return Chart("labels", "Labels", f"Bar chart of label shares. {note}", note, _figure(traces, layout))


def _figure(traces: Sequence[Any], layout: Any) -> dict[str, Any]:
    return {"data": list(traces), "layout": layout}
