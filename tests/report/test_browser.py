"""The page in a real browser, where one is installed: plots are drawn, and hostile strings do nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_run import HOSTILE
from test_page import HOSTILE_DOMAINS, hostile

from stillhouse.report.page import render_run_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def dom(tmp_path: Path) -> Callable[[Path], str]:
    """Open a page in headless Chromium and return its document as it is after all scripts ran."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    flags = [
        "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
        "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
        "--dump-dom",
    ]  # fmt: skip
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses its sandbox to root

    def load(page: Path) -> str:
        done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return load


def test_plots_are_drawn_and_hostile_strings_stay_text(
    make_run: Callable[..., Path], dom: Callable[[Path], str]
) -> None:
    document = dom(render_run_report(make_run("hostile", domains=HOSTILE_DOMAINS, change=hostile)))
    assert len(re.findall(r'class="plot js-plotly-plot"', document)) == 6
    assert HOSTILE.count("pwned") == 1
    assert "data-pwned" not in document
    labels = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", document, re.DOTALL))
    assert "&lt;/script&gt;" in labels
    assert "bold</tspan>" not in labels
    assert "javascript:" not in "".join(re.findall(r"<a [^>]*>", document))
