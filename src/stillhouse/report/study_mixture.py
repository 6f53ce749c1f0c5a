"""What the arms of a study trained on, by domain: curves of the mixtures that follow the gap, and tokens of all arms.

The curves are those of Figure 3 of DDK (arXiv 2407.16154).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.report.charts import Chart
from stillhouse.report.mixture import drawn_tokens, ratio_chart, weight_chart
from stillhouse.report.study_arms import ArmKey, Arms, arm_of
from stillhouse.report.study_data import FirstRun, StudyData
from stillhouse.report.study_marks import some_sizes
from stillhouse.report.table import Table, table
from stillhouse.report.text import count, share, shorten

MAX_CURVED = 4
MAX_COLUMNS = 32
MAX_SIZE_LABEL = 40
HEADROOM = 0.05
"""Free space above the highest curve, as a share of the axis."""

Counts = dict[str, int]


@dataclass(frozen=True)
class StudyMixture:
    """The section of a study's page: charts with what they show in words, tables of tokens from small to large sizes."""

    charts: list[Chart]
    note: str
    tables: list[Table]


def study_mixture(study: StudyData, arms: Arms) -> StudyMixture | None:
    """The section, from the run directories that are here; None for one domain, or where no run says a word of it."""
    charts, note = _curves(study, arms)
    tables = [t for size in _sizes(arms) for t in _token_tables(size, study, arms)]
    return StudyMixture(charts, note, tables) if charts or tables else None


def _curves(study: StudyData, arms: Arms) -> tuple[list[Chart], str]:
    """Weights and ratios of the first finished seed, at its largest size, of each arm that measured the gap."""
    pairs = [pair for place, key in enumerate(arms.distinct) if (pair := _pair(place, key, study, arms)) is not None]
    shown = pairs[:MAX_CURVED]
    weights, ratios = _on_one_axis([w for w, _ in shown], from_zero=True), _on_one_axis([r for _, r in shown])
    note = "Each arm whose mixture follows the gap between student and teacher, by its first finished seed."
    if len(pairs) > MAX_CURVED:
        note += f" The first {MAX_CURVED} of {len(pairs)} such arms; the pages of the runs have the others."
    return [chart for pair in zip(weights, ratios, strict=True) for chart in pair], note if pairs else ""


def _pair(place: int, key: ArmKey, study: StudyData, arms: Arms) -> tuple[Chart, Chart] | None:
    """Only a mixture that follows the gap measures ratios while it trains, so these tell it."""
    for cell in reversed(arms.cells(key)):
        first = study.first_run(arm_of(key), cell["size"])
        if first is None:
            continue
        weights, ratios = weight_chart(first.run), ratio_chart(first.run)
        if weights is None or ratios is None:
            return None
        name = arms.style(key).name
        where = f"Seed {first.seed}"
        if cell["size"] is not None:
            where += f", size {shorten(cell['size'], MAX_SIZE_LABEL)}"
        titles = f"Weights, {name}", f"Discrepancy, {name}"
        named = [
            replace(chart, id=f"mixture-{kind}-{place}", title=title, note=f"{where}. {chart.note}")
            for chart, kind, title in zip((weights, ratios), ("weights", "ratios"), titles, strict=True)
        ]
        return named[0], named[1]
    return None


def _on_one_axis(charts: Sequence[Chart], *, from_zero: bool = False) -> list[Chart]:
    """Charts of one kind with the same range, so that arms can be compared by eye."""
    values = [y for chart in charts for trace in chart.figure["data"] for y in trace["y"] if y is not None]
    if not values:
        return list(charts)
    low, high = 0.0 if from_zero else min(values), max(values)
    free = HEADROOM * (high - low or 1.0)
    for chart in charts:
        chart.figure["layout"]["yaxis"] |= {"range": [low if from_zero else low - free, high + free]}
    return list(charts)


def _sizes(arms: Arms) -> list[str | None]:
    return some_sizes([cell for key in arms.distinct for cell in arms.cells(key)])


