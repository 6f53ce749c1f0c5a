"""``stillhouse open`` as its user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import OutputError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_serves_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "report.html").write_text("<!doctype html><p>hello")
    command = [sys.executable, "-m", "stillhouse.cli.main", "open", str(tmp_path), "--no-browser"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(tmp_path / "report.html")
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/report\.html", url)
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"<!doctype html><p>hello"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert out.endswith("closed\n")
    finally:
        process.kill()
        process.communicate()


def test_a_folder_with_nothing_to_show_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["open", str(tmp_path), "--no-browser"])
    assert isinstance(result.exception, OutputError)
    assert "no run, study or comparison here" in str(result.exception)
