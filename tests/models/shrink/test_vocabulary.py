"""Fewer tokens: the same segmentation where all tokens are kept, and the same text everywhere."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import verify_head
from stillhouse.models.load import model_fingerprint
from stillhouse.models.save import save_model
from stillhouse.models.shrink.vocabulary import kept_ids, merge_path, prune_vocabulary, trimmed_state
from stillhouse.models.tokenizers import tokenizer_hash

VOCAB = {"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "abc": 6, "cc": 7, "<pad>": 8}
STATE: dict[str, Any] = {
    "model": {"type": "BPE", "unk_token": None, "vocab": VOCAB, "merges": [["b", "c"], "a b", ["a", "bc"], ["c", "c"]]},
    "added_tokens": [{"id": 0, "content": "<s>"}, {"id": 8, "content": "<pad>"}],
    "post_processor": None,
}


def test_merge_path_takes_the_merges_in_their_order() -> None:
    # "b c" ranks before "a b", so "abc" is made of a + bc and never goes through "ab"
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2}
    assert merge_path("abc", ranks) == ["a", "b", "c", "bc", "abc"]
    assert merge_path("aa", ranks) == ["a", "a"]


def test_parts_of_kept_tokens_stay_with_specials_and_base_tokens() -> None:
    assert kept_ids(STATE, [6]) == [0, 1, 2, 3, 5, 6, 8]  # not ab (4), not cc (7)
    assert kept_ids(STATE, []) == [0, 1, 2, 3, 8]


def test_a_trimmed_state_is_renumbered_and_closed() -> None:
    state = trimmed_state(STATE, [0, 1, 2, 3, 5, 6, 8])
    assert state["model"]["vocab"] == {"<s>": 0, "a": 1, "b": 2, "c": 3, "bc": 4, "abc": 5, "<pad>": 6}
    assert state["model"]["merges"] == [["b", "c"], ["a", "bc"]]
    assert [token["id"] for token in state["added_tokens"]] == [0, 6]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"type": "ByteLevel"}, {"type": "ByteLevel"}),
        ({"type": "RobertaProcessing", "sep": ["<pad>", 8], "cls": ["<s>", 0]}, {"sep": ["<pad>", 6]}),
        (
            {"type": "Sequence", "processors": [{"type": "BertProcessing", "sep": ["<pad>", 8], "cls": ["<s>", 0]}]},
            {"processors": [{"type": "BertProcessing", "sep": ["<pad>", 6], "cls": ["<s>", 0]}]},
        ),
        (
            {"type": "TemplateProcessing", "special_tokens": {"<pad>": {"id": "<pad>", "ids": [8]}}},
            {"special_tokens": {"<pad>": {"id": "<pad>", "ids": [6]}}},
        ),
    ],
)
def test_post_processors_are_renumbered(processor: dict[str, Any], expected: dict[str, Any]) -> None:
    state = trimmed_state(STATE | {"post_processor": processor}, [0, 1, 2, 3, 5, 6, 8])
    assert state["post_processor"] == processor | expected


def test_an_unknown_post_processor_is_refused() -> None:
    with pytest.raises(ModelError, match=r"student\.vocabulary: .*post-processor Odd"):
        trimmed_state(STATE | {"post_processor": {"type": "Odd"}}, range(9))


def test_logits_equal_the_sources_on_kept_ids(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    student, tokenizer, id_map = prune_vocabulary(tiny_model, tiny_tokenizer, text_documents, min_count=1)
    assert len(tokenizer) == len(id_map) == student.config.vocab_size < len(tiny_tokenizer)
    text = "What is 3 plus 4?"
    new = torch.tensor([tokenizer.encode(text)])
    old = torch.tensor([tiny_tokenizer.encode(text)])
    assert torch.equal(id_map[new], old)
    theirs = tiny_model(input_ids=old).logits[..., id_map]
    torch.testing.assert_close(student(input_ids=new).logits, theirs, rtol=1e-5, atol=1e-6)
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    verify_head(student)


def test_special_tokens_and_configuration_follow(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    tiny_model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, 300]
    student, tokenizer, id_map = prune_vocabulary(tiny_model, tiny_tokenizer, text_documents, min_count=1)
    assert student.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert id_map[torch.tensor(student.generation_config.eos_token_id)].tolist() == [tiny_tokenizer.eos_token_id, 300]
    assert tokenizer.special_tokens_map == tiny_tokenizer.special_tokens_map
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    chat = [{"role": "user", "content": "Greet Ada."}, {"role": "assistant", "content": "Hello Ada"}]
    ours = id_map[torch.tensor(tokenizer.apply_chat_template(chat)["input_ids"])].tolist()
    assert tiny_tokenizer.decode(ours) == tiny_tokenizer.apply_chat_template(chat, tokenize=False)
    assert ours.count(tiny_tokenizer.eos_token_id) == 2


def test_a_saved_student_reloads_bit_for_bit(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet, tmp_path: Path
) -> None:
    student, tokenizer, _ = prune_vocabulary(tiny_model, tiny_tokenizer, text_documents, min_count=1)
    save_model(student, tokenizer, tmp_path / "m")
    assert model_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path / "m")) == model_fingerprint(student)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "m")) == tokenizer_hash(tokenizer)


def test_padding_rows_of_the_source_are_gone(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    padded = copy.deepcopy(tiny_model)  # its configuration is shared with other tests
    padded.resize_token_embeddings(len(tiny_tokenizer) + 16)
    student, _, id_map = prune_vocabulary(padded, tiny_tokenizer, text_documents, min_count=1)
    assert student.config.vocab_size == len(id_map)
    assert int(id_map.max()) < len(tiny_tokenizer)


def test_a_higher_count_keeps_fewer(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, text_documents: DocumentSet
) -> None:
    sizes = [
        len(prune_vocabulary(tiny_model, tiny_tokenizer, text_documents, min_count=count)[2]) for count in (1, 2, 1000)
    ]
    assert sizes[0] > sizes[1] > sizes[2] == 256 + 3  # bytes and specials are always there


@pytest.fixture(scope="module")
def trimmed(tiny_tokenizer: PreTrainedTokenizerFast) -> tuple[Tokenizer, Tokenizer, list[int]]:
    """The tiny tokenizer, and one that keeps every third token besides what must stay."""
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    kept = kept_ids(state, range(0, len(tiny_tokenizer), 3))
    return tiny_tokenizer.backend_tokenizer, Tokenizer.from_str(json.dumps(trimmed_state(state, kept))), kept


@settings(deadline=None, max_examples=150)
@given(text=st.one_of(st.text(), st.text(alphabet="aeiou thsplno.'\n", max_size=40)))
def test_any_text_survives(trimmed: tuple[Tokenizer, Tokenizer, list[int]], text: str) -> None:
    old, new, kept = trimmed
    before, ids = old.encode(text).ids, new.encode(text).ids
    assert new.decode(ids, skip_special_tokens=False) == old.decode(before, skip_special_tokens=False)
    if set(before) <= set(kept):
        assert [kept[i] for i in ids] == before


def test_other_tokenizer_models_are_refused(tiny_model: LlamaForCausalLM, text_documents: DocumentSet) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(ModelError, match=r"student\.vocabulary: the tokenizer is a WordLevel"):
        prune_vocabulary(tiny_model, tokenizer, text_documents, min_count=1)


def test_sentencepiece_style_bytes_stay() -> None:
    vocab = {"<unk>": 0, "\u2581": 1, "h": 2, "i": 3, "hi": 4, "\u2581hi": 5, "<0x41>": 6, "x": 7, "xi": 8}
    backend = Tokenizer(
        models.BPE(
            vocab,
            [("h", "i"), ("\u2581", "hi"), ("x", "i")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)])
    state = json.loads(backend.to_str())
    kept = kept_ids(state, [5])
    assert kept == [0, 1, 2, 3, 4, 5, 6, 7]
    new = Tokenizer.from_str(json.dumps(trimmed_state(state, kept)))
    assert new.encode("hi A").tokens == ["<unk>", "\u2581hi", "\u2581", "<0x41>"]


def test_a_text_that_does_not_come_back_is_an_error(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    text_documents: DocumentSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "stillhouse.models.shrink.vocabulary.kept_ids", lambda state, wanted: [0, 1, 2, *range(40, 259)]
    )
    with pytest.raises(ModelError, match=r"student\.vocabulary: the trimmed tokenizer does not reproduce"):
        prune_vocabulary(tiny_model, tiny_tokenizer, text_documents, min_count=1)