def _token_tables(size: str | None, study: StudyData, arms: Arms) -> list[Table]:
    """What each arm saw of each domain at one size.

    In tokens for arms that drew by intervals. Plain epochs write down their targets alone, so where there
    are such arms all are shown in targets as well.
    """
    runs = {key: first for key in arms.distinct if (first := study.first_run(arm_of(key), size)) is not None}
    found = dict(list(runs.items())[:MAX_COLUMNS])
    domains = _domains(list(found.values()))
    if len(domains) < 2:
        return []
    tokens = {arms.style(key).name: seen for key, first in found.items() if (seen := _tokens(first)) is not None}
    targets = {arms.style(key).name: seen for key, first in found.items() if (seen := _targets(first))}
    where = ("" if size is None else f" at size {shorten(size, MAX_SIZE_LABEL)}") + ", in the first finished seed."
    left_out = f" The first {MAX_COLUMNS} of {len(runs)} arms." if len(runs) > len(found) else ""
    tables = []
    if tokens:
        caption = f"Tokens trained on, by domain{where}{left_out}"
        tables.append(_seen_table(caption, domains, tokens, _pool(list(found.values()), "tokens"), len(found)))
    if targets and len(tokens) < len(found):
        caption = (
            f"Target tokens (those that are scored) trained on, by domain{where} This is what plain epochs write "
            f"down.{left_out}"
        )
        tables.append(_seen_table(caption, domains, targets, _pool(list(found.values()), "targets"), len(found)))
    return tables


def _seen_table(
    caption: str, domains: Sequence[str], seen: Mapping[str, Counts], pool: Counts | None, num_arms: int
) -> Table:
    """A row per domain, each count with its share; one column where all arms saw the same."""
    columns = dict(seen)
    first = next(iter(columns.values()))
    if len(columns) == num_arms > 1 and all(counts == first for counts in columns.values()):
        columns = {"Every arm": first}
    if pool is not None:
        caption += " Where a count is above the training set's, documents were seen again."
        columns = {"Training set": pool, **columns}
    totals = {name: sum(counts.values()) for name, counts in columns.items()}
    rows = [
        (
            domain,
            *(f"{count(c.get(domain, 0))}\n{share(c.get(domain, 0) / max(1, totals[n]))}" for n, c in columns.items()),
        )
        for domain in domains
    ]
    return table(caption, ["Domain", *columns], [*rows, ("Total", *(count(total) for total in totals.values()))])


def _domains(runs: Sequence[FirstRun]) -> list[str]:
    """The domains of the training sets, and those that only steps name."""
    listed = [name for first in runs for name in _report(first)]
    return list(dict.fromkeys([*listed, *(name for first in runs for name in _targets(first))]))


def _report(first: FirstRun) -> Mapping[str, Any]:
    found: Mapping[str, Any] = first.result["data"]["train"]["domains"]
    return found


def _pool(runs: Sequence[FirstRun], unit: str) -> Counts | None:
    """Tokens or targets of the training set, by domain; None where the arms were not given the same."""
    pools = [{name: int(report[unit]) for name, report in _report(first).items()} for first in runs]
    return pools[0] if all(pool == pools[0] for pool in pools) else None


def _tokens(first: FirstRun) -> Counts | None:
    """Tokens by domain of a run that trained on what its intervals drew and on nothing else; else None.

    A stage of plain epochs, answers of the student's own or an early stop inside an interval make the two differ.
    """
    drawn = drawn_tokens(first.run)
    return drawn if drawn and sum(drawn.values()) == first.result["training"]["tokens"] else None


def _targets(first: FirstRun) -> Counts:
    """Target tokens by domain, as the steps count them."""
    seen: dict[str, float] = {}
    for step in first.run.steps:
        for name, domain in step["domains"].items():
            seen[name] = seen.get(name, 0.0) + domain["targets"]
    return {name: round(total) for name, total in seen.items()}
