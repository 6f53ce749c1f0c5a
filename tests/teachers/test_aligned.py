"""A teacher with another tokenizer: its rendering, the groups, and what it hands over."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.batching import collate_packed, collate_padded
from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError, ModelError
from stillhouse.models.token_bytes import token_bytes
from stillhouse.models.tokenizers import tokenizer_hash
from stillhouse.recipe import DataConfig, SourceConfig
from stillhouse.teachers.aligned import AlignedTeacher, vocabulary_match
from stillhouse.teachers.aligned_documents import AlignedDocuments, align_documents

ANSWERS = (
    ("Say hello", "Hello world, how are you? 12 ünïcode 🦉 words"),
    ("And now\n", "  two lines\n\nand spaces around  \n"),
    ("Count", "1 2 3 4 5 6 7 8 9 10"),
)


def chat(*turns: tuple[str, str]) -> Row:
    messages = [m for ask, say in turns for m in (Message("user", ask), Message("assistant", say))]
    return Row(tuple(messages), None, "d", None, "id", "chat.jsonl:1")


def prepared_by(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], max_seq_len: int = 256) -> Prepared:
    config = DataConfig(train=(SourceConfig(path="x"),), max_seq_len=max_seq_len, deduplicate=False)
    return prepare(rows, tokenizer, config, tokenizer_hash=tokenizer_hash(tokenizer))


def aligned(
    prepared: Prepared, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, **kw: float
) -> AlignedDocuments:
    arguments = {"max_teacher_len": 512, "max_unaligned_fraction": 0.0, **kw}
    return align_documents(prepared, student, teacher, **arguments)  # type: ignore[arg-type]


def texts_of_groups(
    prepared: Prepared, found: AlignedDocuments, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast
) -> list[list[tuple[bytes, bytes]]]:
    """(bytes of the student's tokens, bytes of the teacher's) of each group of each document."""
    ours, theirs = token_bytes(student), token_bytes(teacher)
    result, at, teacher_at = [], 0, 0
    for index, document in enumerate(prepared.documents):
        mine, its = document.input_ids[document.loss_mask], found.teacher[index]
        groups = found.student_groups[at : at + len(mine)]
        tokens = its.input_ids[its.loss_mask]
        teacher_groups = found.teacher_groups[teacher_at : teacher_at + len(tokens)]
        at, teacher_at = at + len(mine), teacher_at + len(tokens)
        result.append(
            [
                (
                    b"".join(ours[i] or b"?" for i in mine[groups == g]),
                    b"".join(theirs[i] or b"?" for i in tokens[teacher_groups == g]),
                )
                for g in range(found.num_groups[index])
            ]
        )
    return result


def test_groups_hold_the_same_text_of_every_answer(
    tiny_tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [chat(ANSWERS[0]), chat(ANSWERS[1], ANSWERS[2]), chat(ANSWERS[2], ANSWERS[0], ANSWERS[1])]
    prepared = prepared_by(tiny_tokenizer, rows)
    found = aligned(prepared, tiny_tokenizer, other_tokenizer)
    for row, groups in zip(rows, texts_of_groups(prepared, found, tiny_tokenizer, other_tokenizer), strict=True):
        assert all(mine == its for mine, its in groups)
        said = [m.content for m in row.messages or () if m.role == "assistant"]
        written = b"".join(mine for mine, _ in groups).decode()
        # The teacher's template trims contents; nothing else is missing.
        assert written == "".join(text.strip() for text in said)
    assert found.report.unaligned == 0
    assert found.report.grouped_targets < found.report.targets  # ends of turns
    assert found.report.coverage > 0.8


def test_a_document_cut_off_is_aligned_as_far_as_it_goes(
    tiny_tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast
) -> None:
    row = chat(ANSWERS[2], ANSWERS[0])
    whole = prepared_by(tiny_tokenizer, [row])
    length, first = int(whole.documents.lengths[0]), int(np.flatnonzero(whole.documents.mask)[0])
    for kept in range(first + 1, length):
        prepared = prepared_by(tiny_tokenizer, [row], max_seq_len=kept)
        found = aligned(prepared, tiny_tokenizer, other_tokenizer)
        (groups,) = texts_of_groups(prepared, found, tiny_tokenizer, other_tokenizer)
        assert all(mine == its for mine, its in groups)
        said = ANSWERS[2][1] + ANSWERS[0][1]
        assert said.startswith(b"".join(mine for mine, _ in groups).decode(errors="ignore"))
    short = aligned(whole, tiny_tokenizer, other_tokenizer, max_teacher_len=45)
    assert short.teacher.lengths[0] <= 45
    assert 0 < short.num_groups[0] < aligned(whole, tiny_tokenizer, other_tokenizer).num_groups[0]


def test_pieces_of_raw_text_are_the_teachers_documents_too(
    tiny_tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = ("Hello wörld, how are you? 🦉🦉 " * 6).strip()
    prepared = prepared_by(tiny_tokenizer, [Row(None, text, "d", None, "id", "text.jsonl:1")], max_seq_len=17)
    assert len(prepared.documents) > 5
    found = aligned(prepared, tiny_tokenizer, other_tokenizer)
    contents = token_bytes(tiny_tokenizer)
    every = texts_of_groups(prepared, found, tiny_tokenizer, other_tokenizer)
    for document, groups in zip(prepared.documents, every, strict=True):
        assert all(mine == its for mine, its in groups)
        piece = b"".join(contents[i] or b"" for i in document.input_ids)
        joined = b"".join(mine for mine, _ in groups)
        assert joined in piece
        assert len(joined) > len(piece) - 12  # the first token and halves of characters are left out


def test_a_prompt_and_completion_without_templates(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], other_tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = make_tokenizer(None)
    row = replace(chat(("Ask: ", "Hello 12")), prompt="Ask: ", completion="Hello 12")
    prepared = prepared_by(plain, [row])
    (groups,) = texts_of_groups(prepared, aligned(prepared, plain, other_tokenizer), plain, other_tokenizer)
    assert b"".join(mine for mine, _ in groups) == b"Hello 12"


def test_rows_that_the_teacher_cannot_read_are_counted_and_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [chat(ANSWERS[0]), chat(("x", "say </s> now")), chat(ANSWERS[2])]
    prepared = prepared_by(tiny_tokenizer, rows)
    found = aligned(prepared, tiny_tokenizer, other_tokenizer, max_unaligned_fraction=0.4)
    assert found.report.unaligned == 1
    assert "special_token_in_content" in found.report.examples[0]
    assert found.num_groups[1] == 0
    with pytest.raises(DataError, match=r"1 of 3 documents cannot be aligned(.|\n)*chat.jsonl:1: special"):
        aligned(prepared, tiny_tokenizer, other_tokenizer, max_unaligned_fraction=0.3)


def test_a_teacher_without_a_chat_template_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(DataError, match=r"teacher\.path.*no chat template"):
        aligned(prepared_by(tiny_tokenizer, [chat(ANSWERS[0])]), tiny_tokenizer, make_tokenizer(None))


@pytest.fixture
def world(
    tiny_tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast, other_model_dir: Path
) -> tuple[Prepared, AlignedTeacher]:
    rows = [chat(ANSWERS[0]), chat(("x", "say </s> now")), chat(ANSWERS[1], ANSWERS[2]), chat(ANSWERS[2])]
    prepared = prepared_by(tiny_tokenizer, rows)
    model = AutoModelForCausalLM.from_pretrained(other_model_dir)
    found = aligned(prepared, tiny_tokenizer, other_tokenizer, max_unaligned_fraction=0.5)
    return prepared, AlignedTeacher(model, found, vocabulary_match(tiny_tokenizer, other_tokenizer))


@pytest.mark.parametrize("packed", [False, True])
def test_targets_follow_the_batch_in_any_order(world: tuple[Prepared, AlignedTeacher], packed: bool) -> None:
    prepared, teacher = world
    order = [3, 1, 0, 2, 2]
    documents = prepared.documents
    batch = collate_packed(documents, [order], 0) if packed else collate_padded(documents, order, 0)
    targets = teacher.targets(batch)
    assert len(targets.student_groups) == len(batch.labels)
    assert len(targets.projection.hidden) == len(targets.tokens) == len(targets.groups)
    assert targets.groups.unique().tolist() == list(range(int(teacher.documents.num_groups[order].sum())))
    assert set(targets.groups.tolist()) == set(targets.student_groups.tolist()) - {-1}
    # Each document alone gives the same rows, wherever it stands.
    row = group = 0
    for index in order:
        alone = teacher.targets(collate_padded(documents, [index], 0))
        size = len(alone.groups)
        here = slice(row, row + size)
        torch.testing.assert_close(targets.projection.hidden[here], alone.projection.hidden, rtol=1e-4, atol=1e-5)
        assert targets.tokens[here].tolist() == alone.tokens.tolist()
        assert (targets.groups[here] - group).tolist() == alone.groups.tolist()
        row, group = row + size, group + int(teacher.documents.num_groups[index])


def test_the_teachers_own_logits_predict_its_tokens(
    world: tuple[Prepared, AlignedTeacher], other_model_dir: Path
) -> None:
    prepared, teacher = world
    targets = teacher.targets(collate_padded(prepared.documents, [0], 0))
    its = teacher.documents.teacher[0]
    ids = torch.from_numpy(its.input_ids.astype(np.int64))
    with torch.no_grad():
        logits = teacher.model(input_ids=ids[None]).logits[0]
    wanted = torch.from_numpy(np.flatnonzero(its.loss_mask)) - 1
    ours = targets.projection.hidden @ targets.projection.weight.T
    torch.testing.assert_close(ours, logits[wanted][:, : len(targets.projection.weight)], rtol=1e-4, atol=1e-5)
    assert len(targets.projection.weight) == json.loads((other_model_dir / "config.json").read_text())["vocab_size"] - 5


def test_a_batch_that_asks_nothing_has_no_groups(world: tuple[Prepared, AlignedTeacher]) -> None:
    prepared, teacher = world
    for batch in (
        collate_padded(prepared.documents, [0], 0).without_targets(),
        collate_padded(prepared.documents, [1], 0),
    ):
        targets = teacher.targets(batch)
        assert len(targets.tokens) == len(targets.groups) == 0
        assert (targets.student_groups == -1).all()
        assert len(targets.student_groups) == len(batch.labels)


def test_a_head_smaller_than_its_tokenizer_is_refused(
    world: tuple[Prepared, AlignedTeacher], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    _, teacher = world
    match = vocabulary_match(tiny_tokenizer, tiny_tokenizer)
    with pytest.raises(ModelError, match=r"teacher\.path"):
        AlignedTeacher(teacher.model, teacher.documents, match)
