"""The command line as a person meets it: exit codes, messages, and nothing written by a mistake."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from stillhouse.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command line in an empty directory; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STILLHOUSE_DEBUG", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return call


@pytest.fixture
def recipe(tiny_model_dir: Path, chat_jsonl: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe that trains in a second; written by ``save``."""
    return {
        "teacher": {"path": str(tiny_model_dir)},
        "student": {"type": "pruned", "depth": {"layers": 2, "method": "even"}},
        "data": {"train": [{"path": str(chat_jsonl)}], "validation_fraction": 0.2, "max_seq_len": 64},
        "stages": [
            {
                "objective": {"type": "kd"},
                "optimisation": {
                    "budget": {"steps": 2},
                    "batch_tokens": 64,
                    "precision": "float32",
                    "compile_head": False,
                },
            }
        ],
        "evaluation": {"generation": {"rows": 3, "samples": 1, "max_new_tokens": 4}},
        "output": {"dir": "out"},
    }


def save(recipe: dict[str, Any]) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return "recipe.yaml"


def test_train_report_evaluate_push_as_the_readme_shows(run: Run, recipe: dict[str, Any], chat_jsonl: Path) -> None:
    code, out, err = run("train", save(recipe))
    assert (code, err) == (0, "")
    assert "macro average" in out
    assert "<html" in Path("out/report.html").read_text()
    assert Path("out/model/README.md").read_text().startswith("---")
    code, out, _ = run(
        "evaluate",
        "out/model",
        str(chat_jsonl),
        "--limit-per-domain",
        "2",
        "--generate",
        "2",
        "--max-new-tokens",
        "4",
        "-o",
        "numbers.json",
    )
    assert code == 0
    assert "macro average" in out
    assert json.loads(Path("numbers.json").read_text())["exact_match"]["n"] == 2
    code, out, _ = run("push", "out", "me/model", "--dry-run")
    assert code == 0
    assert "model.safetensors" in out
    Path("out/report.html").unlink()
    assert run("report", "out")[0] == 0
    assert Path("out/report.html").exists()


def test_init_writes_a_recipe_that_validates(run: Run, chat_jsonl: Path, tiny_model_dir: Path) -> None:
    code, out, _ = run("init", str(chat_jsonl))
    assert code == 0
    assert "31" in out
    assert "domains" in Path("recipe.yaml").read_text()
    code, out, err = run("validate", "recipe.yaml", f"teacher.path={tiny_model_dir}", "student.depth.layers=2")
    assert code == 0, err
    assert yaml.safe_load(out)["student"]["depth"]["layers"] == 2
    assert "train:" in err
    assert "GiB of memory" in err
    assert not Path("runs").exists()
    code, _, err = run("init", str(chat_jsonl))
    assert code == 2
    assert "exists already" in err


def test_overrides_change_the_recipe(run: Run, recipe: dict[str, Any]) -> None:
    code, out, _ = run("validate", save(recipe), "stages.0.optimisation.learning_rate=1e-3")
    assert code == 0
    assert yaml.safe_load(out)["stages"][0]["optimisation"]["learning_rate"] == 1e-3


def bad_line(recipe: dict[str, Any]) -> None:
    lines = Path(recipe["data"]["train"][0]["path"]).read_text().splitlines()
    Path("bad.jsonl").write_text("\n".join([lines[0], "{oops", *lines[1:]]))
    recipe["data"]["train"] = [{"path": "bad.jsonl"}]


def missing_column(recipe: dict[str, Any]) -> None:
    Path("bad.jsonl").write_text('{"message": []}\n')
    recipe["data"]["train"] = [{"path": "bad.jsonl"}]


def wrong_roles(recipe: dict[str, Any]) -> None:
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    Path("bad.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 5)
    recipe["data"]["train"] = [{"path": "bad.jsonl"}]


def empty_file(recipe: dict[str, Any]) -> None:
    Path("bad.jsonl").write_text("")
    recipe["data"]["train"] = [{"path": "bad.jsonl"}]


def missing_file(recipe: dict[str, Any]) -> None:
    recipe["data"]["train"] = [{"path": "nowhere.jsonl"}]


def unknown_key(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["objective"]["temprature"] = 2


def impossible(recipe: dict[str, Any]) -> None:
    del recipe["teacher"]


def missing_model(recipe: dict[str, Any]) -> None:
    recipe["teacher"]["path"] = "./nowhere"


def too_many_layers(recipe: dict[str, Any]) -> None:
    recipe["student"]["depth"]["layers"] = 40


def output_is_a_file(recipe: dict[str, Any]) -> None:
    Path("taken").write_text("")
    recipe["output"]["dir"] = "taken"


def foreign_output(recipe: dict[str, Any]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    recipe["output"]["dir"] = "mine"


BAD = [
    (bad_line, r"bad.jsonl:2"),
    (missing_column, "messages"),
    (wrong_roles, "bad_role_order"),
    (empty_file, "bad.jsonl"),
    (missing_file, "nowhere.jsonl"),
    (unknown_key, "stages.0.objective.temprature: unknown key. Did you mean 'temperature'?"),
    (impossible, "needs a teacher"),
    (missing_model, "teacher.path=./nowhere"),
    (too_many_layers, "student.depth.layers=40"),
    (output_is_a_file, "this is a file"),
    (foreign_output, "other files"),
]


@pytest.mark.parametrize("command", ["validate", "train"])
@pytest.mark.parametrize(("spoil", "expected"), BAD, ids=[b[0].__name__ for b in BAD])
def test_a_mistake_is_one_message_and_exit_code_2(
    run: Run, recipe: dict[str, Any], spoil: Callable[[dict[str, Any]], None], expected: str, command: str
) -> None:
    if command == "validate" and spoil is foreign_output:
        pytest.skip("validate leaves a foreign folder to train, which refuses it without --overwrite")
    spoil(recipe)
    path = save(recipe)
    before = {p for p in Path().rglob("*") if "cache" not in p.parts}
    code, _, err = run(command, path)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    after = {
        p
        for p in Path().rglob("*")
        if "cache" not in p.parts and p.name not in ("recipe.yaml", "environment.json", "out")
    }
    assert after <= before


def test_another_tokenizer_is_refused_with_the_first_difference(
    run: Run,
    recipe: dict[str, Any],
    tiny_model_dir: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["surprise"])
    tokenizer.save_pretrained(other)
    recipe["student"] = {"path": str(other)}
    code, _, err = run("validate", save(recipe))
    assert code == 2
    assert "surprise" in err


def test_a_second_run_is_refused_and_overwrite_repeats_it(run: Run, recipe: dict[str, Any]) -> None:
    path = save(recipe)
    assert run("train", path)[0] == 0
    code, _, err = run("train", path)
    assert code == 2
    assert "--overwrite" in err
    assert run("train", path, "--overwrite")[0] == 0


def test_debug_shows_the_traceback(run: Run, recipe: dict[str, Any]) -> None:
    missing_file(recipe)
    with pytest.raises(Exception, match="nowhere"):
        run("--debug", "validate", save(recipe))
