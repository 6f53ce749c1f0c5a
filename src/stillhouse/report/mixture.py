"""How the domains were mixed: weights, discrepancy ratios, tokens and perplexities, interval by interval.

Curves are those of Figure 3 and bars those of Figure 1 of DDK (arXiv 2407.16154); a DoReMi proxy
(arXiv 2305.10429) shows the weights that it found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.charts import MAX_POINTS, Chart, Figure, Series, axis_title, base_layout, domain_bars
from stillhouse.report.rundata import RunData
from stillhouse.report.table import Table, curve_table, table
from stillhouse.report.text import MAX_LABEL, chart_label, clip, count, number, share

COLORS = ("@student", "@teacher", "@run2", "@run3", "@run4", "@run5", "@run6", "@run7")
DASHES = ("solid", "dash", "dot")
MAX_DOMAINS = len(COLORS) * len(DASHES)
LARGE_SPAN = 20.0
"""Perplexities further apart than this share no linear axis."""

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class MixtureSection:
    """What the run page shows of a mixture; ``note`` says what it cost, or where its weights are."""

    charts: list[Chart]
    table: Table | None
    note: str


def mixture_section(run: RunData) -> MixtureSection | None:
    """The section of a run that drew by intervals or looked for weights; None for plain epochs."""
    proxy = [event for event in run.steps if "doremi" in event]
    if not run.mixtures and not proxy:
        return None
    charts = [weight_chart(run), ratio_chart(run), *_proxy_charts(proxy), _perplexity_chart(run.result)]
    return MixtureSection([chart for chart in charts if chart is not None], _table(run), _note(run.result))


def weight_chart(run: RunData) -> Chart | None:
    """Weights as steps, a line for each domain; None for a run that drew no interval."""
    drawn = _drawn(run)
    if not drawn:
        return None
    end = max([drawn[-1]["step"], *(event["step"] for event in run.steps[-1:])])
    curves = {
        name: ([e["step"] for e in drawn] + [end], [_of(e, name).get("weight") for e in (*drawn, drawn[-1])])
        for name in _names(drawn)
    }
    note = "Share of the tokens that each interval draws from a domain."
    chart = _curves("weights", "Weights", "share of the tokens", curves, note, shape="hv")
    chart.figure["layout"]["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    return chart


def ratio_chart(run: RunData) -> Chart | None:
    """Ratios of perplexities by interval, a line for each domain; None for a run whose mixture measured none."""
    measured = [e for e in run.mixtures if any(row.get("ratio") is not None for row in e["domains"].values())]
    if not measured:
        return None
    curves = {
        name: ([e["step"] for e in measured], [_of(e, name).get("ratio") for e in measured])
        for name in _names(measured)
    }
    note = "Student's perplexity over the teacher's, on the documents that drive the weights. At 1 it has caught up."
    return _curves("ratios", "Discrepancy", "ratio of perplexities", curves, note)


def _proxy_charts(proxy: Events) -> list[Chart]:
    if not proxy:
        return []
    thinned = proxy[:: math.ceil(len(proxy) / MAX_POINTS)]
    steps = [event["step"] for event in thinned]
    names = list(thinned[0]["doremi"]["weights"])
    shown = (
        ("weights", "Weights of the proxy", "weight", "After each step's excess losses."),
        ("average", "Mean of the weights so far", "weight", "Its last value is the result."),
        ("excess", "Excess loss over the reference", "nats per token", "Mean over a domain's tokens, clipped at 0."),
    )
    charts = []
    for key, title, unit, note in shown:
        curves = {name: (steps, [event["doremi"][key].get(name) for event in thinned]) for name in names}
        chart = _curves(f"doremi-{key}", title, unit, curves, note)
        if unit == "weight":
            chart.figure["layout"]["yaxis"] |= {"tickformat": ".0%"}
        charts.append(chart)
    return charts


def _perplexity_chart(result: Mapping[str, Any] | None) -> Chart | None:
    if result is None:
        return None
    evaluation = result["evaluation"]
    names = list(evaluation["student_after"]["domains"])
    models = (("student_before", "before", "@before"), ("student_after", "after", "@student"))
    series = [Series(label, color, perplexities(evaluation[key], names)) for key, label, color in models]
    if evaluation["teacher"]:
        series.append(Series("teacher", "@teacher", perplexities(evaluation["teacher"], names)))
    chart = domain_bars(
        names,
        series,
        chart_id="perplexities",
        title="Held-out perplexity by domain",
        unit="perplexity (lower is better)",
    )
    known = [value for s in series for value in s.values if value]
    if known and max(known) / min(known) > LARGE_SPAN:
        chart.figure["layout"]["xaxis"] |= {"type": "log", "minor": {"showgrid": False}}
    return chart


def perplexities(model: Mapping[str, Any], names: Sequence[str]) -> list[float | None]:
    """A model's perplexity in each domain; None where it was not measured or no float holds it."""
    return [model["domains"].get(name, {}).get("perplexity") for name in names]


