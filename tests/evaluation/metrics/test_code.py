"""Extraction of code, programs, and the sandbox that runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.checkable import CodeTest
from stillhouse.errors import EvaluationError
from stillhouse.evaluation.metrics.code import extract_code, program_of, run_tests
from stillhouse.evaluation.metrics.sandbox import Sandbox, _outcome

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits on a child process are POSIX's")

SQUARE = CodeTest("assert square(3) == 9")
COMPLETE = CodeTest(
    "def check(f):\n    assert f(2) == 4\n\ncheck(square)",
    prompt="import math\n\n\ndef square(x):\n    '''The square.'''\n",
    entry_point="square",
)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(timeout_seconds=20)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\nx = 1\n```\n```\ny = 2\n```", "x = 1"),
        ("```py\nx = 1\ny = 2", "x = 1\ny = 2"),
    ],
)
def test_extraction(answer: str, code: str) -> None:
    assert extract_code(answer) == code


@given(st.text(alphabet="ab `\n", max_size=30))
def test_extraction_takes_any_text(text: str) -> None:
    assert extract_code(text) in text


def test_a_completion_continues_the_prompt_and_a_whole_function_replaces_it() -> None:
    body = program_of("    return x * x\n", COMPLETE)
    assert body.startswith(COMPLETE.prompt + "    return x * x\n")
    whole = program_of("```python\ndef square(x):\n    return x * x\n```", COMPLETE)
    assert whole.startswith("import math\n\n\ndef square(x):\n    return x * x\n")
    assert "The square" not in whole
    assert program_of("pass", CodeTest("t", setup="import re")) == "import re\npass\nt\n"


def test_right_and_wrong_programs(sandbox: Sandbox) -> None:
    assert run_tests("def square(x):\n    return x * x", SQUARE, sandbox).passed
    assert run_tests("    return x ** 2", COMPLETE, sandbox).passed
    wrong = run_tests("def square(x):\n    return x + x", SQUARE, sandbox)
    assert (wrong.passed, wrong.reason) == (False, "AssertionError")
    assert run_tests("def square(x:", SQUARE, sandbox).reason == "SyntaxError"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "it ended early"),
        ("import os; os.kill(os.getpid(), 9)", "it ended early"),
        ("x = 'x' * (1 << 31)", "MemoryError"),
        ("import os; os.fork()", "BlockingIOError"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', ''])", "BlockingIOError"),
        ("import threading; t = threading.Thread(target=print); t.start()", "RuntimeError"),
        ("open('big', 'wb').write(b'x' * (2 << 20))", "OSError"),
        ("import os; assert dict(os.environ) == {}, 'environment'", ""),
        ("open('small', 'w').write('fine'); assert open('small').read() == 'fine'", ""),
        ("import os; assert os.listdir('.') == []", ""),
        ("import sys; assert not any('site-packages' in p for p in sys.path)", ""),
        ("import math, re, collections.abc, heapq, random, datetime, decimal, email.message", ""),
        ("import sys; print('x' * 100000); print('y', file=sys.stderr)", ""),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (999, 999))", "ValueError"),
    ],
)
def test_what_a_program_may_do(program: str, reason: str, sandbox: Sandbox) -> None:
    outcome = sandbox.run(program)
    assert (outcome.passed, outcome.reason) == (not reason, reason)


def test_time_is_limited_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started = time.monotonic()
    outcome = Sandbox(timeout_seconds=2).run("while True:\n    pass")
    assert (outcome.passed, outcome.reason, outcome.isolated) == (False, "time is over", None)
    assert time.monotonic() - started < 60
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_network_where_the_system_allows_that(sandbox: Sandbox) -> None:
    program = (
        "import socket\nserver = socket.socket()\nserver.bind(('127.0.0.1', 0))\nserver.listen()\n"
        "socket.create_connection(server.getsockname(), 1)"
    )
    outcome = sandbox.run(program)
    assert outcome.isolated is not None
    assert outcome.passed is not outcome.isolated, "loopback is down in an empty network"


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root has rights to give up")
def test_root_gives_up_its_rights(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    assert sandbox.run(f"open({str(secret)!r})").reason == "PermissionError"


def test_a_child_that_cannot_be_confined_is_an_error_of_ours() -> None:
    with pytest.raises(EvaluationError, match="cannot be confined on this machine: unusable no limits"):
        _outcome("unusable no limits", "", "word")
    with pytest.raises(EvaluationError, match="cannot be confined on this machine: no such interpreter"):
        _outcome("", "no such interpreter", "word")


def test_the_child_needs_a_job() -> None:
    child = Path(sys.modules[Sandbox.__module__].__file__ or "").with_name("sandbox_child.py")
    ran = subprocess.run([sys.executable, "-I", "-S", str(child)], input=b"{}", capture_output=True, check=False)
    assert ran.returncode != 0
    assert ran.stdout == b""
