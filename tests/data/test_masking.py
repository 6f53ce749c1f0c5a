"""Characters to tokens, for tokenizers with trimmed offsets, prefix spaces and merged boundaries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stillhouse.data.masking import SpanTokenizer, beginning_ids, special_token_ids, special_token_pattern
from stillhouse.errors import DataError


def targets(tokenizer: PreTrainedTokenizerFast, text: str, *spans: tuple[int, int]) -> str:
    """What the masked tokens of the text decode to."""
    ((ids, mask),) = SpanTokenizer(tokenizer).encode([text], [spans])
    return str(tokenizer.decode(ids[mask]))


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way: spaces are ``▁``, and one is put before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["[INST] Hello there [/INST] Hello friend, how are you"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_span_is_mapped_by_offsets(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>assistant\nHello Ada<|im_end|>\n"
    start, end = text.index("Hello"), text.index("\n", 25)
    assert targets(tiny_tokenizer, text, (start, end)) == "Hello Ada<|im_end|>"


def test_text_without_spans_has_no_targets_and_first_token_never_is_one(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert targets(tiny_tokenizer, "Hello Ada") == ""
    ((ids, mask),) = SpanTokenizer(tiny_tokenizer).encode(["Hello Ada"], [[(0, 9)]])
    assert mask.tolist() == [False] + [True] * (len(ids) - 1)


def test_merged_boundary_is_cut_where_the_answer_begins(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text, start = "user\n\n\nHello", 5  # the tokenizer has a token for two newlines
    whole = tiny_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(a < start < b for a, b in whole)
    ((ids, mask),) = SpanTokenizer(tiny_tokenizer).encode([text], [[(start, len(text))]])
    assert tiny_tokenizer.decode(ids) == text
    assert tiny_tokenizer.decode(ids[mask]) == "\n\nHello"
    header = tiny_tokenizer(text[:start])["input_ids"]
    assert ids[: len(header)].tolist() == header  # what a generation prompt would be


def test_a_single_space_belongs_to_the_word_behind_it(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|> how are"
    ((ids, mask),) = SpanTokenizer(tiny_tokenizer).encode([text], [[(text.index("how"), len(text))]])
    assert ids.tolist() == tiny_tokenizer(text)["input_ids"]
    assert tiny_tokenizer.decode(ids[mask]) == " how are"


def test_trimmed_offsets_lose_no_white_space(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # as Llama 3's
    text = "<|im_start|>assistant\n  Hello \n\n<|im_end|>\n"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in offsets)  # white space was trimmed away
    start, end = text.index("  Hello"), text.rindex("\n")
    assert targets(tokenizer, text, (start, end)) == "  Hello \n\n<|im_end|>"


def test_prefix_space_tokenizers_are_not_cut(metaspace_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "[INST] Hello there [/INST] Hello friend</s>"
    ((ids, mask),) = SpanTokenizer(metaspace_tokenizer).encode([text], [[(text.rindex("Hello"), len(text))]])
    assert ids.tolist() == metaspace_tokenizer(text)["input_ids"]
    tokens = metaspace_tokenizer.convert_ids_to_tokens(ids[mask].tolist())
    assert "".join(tokens) == "▁Hello▁friend</s>"


def test_special_tokens_that_begin_before_a_span_are_no_targets(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert targets(tiny_tokenizer, "a<|im_start|>b", (5, 14)) == "b"


def test_special_token_pattern_prefers_the_longest_and_ids_are_the_vocabularys(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert special_token_ids(tiny_tokenizer) == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    pattern = special_token_pattern(tiny_tokenizer)
    found = pattern.search("x <|im_end|> y")
    assert found is not None
    assert found.group() == "<|im_end|>"
    assert pattern.search("<|im_en|>") is None


def test_beginning_ids_are_bos_and_never_eos(
    tiny_tokenizer: PreTrainedTokenizerFast, metaspace_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert beginning_ids(tiny_tokenizer) == []
    both = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(metaspace_tokenizer.backend_tokenizer.to_str()))
    both.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    both.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert beginning_ids(both) == [1]


def test_slow_tokenizers_are_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    class Slow:
        is_fast = False
        name_or_path = "old"

    with pytest.raises(DataError, match="'old' knows no character offsets"):
        SpanTokenizer(Slow())  # type: ignore[arg-type]
