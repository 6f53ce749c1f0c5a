"""The package as a whole: what importing it loads, how big its modules are, what its files may not say."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "stillhouse"
MODULES = sorted(SOURCE.rglob("*.py"))
PYTHON_FILES = sorted(
    path for folder in ("src", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
)
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "scipy", "pandas", "plotly")
MAX_LINES = 500
LONGER: dict[str, int] = {}
"""Files that may be longer, each with its limit."""

# Written in pieces, so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/\w")
REGISTRY_HOSTS = tuple(f"{name}.{domain}" for name, domain in (
    ("pypi", "org"), ("files.pythonhosted", "org"), ("registry.npmjs", "org"), ("deb.debian", "org"),
    ("download.pytorch", "org"),
))  # fmt: skip


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def heavy_modules_after(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return the heavy packages it loaded, joined by commas."""
    report = f"import sys; sys.stderr.write('LOADED ' + ','.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.rpartition("LOADED ")[2]


@pytest.mark.parametrize("module", ["stillhouse", "stillhouse.recipe", "stillhouse.errors", "stillhouse.cli.main"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == ""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['stillhouse', *{arguments!r}]\n"
        "from stillhouse.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert heavy_modules_after(code) == ""


def test_every_module_says_what_it_is() -> None:
    trees = {relative(path): ast.parse(path.read_text("utf-8")) for path in MODULES}
    assert [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_no_file_is_too_long() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in PYTHON_FILES}
    assert {name: length for name, length in lengths.items() if length > LONGER.get(name, MAX_LINES)} == {}


def test_nothing_is_left_to_do_later() -> None:
    unfinished = re.compile(r"\b(?:TODO|FIXME|XXX|raise NotImplementedError)\b")
    assert [relative(path) for path in MODULES if unfinished.search(path.read_text("utf-8"))] == []


def test_library_never_pickles() -> None:
    pickling = re.compile(r"\bimport pickle\b|\btorch\.(?:save|load)\(|allow_pickle=True")
    assert [relative(path) for path in MODULES if pickling.search(path.read_text("utf-8"))] == []


def test_declared_entry_point_exists() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, function = scripts["stillhouse"].split(":")
    tree = ast.parse((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_direct_requirements_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in wanted}  # type: ignore[index]
    assert names - pinned == set()


def tracked_text_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of tracked files")
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    binary = {".png", ".safetensors", ".parquet", ".gguf", ".ico"}
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in binary]


def test_tracked_files_name_no_machine_and_no_registry() -> None:
    found = []
    for path in tracked_text_files():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line) or any(host in line for host in REGISTRY_HOSTS):
                found.append(f"{relative(path)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_no_two_test_files_share_a_name() -> None:
    """Test folders are no packages, so pytest would take the second file for the first."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
