"""``report.html`` of one study: when does distillation help here, and how surely?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.report.html import write_page
from stillhouse.report.study_arms import Arms
from stillhouse.report.study_cost import cost_charts
from stillhouse.report.study_data import StudyData, read_study_folder
from stillhouse.report.study_gains import domain_charts, gain_charts, ladder_charts
from stillhouse.report.study_learning import learning_charts, samples
from stillhouse.report.study_mixture import study_mixture
from stillhouse.report.study_ratios import ratio_tables
from stillhouse.report.study_scaling import scaling_charts
from stillhouse.report.study_tables import (
    cell_table,
    change_table,
    commands,
    crossover_table,
    gain_tables,
    run_rows,
    score_table,
)
from stillhouse.report.study_words import claims, signs, study_headline
from stillhouse.report.text import count, duration, flops

Tile = tuple[str, str, str, bool]
MAX_RUN_ROWS = 300


def render_study_report(study_dir: Path) -> Path:
    """Write ``report.html`` into a study's folder, finished or not, and return its path.

    Raises OutputError when the folder holds no study, a file of it is damaged, or it cannot be
    written, and DataError for rows that make no sense.
    """
    study = read_study_folder(study_dir)
    analysis, arms = study.analysis, Arms(study.analysis)
    learning, answers = learning_charts(study, arms), samples(study, arms)
    runs = run_rows(study)
    return write_page(
        study_dir / "report.html",
        "study.html.jinja",
        name=str(analysis["name"]),
        headline=study_headline(analysis, arms),
        baseline=arms.baseline,
        tiles=_tiles(study),
        # A study of one size and one teacher was not made to judge them.
        claims=claims(analysis, arms) if len(analysis["sizes"]) > 1 or arms.many_teachers else [],
        findings=[text for text in analysis["findings"][1:] if text not in {c["sentence"] for c in analysis["claims"]}],
        sized=len(analysis["sizes"]) > 1,
        results=[*scaling_charts(analysis, arms), *gain_charts(analysis, arms)],
        cells=cell_table(arms),
        gains=gain_tables(analysis, arms),
        crossovers=crossover_table(analysis, arms),
        score_crossovers=crossover_table(analysis, arms, scores=True),
        changes=change_table(analysis, arms),
        ladders=ladder_charts(analysis, arms),
        domains=domain_charts(analysis, arms),
        ratios=ratio_tables(study, arms),
        mixture=study_mixture(study, arms),
        scores=score_table(analysis, arms),
        costs=cost_charts(analysis, arms),
        learning=learning,
        samples=answers,
        colors={arms.style(key).name: arms.style(key).color.removeprefix("@") for key in arms.distinct},
        many_sizes=len({sample.size for sample in answers}) > 1,
        unfinished=[run for run in runs if run["status"] != "done"][:MAX_RUN_ROWS],
        done=[run for run in runs if run["status"] == "done"][:MAX_RUN_ROWS],
        warnings=[*analysis["cautions"], *study.notes[:10]],
        commands=commands(study),
    )


def _tiles(study: StudyData) -> list[Tile]:
    """Label, value, note, and whether it stands out."""
    counts = study.analysis["counts"]
    total = sum(counts.values())
    others = ", ".join(f"{count(counts[s])} {s}" for s in ("failed", "running", "pending") if counts[s])
    return [
        *_comparison_tiles(study.analysis),
        ("Runs", f"{counts['done']} of {total}", others or f"{_seeds(study)}, all finished", False),
        _spent(study),
    ]


def _comparison_tiles(analysis: Mapping[str, Any]) -> list[Tile]:
    found = Counter(signs(analysis["gains"]))
    if not found:
        return []
    total, over = sum(found.values()), f"comparisons with {analysis['baseline']}"
    return [
        ("Clearly better", f"{found[1]} of {total}", f"{over} whose 95 % interval lies above zero", found[1] > 0),
        ("Clearly worse", f"{found[-1]} of {total}", "whose interval lies below zero", False),
        ("Cannot tell", f"{found[0]} of {total}", "whose interval crosses zero, or one seed", False),
    ]


def _seeds(study: StudyData) -> str:
    seeds = len({row["seed"] for row in study.rows})
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _spent(study: StudyData) -> Tile:
    """Time and FLOPs of all finished runs; a run that answers several cells counts once."""
    results = {str(row["run"]): row["result"] for row in study.rows if row.get("result")}
    seconds = sum(float(result.get("seconds") or 0.0) for result in results.values())
    total = sum(float((result.get("flops") or {}).get("total") or 0.0) for result in results.values())
    return ("Training", duration(seconds), f"in all runs together, {flops(total)}", False)
