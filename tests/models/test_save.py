"""What is saved is what is loaded, and nothing is half there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.errors import OutputError
from stillhouse.models.load import model_fingerprint
from stillhouse.models.save import save_model
from stillhouse.models.tokenizers import tokenizer_hash


def test_plain_transformers_reloads_it_bit_for_bit(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "model"
    tiny_model.generation_config.max_new_tokens = 7
    save_model(tiny_model, tiny_tokenizer, folder, card="# Card\n")
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert model_fingerprint(reloaded) == model_fingerprint(tiny_model)
    assert reloaded.lm_head.weight.data_ptr() == reloaded.model.embed_tokens.weight.data_ptr()
    assert reloaded.generation_config.max_new_tokens == 7
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert tokenizer_hash(tokenizer) == tokenizer_hash(tiny_tokenizer)
    assert (folder / "README.md").read_text() == "# Card\n"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert not {p.suffix for p in folder.iterdir()} & {".bin", ".pt", ".pth", ".pkl"}
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_weights_are_stored_in_the_wanted_dtype_and_once_when_tied(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tiny_model, tiny_tokenizer, tmp_path / "m", dtype=torch.bfloat16)
    assert tiny_model.dtype == torch.float32
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert reloaded.dtype == torch.bfloat16
    expected = tiny_model.model.layers[0].mlp.up_proj.weight.to(torch.bfloat16)
    assert torch.equal(reloaded.model.layers[0].mlp.up_proj.weight, expected)
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict


def test_an_existing_folder_is_kept_or_replaced_whole(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        save_model(tiny_model, tiny_tokenizer, folder)
    assert (folder / "mine.txt").exists()
    save_model(tiny_model, tiny_tokenizer, folder, overwrite=True)
    assert not (folder / "mine.txt").exists()
    assert (folder / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_write_leaves_nothing(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny_tokenizer, "save_pretrained", full)
    with pytest.raises(OutputError, match=r"cannot be written .*No space left"):
        save_model(tiny_model, tiny_tokenizer, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(tiny_model, tiny_tokenizer, tmp_path / "file" / "m")
