"""Fixtures that every room shares: a tiny tokenizer, a tiny Llama and a few chat rows, none of them downloaded."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from other_model import build_other_tokenizer, save_other_model

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Like SmolLM2's: a newline after the end-of-turn token, no generation markers; no default system turn."""

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MODEL_SEED = 20240726

DOMAIN_ROWS = {
    "math": [(f"What is {a} plus {b}?", str(a + b)) for a in range(1, 5) for b in range(1, 6)],
    "greetings": [(f"Greet {name}.", f"Hello {name}, how are you?") for name in ("Ada", "Bo", "Cy", "Dee", "Eve")],
    "spelling": [(f"Spell {word!r}.", "-".join(word)) for word in ("cat", "tree", "house", "river", "cloud", "stone")],
}


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell starts background jobs with Ctrl-C ignored; tests that send it must not wait for ever there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Build a byte-level BPE tokenizer; ``chat_template`` None leaves it without a template."""

    def build(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        corpus = [f"user\n{prompt}assistant\n{answer}\n\n" for rows in DOMAIN_ROWS.values() for prompt, answer in rows]
        tokenizer.train_from_iterator(corpus, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|im_end|>",
            unk_token="<|endoftext|>",
            chat_template=chat_template,
        )

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """ChatML; pad and eos are both ``<|im_end|>``, as in SmolLM2. Shared: do not change it."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A tied Llama with grouped-query attention."""
    return LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )


@pytest.fixture
def tiny_model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    """A fresh float32 copy in eval mode for each test, always with the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(MODEL_SEED)
        return LlamaForCausalLM(tiny_config).float().eval()


@pytest.fixture(scope="session")
def tiny_model_dir(
    tiny_config: LlamaConfig, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as ``save_pretrained`` writes it: model and tokenizer. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("tiny_model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(MODEL_SEED)
        LlamaForCausalLM(tiny_config).float().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher_dir(
    tiny_config: LlamaConfig, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Another random model of the same tokenizer, wider than the tiny model. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("tiny_teacher")
    config = LlamaConfig(**{**tiny_config.to_dict(), "hidden_size": 48, "num_hidden_layers": 2, "head_dim": 12})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).float().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_tokenizer() -> PreTrainedTokenizerFast:
    """Another vocabulary, other control tokens and another chat template. Shared: do not change it."""
    return build_other_tokenizer()


@pytest.fixture(scope="session")
def other_model_dir(other_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of the other tokenizer. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("other_model")
    save_other_model(folder, other_tokenizer)
    return folder


@pytest.fixture
def chat_jsonl(tmp_path: Path) -> Path:
    """31 chat rows over 3 domains (math 20, greetings 5, spelling 6), each with a gold ``answer``."""
    path = tmp_path / "chat.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for domain, rows in DOMAIN_ROWS.items():
            for number, (prompt, answer) in enumerate(rows):
                row = {
                    "id": f"{domain}-{number}",
                    "domain": domain,
                    "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
                    "answer": answer,
                }
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that want it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STILLHOUSE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder} (set STILLHOUSE_SHARED_DATA to where it is)")
    return folder


@pytest.fixture
def recipe_data() -> dict[str, Any]:
    """The shortest valid recipe for KD, as a mapping of its own for each test."""
    return {
        "teacher": {"path": "teacher"},
        "student": {"path": "student"},
        "data": {"train": [{"path": "train.jsonl"}]},
        "stages": [{"objective": {"type": "kd"}}],
        "output": {"dir": "runs/x"},
    }
