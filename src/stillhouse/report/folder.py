"""The right page for a folder: a study's, a run's, or a comparison of the runs in it."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import OutputError
from stillhouse.report.comparison import MAX_RUNS, render_comparison
from stillhouse.report.html import content_policy
from stillhouse.report.page import render_run_report
from stillhouse.report.rundata import is_run
from stillhouse.report.study import render_study_report
from stillhouse.report.study_data import is_study

PAGE = "report.html"
SOURCES = ("study_result.json", "analysis.json", "result.json", "metrics.jsonl", "recipe.yaml")
_HEAD_CHARACTERS = 4000


def render_folder(folder: Path) -> Path:
    """Write ``report.html`` of a study, of a run, or of two to five finished runs that lie in a folder.

    Raises OutputError where there is none of these, or a file is damaged.
    """
    if is_study(folder):
        return render_study_report(folder)
    if is_run(folder):
        return render_run_report(folder)
    runs = _runs_in(folder)
    if 2 <= len(runs) <= MAX_RUNS:
        return render_comparison(runs, [run.name for run in runs], folder / PAGE)
    raise OutputError(
        f"{folder}: there is no run, study or comparison here; give the output of `stillhouse train`, `study` or `compare`"
    )


def fresh_page(folder: Path) -> Path:
    """Return the folder's ``report.html``, written anew where it is missing, older than its numbers, or another version's.

    Raises OutputError like ``render_folder``.
    """
    page = folder / PAGE
    if page.is_file() and not _is_stale(page, folder):
        return page
    if page.is_file() and not (is_study(folder) or is_run(folder) or _runs_in(folder)):
        return page
    return render_folder(folder)


def _is_stale(page: Path, folder: Path) -> bool:
    written = page.stat().st_mtime
    if any(path.stat().st_mtime > written for name in SOURCES if (path := folder / name).is_file()):
        return True
    with page.open(encoding="utf-8", errors="replace") as file:
        # The hashes of our scripts stand in its head, with quotes escaped as Jinja does.
        return content_policy().replace("'", "&#39;") not in file.read(_HEAD_CHARACTERS)


def _runs_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if (path / "result.json").is_file() and is_run(path))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror}); give a folder") from error
