"""Bytes of content targets, exact where characters are split over tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from stillhouse.data.chat import ChatFormat
from stillhouse.data.document import Document, DocumentSet
from stillhouse.data.prepare import Prepared
from stillhouse.data.rows import Row
from stillhouse.evaluation.content_bytes import content_bytes, is_byte_level


def one_document(ids: list[int], mask: list[bool]) -> DocumentSet:
    document = Document(np.array(ids, np.int32), np.array(mask, np.bool_), 0, bytes(16))
    return DocumentSet.build([document], [0], ["a"], "hash")


def test_chat_documents_count_the_assistants_bytes(
    prepared: Prepared, rows: list[Row], tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat
) -> None:
    expected = [len(row.messages[-1].content.encode()) for row in rows if row.messages]
    assert content_bytes(prepared.documents, tokenizer, chat_format.end_of_turn_ids).tolist() == expected


@given(text=st.text(min_size=1, max_size=30), data=st.data())
def test_any_cut_of_a_byte_level_text_adds_up(
    tokenizer: PreTrainedTokenizerFast, text: str, data: st.DataObject
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = data.draw(st.integers(0, len(ids)))
    mask = [i >= cut for i in range(len(ids))]
    ends = frozenset({tokenizer.eos_token_id})
    parts = [content_bytes(one_document(ids, m), tokenizer, ends)[0] for m in (mask, [not x for x in mask])]
    assert sum(parts) == len(text.encode())


def test_an_added_token_counts_as_its_text(tokenizer: PreTrainedTokenizerFast) -> None:
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    documents = one_document([start, start, tokenizer.eos_token_id], [False, True, True])
    assert content_bytes(documents, tokenizer, frozenset({tokenizer.eos_token_id})).tolist() == [12]


def test_no_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    empty = DocumentSet.build([], [], ["a"], "hash")
    assert content_bytes(empty, tokenizer, frozenset()).tolist() == []


def test_other_tokenizers_are_decoded_run_by_run() -> None:
    backend = Tokenizer(models.WordLevel({"ß": 0, "ab": 1, "漢": 2, "?": 3}, unk_token="?"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert not is_byte_level(tokenizer)
    # Two runs, "ab" + "漢" (2 + 3 bytes) and "ß" (2 bytes); the masked "ab" between them is not counted.
    documents = one_document([0, 1, 2, 1, 0, 3], [False, True, True, False, True, True])
    assert content_bytes(documents, tokenizer, frozenset({3})).tolist() == [7]


def test_a_sequence_of_decoders_may_be_byte_level(tokenizer: PreTrainedTokenizerFast) -> None:
    assert is_byte_level(tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    assert is_byte_level(PreTrainedTokenizerFast(tokenizer_object=backend))
    no_decoder = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert not is_byte_level(no_decoder)