def perplexity_table(labels: Sequence[str], results: Sequence[Mapping[str, Any]]) -> Table:
    """Perplexity of several runs by domain; under it the ratio to the teacher, where there is one."""
    first = results[0]["evaluation"]
    names = list(first["student_after"]["domains"])
    teacher = perplexities(first["teacher"], names) if first["teacher"] else [None] * len(names)
    models = [first["student_before"], *(result["evaluation"]["student_after"] for result in results)]
    columns = [perplexities(model, names) for model in models]
    rows = [
        (clip(name, MAX_LABEL), number(teacher[i]), *(_beside(column[i], teacher[i]) for column in columns))
        for i, name in enumerate(names)
    ]
    means = [_macro(column, teacher) for column in columns]
    if any(mean is not None for mean in means):
        rows.append(("Ratio to the teacher, average", "1.000", *(number(mean, 3) for mean in means)))
    caption = "Held-out perplexity by domain; below it, as a multiple of the teacher's."
    return table(caption, ["Domain", "Teacher", "Start", *labels], rows)


def _macro(values: Sequence[float | None], teacher: Sequence[float | None]) -> float | None:
    """The mean ratio over domains; None where a domain has none."""
    ratios = [value / other if value and other else None for value, other in zip(values, teacher, strict=True)]
    known = [ratio for ratio in ratios if ratio is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(ratios) else None


def _beside(value: float | None, teacher: float | None) -> str:
    return number(value) if not value or not teacher else f"{number(value)}\n× {number(value / teacher)}"


def _table(run: RunData) -> Table | None:
    """A row a domain: weight and ratio at both ends, what was drawn, and how often the domain was passed through."""
    drawn = _drawn(run)
    if not drawn:
        return None
    names = _names(drawn)
    tokens = drawn_tokens(run)
    total = max(1, sum(tokens.values()))
    rows = []
    for name in names:
        own = [_of(e, name) for e in drawn if name in e["domains"]]
        first, last = own[0], own[-1]
        ratios = [_of(e, name).get("ratio") for e in run.mixtures]
        known = [ratio for ratio in ratios if ratio is not None]
        ends = (number(known[0], 3), number(known[-1], 3)) if known else ("–", "–")
        rows.append(
            (
                clip(name, MAX_LABEL),
                share(first["weight"]),
                share(last["weight"]),
                *ends,
                count(tokens[name]),
                share(tokens[name] / total),
                number(last["passes"]),
            )
        )
    columns = ["Domain", "First weight", "Last weight", "First ratio", "Last ratio", "Tokens", "Share", "Passes"]
    caption = f"Tokens drawn in {len(drawn)} intervals. Passes above 1 mean that a domain was started again."
    return table(caption, columns, rows)


def drawn_tokens(run: RunData) -> dict[str, int]:
    """Tokens that all intervals of a run drew, by domain; nothing for plain epochs."""
    drawn = _drawn(run)
    return {name: sum(int(_of(e, name).get("drawn_tokens", 0)) for e in drawn) for name in _names(drawn)}


def _drawn(run: RunData) -> list[Mapping[str, Any]]:
    """The intervals that were drawn, without the one that a stop rule refused."""
    return [event for event in run.mixtures if any("weight" in row for row in event["domains"].values())]


def _of(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What an interval says of one domain; nothing where its stage has no rows of it."""
    found: Mapping[str, Any] = event["domains"].get(name, {})
    return found


def _note(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    if "doremi" in result:
        return "The mean of the weights is in doremi_weights.json, for a mixture of type doremi."
    found = result.get("mixture")
    if not found:
        return ""
    return (
        f"{count(found['validation_tokens_per_domain'])} held-out tokens a domain drove the weights and score nothing "
        f"else. Their measurement was to cost {found['predicted_overhead']:.1%} of the training time and cost "
        f"{found['measured_overhead']:.1%}."
    )


def _names(events: Events) -> list[str]:
    return list(dict.fromkeys(name for event in events for name in event["domains"]))


def _curves(
    chart_id: str,
    title: str,
    unit: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]],
    note: str,
    *,
    shape: str = "linear",
) -> Chart:
    """A line for each domain, told apart by color and, beyond eight, by dashes."""
    traces: list[Figure] = []
    described = []
    for i, (name, (x, y)) in enumerate(list(curves.items())[:MAX_DOMAINS]):
        color, dash = COLORS[i % len(COLORS)], DASHES[i // len(COLORS)]
        known = [value for value in y if value is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if shape == "linear" and len(x) <= 15 else "lines",
                "x": list(x),
                "y": [None if value is None else round(value, 5) for value in y],
                "name": chart_label(name),
                "line": {"color": color, "width": 2, "dash": dash, "shape": shape},
                "marker": {"color": color},
            }
        )
        if known:
            described.append(f"{clip(name, MAX_LABEL)} from {number(known[0], 3)} to {number(known[-1], 3)}")
    layout = base_layout()
    layout["xaxis"]["title"] = axis_title("optimizer step")
    layout["yaxis"]["title"] = axis_title(unit)
    numbers = curve_table(
        f"{title}, {unit}, by optimizer step.", "Step", [(clip(n, MAX_LABEL), x, y) for n, (x, y) in curves.items()]
    )
    if len(curves) > MAX_DOMAINS:
        note = f"{note} The first {MAX_DOMAINS} of {len(curves)} domains; the table has them all."
    return Chart(
        chart_id,
        title,
        f"Line chart, {unit}: {'; '.join(described)}.",
        note,
        {"data": traces, "layout": layout},
        numbers,
    )
