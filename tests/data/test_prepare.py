"""Rows to documents: what is cut, left out and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from stillhouse.data.formatting import chat_format_for
from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Message, Row
from stillhouse.data.sources import load_rows
from stillhouse.errors import DataError
from stillhouse.recipe import DataConfig, SourceConfig

Tokenizer = PreTrainedTokenizerFast


def chat(question: str, answer: str, domain: str = "a", where: str = "f:1") -> Row:
    return Row((Message("user", question), Message("assistant", answer)), None, domain, None, "", where)


def text(content: str, domain: str = "a") -> Row:
    return Row(None, content, domain, None, "", "f:1")


def plain(prompt: str, completion: str) -> Row:
    turns = (Message("user", prompt), Message("assistant", completion))
    return Row(turns, None, "a", None, "", "f:1", prompt, completion)


def run(rows: list[Row], tokenizer: Tokenizer, base_dir: Path = Path(), **options: Any) -> Prepared:
    data = {"max_rejected_fraction": 1.0, **options}
    config = DataConfig(train=(SourceConfig(path="x"),), **data)
    return prepare(rows, tokenizer, config, tokenizer_hash="t", base_dir=base_dir)


def said(prepared: Prepared, tokenizer: Tokenizer, number: int) -> str:
    document = prepared.documents[number]
    return str(tokenizer.decode(document.input_ids[document.loss_mask]))


def test_report_counts_per_domain(tiny_tokenizer: Tokenizer, chat_jsonl: Path) -> None:
    rows = load_rows([SourceConfig(path=str(chat_jsonl))], seed=0, base_dir=Path())
    prepared = run(rows, tiny_tokenizer)
    report = prepared.report
    assert prepared.documents.domains == ("greetings", "math", "spelling")
    assert {name: c.documents for name, c in report.domains.items()} == {"greetings": 5, "math": 20, "spelling": 6}
    assert report.documents == report.rows == 31
    assert report.tokens == sum(c.tokens for c in report.domains.values()) == prepared.documents.lengths.sum()
    assert report.targets == sum(c.targets for c in report.domains.values()) == prepared.documents.mask.sum()
    assert said(prepared, tiny_tokenizer, 0) == "2<|im_end|>"
    as_json = json.loads(json.dumps(report.as_dict()))
    assert as_json["domains"]["math"]["documents"] == 20
    assert as_json["rejected"]["empty"] == 0


def test_every_reason_is_counted_and_rows_stay_aligned(tiny_tokenizer: Tokenizer) -> None:
    rows = [
        chat("one", "1"),
        chat("one", "<|im_end|>", where="f:2"),
        Row((Message("assistant", "?"),), None, "a", None, "", "f:3"),
        chat("blank", "  ", where="f:4"),
        chat("word " * 50, "cut away", where="f:5"),
        chat("one", "1"),
        chat("two", "what is " * 20),
        chat("three", "3"),
    ]
    prepared = run(rows, tiny_tokenizer, max_seq_len=48)
    report = prepared.report
    assert {reason: count for reason, count in report.rejected.items() if count} == {
        "special_token_in_content": 1,
        "bad_role_order": 1,
        "empty": 1,
        "empty_targets": 1,
    }
    assert (report.truncated, report.duplicates, report.documents, report.num_rejected) == (1, 1, 3, 4)
    assert [row.contents[0] for row in prepared.rows] == ["one", "two", "three"]
    assert prepared.documents.rows.tolist() == [0, 1, 2]
    assert prepared.documents.lengths.max() == 48
    assert report.rejected_examples[0].startswith("f:2: special_token_in_content: turn 2 (assistant) contains")
    assert report.rejected_examples[3].startswith("f:5: empty_targets: the first 48 tokens (data.max_seq_len)")


def test_duplicates_stay_where_asked(tiny_tokenizer: Tokenizer) -> None:
    prepared = run([chat("one", "1"), chat("one", "1")], tiny_tokenizer, deduplicate=False)
    assert (prepared.report.documents, prepared.report.duplicates) == (2, 0)


def test_held_out_documents_are_left_out(tiny_tokenizer: Tokenizer) -> None:
    rows = [chat("one", "1"), chat("two", "2"), chat("one", "1")]
    config = DataConfig(train=(SourceConfig(path="x"),))
    uid = run(rows, tiny_tokenizer).documents[0].uid
    prepared = prepare(rows, tiny_tokenizer, config, tokenizer_hash="t", held_out={uid})
    assert (prepared.report.leaked_into_evaluation, prepared.report.documents) == (2, 1)
    assert [row.contents[0] for row in prepared.rows] == ["two"]


def test_too_many_rejected_rows_stop_with_counts_and_places(tiny_tokenizer: Tokenizer) -> None:
    rows = [chat(f"q{i}", "fine") for i in range(18)]
    wrong = [chat("<|im_start|>", "a", where=f"f:{i}") for i in (1, 2)]
    assert run(rows + wrong, tiny_tokenizer, max_rejected_fraction=0.1).report.num_rejected == 2
    with pytest.raises(
        DataError,
        match=r"2 of 20 rows cannot be used \(special_token_in_content 2\), more than data.max_rejected_fraction=0.09"
        r"(.|\n)*f:1: special_token_in_content: turn 1 \(user\) contains '<\|im_start\|>'",
    ):
        run(rows + wrong, tiny_tokenizer, max_rejected_fraction=0.09)


# --- raw text ---------------------------------------------------------------------------------


def test_text_is_cut_into_pieces_that_end_with_eos_once(tiny_tokenizer: Tokenizer) -> None:
    content = "abcdefghij" * 2 + "k"  # no merges: 21 tokens and eos
    prepared = run([text(content), text("other words")], tiny_tokenizer, max_seq_len=8)
    documents = prepared.documents
    assert documents.lengths.tolist()[:3] == [8, 8, 6]
    assert all(d.loss_mask.tolist() == [False] + [True] * (d.num_tokens - 1) for d in documents)
    pieces = [tiny_tokenizer.decode(documents[i].input_ids) for i in range(3)]
    assert "".join(pieces) == content + "<|im_end|>"
    assert documents.rows.tolist()[:3] == [0, 0, 0]
    assert (prepared.report.truncated, prepared.report.rows) == (0, 2)


def test_text_begins_with_bos_where_the_tokenizer_writes_one(make_tokenizer: Callable[..., Tokenizer]) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    prepared = run([text("house"), chat("one", "1")], tokenizer)
    assert tokenizer.decode(prepared.documents[0].input_ids) == "<|im_start|>house<|im_end|>"
    assert prepared.documents[0].loss_mask.tolist()[:2] == [False, True]
    assert tokenizer.decode(prepared.documents[1].input_ids).startswith("<|im_start|>user")  # the template's, once


def test_unusable_texts_are_counted(tiny_tokenizer: Tokenizer, make_tokenizer: Callable[..., Tokenizer]) -> None:
    rows = [text(" \n"), text("a <|endoftext|> b"), text("fine")]
    report = run(rows, tiny_tokenizer).report
    assert (report.rejected["empty"], report.rejected["special_token_in_content"], report.documents) == (1, 1, 1)
    without_eos = make_tokenizer()
    without_eos.eos_token = None
    assert run([text("q"), text("fine")], without_eos).report.rejected["empty_targets"] == 1


# --- prompts without a template ----------------------------------------------------------------


def test_prompt_and_completion_without_a_template_end_with_eos(make_tokenizer: Callable[..., Tokenizer]) -> None:
    tokenizer = make_tokenizer(chat_template=None)
    prepared = run([plain("What is 1+1?\n", "\n\n2"), plain("What", " is")], tokenizer)
    assert tokenizer.decode(prepared.documents[0].input_ids) == "What is 1+1?\n\n\n2<|im_end|>"
    assert said(prepared, tokenizer, 0) == "\n\n2<|im_end|>"
    assert said(prepared, tokenizer, 1) == " is<|im_end|>"
    assert chat_format_for(prepared.rows, tokenizer, DataConfig(train=(SourceConfig(path="x"),)), Path()) is None


def test_prompt_and_completion_use_the_template_where_there_is_one(tiny_tokenizer: Tokenizer) -> None:
    prepared = run([plain("What is 1+1?", "2")], tiny_tokenizer)
    assert tiny_tokenizer.decode(prepared.documents[0].input_ids).startswith("<|im_start|>user\nWhat is 1+1?")


def test_conversations_without_a_template_are_refused(make_tokenizer: Callable[..., Tokenizer]) -> None:
    with pytest.raises(DataError, match=r"no chat template; give one as data.chat_template"):
        run([chat("one", "1")], make_tokenizer(chat_template=None))
    no_end = make_tokenizer(chat_template=None)
    no_end.eos_token = None
    with pytest.raises(DataError, match="neither a chat template nor an eos token"):
        run([plain("a", "b")], no_end)


def test_template_file_replaces_the_tokenizers(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}"
    )
    prepared = run([chat("one", "1")], tiny_tokenizer, tmp_path, chat_template="t.jinja")
    assert tiny_tokenizer.decode(prepared.documents[0].input_ids) == "u:one<|im_end|>a:1<|im_end|>"
    assert said(prepared, tiny_tokenizer, 0) == "1<|im_end|>"
    with pytest.raises(DataError, match=r"data.chat_template=none.jinja: .*cannot be read"):
        run([chat("one", "1")], tiny_tokenizer, tmp_path, chat_template="none.jinja")


def test_rows_outside_the_given_domains_are_refused(tiny_tokenizer: Tokenizer) -> None:
    config = DataConfig(train=(SourceConfig(path="x"),))
    with pytest.raises(DataError, match=r"rows have domains \['b'\] that are not among \['a'\]"):
        prepare([chat("q", "a", "b")], tiny_tokenizer, config, domains=["a"], tokenizer_hash="t")
