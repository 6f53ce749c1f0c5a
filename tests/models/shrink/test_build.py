"""Depth, width and vocabulary in one student."""

from __future__ import annotations

import json

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.document import DocumentSet
from stillhouse.models.head import verify_head
from stillhouse.models.load import model_fingerprint
from stillhouse.models.parameters import count_parameters
from stillhouse.models.shrink import build_student
from stillhouse.recipe import PrunedStudent

EVERYTHING = PrunedStudent.model_validate(
    {
        "type": "pruned",
        "depth": {"layers": 3},
        "width": {"hidden_size": 24, "intermediate_size": 40, "num_key_value_heads": 1},
        "vocabulary": {"min_count": 1},
        "calibration_documents": 2,
    }
)


def test_everything_at_once(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    before = model_fingerprint(tiny_model)
    student = build_student(tiny_model, EVERYTHING, documents=text_documents, tokenizer=tiny_tokenizer, seed=0)
    assert model_fingerprint(tiny_model) == before
    assert student.vocabulary_map is not None
    config = student.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 24, 40)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert config.vocab_size == len(student.tokenizer) == len(student.vocabulary_map)
    assert student.notes["parameters_after"] == count_parameters(config) < student.notes["parameters_before"]
    assert student.notes["calibration_documents"] == 2
    verify_head(student.model)
    assert json.loads(json.dumps(student.notes))["depth"]["kept_layers"] == student.notes["depth"]["kept_layers"]


def test_the_source_vocabulary_is_kept_without_trimming(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    config = PrunedStudent.model_validate({"type": "pruned", "depth": {"layers": 2, "method": "even"}})
    student = build_student(tiny_model, config, documents=text_documents, tokenizer=tiny_tokenizer, seed=0)
    assert student.vocabulary_map is None
    assert student.tokenizer is tiny_tokenizer


def test_measuring_in_bfloat16_leaves_the_weights_in_float32(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    config = PrunedStudent.model_validate({"type": "pruned", "depth": {"layers": 3}, "width": {"hidden_size": 24}})
    student = build_student(
        tiny_model,
        config,
        documents=text_documents,
        tokenizer=tiny_tokenizer,
        seed=0,
        measure_dtype=torch.bfloat16,
    )
    assert student.model.dtype == tiny_model.dtype == torch.float32
    kept = student.notes["depth"]["kept_layers"]
    ours = student.model.model.layers[1].self_attn.q_proj.weight
    theirs = tiny_model.model.layers[kept[1]].self_attn.q_proj.weight
    assert set(ours.flatten().tolist()) <= set(theirs.flatten().tolist())
