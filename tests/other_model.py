"""A second tokenizer with another vocabulary and another chat template, and a tiny model of it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OTHER_TEMPLATE = (
    "<s>{% for message in messages %}"
    "{{ '[' + message['role'] + ']\n' + message['content'].strip() + ('</s>' if message['role'] == 'assistant' else '\n') }}"
    "{% endfor %}"
)


def build_other_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over words cut in another way, with fewer merges and other control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+|[^A-Za-z\d]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Hello world how are you doing today Hello there", "What is the answer"] * 3, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=OTHER_TEMPLATE
    )


def save_other_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a random model of this tokenizer, whose head has padding rows."""
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
