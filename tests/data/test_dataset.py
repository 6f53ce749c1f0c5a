"""Splits: deterministic, per domain, and without a shared prompt or document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stillhouse.data.dataset import Dataset, drop_leaked, load_dataset, split_validation
from stillhouse.data.rows import Message, Row, prompt_digest
from stillhouse.errors import DataError
from stillhouse.recipe import DataConfig, EvaluationConfig, SourceConfig


def row(prompt: str, domain: str = "a", answer: str = "yes") -> Row:
    return Row((Message("user", prompt), Message("assistant", answer)), None, domain, None, prompt, "f:1")


def write(path: Path, *rows: tuple[str, str, str]) -> SourceConfig:
    """Write (domain, prompt, answer) rows."""
    lines = [json.dumps({"domain": d, "prompt": p, "completion": c}) for d, p, c in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return SourceConfig(path=path.name)


def load(
    base_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    test: EvaluationConfig | None = None,
    *,
    seed: int = 0,
    **data: Any,
) -> Dataset:
    test = test or EvaluationConfig()
    return load_dataset(DataConfig(**data), tokenizer, seed=seed, base_dir=base_dir, tokenizer_hash="t", test=test)


def prompts(rows: list[Row]) -> set[str]:
    return {r.prompt or "" for r in rows}


# --- splitting --------------------------------------------------------------------------------


def test_each_domain_gives_its_share_within_the_limit() -> None:
    rows = [row(f"{domain} {i}", domain) for domain, n in (("big", 200), ("small", 5), ("single", 1)) for i in range(n)]
    train, validation = split_validation(rows, 0.1, 12)
    counts = {name: [r.domain for r in validation].count(name) for name in ("big", "small", "single")}
    assert counts == {"big": 12, "small": 1, "single": 0}  # 20 capped at 12; at least 1; the last prompt stays
    assert len(train) + len(validation) == len(rows)
    assert len(split_validation(rows, 0.1, None)[1]) == 21


@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), min_size=1, max_size=40),
    fraction=st.floats(0.01, 0.6),
)
@settings(max_examples=80, deadline=None)
def test_split_never_shares_a_prompt_and_keeps_every_row(rows: list[tuple[int, str]], fraction: float) -> None:
    made = [row(f"prompt {number}", domain, answer=str(i)) for i, (number, domain) in enumerate(rows)]
    train, validation = split_validation(made, fraction, None)
    assert not {prompt_digest(r) for r in train} & {prompt_digest(r) for r in validation}
    assert sorted(r.contents for r in train + validation) == sorted(r.contents for r in made)
    assert train
    for domain in {r.domain for r in made}:
        if len({r.contents[0] for r in made if r.domain == domain}) > 1:
            assert any(r.domain == domain for r in validation)


def test_split_depends_on_prompts_not_on_order() -> None:
    rows = [row(f"p{i}") for i in range(50)]
    forward = split_validation(rows, 0.2, None)[1]
    assert set(split_validation(rows[::-1], 0.2, None)[1]) == set(forward)
    assert len(forward) == 10


def test_drop_leaked_ignores_case_and_space() -> None:
    kept, leaked = drop_leaked([row("What is it?"), row("Other")], [row("what  IS it?", answer="no")])
    assert ([r.contents[0] for r in kept], leaked) == (["Other"], 1)


# --- loading ----------------------------------------------------------------------------------


def test_validation_is_split_off_and_serves_as_test(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    source = write(tmp_path / "t.jsonl", *[(d, f"{d} {i}?", str(i)) for d in "ab" for i in range(20)])
    dataset = load(tmp_path, tiny_tokenizer, train=(source,), validation_fraction=0.1)
    assert dataset.test is dataset.validation
    assert dataset.domains == ("a", "b") == dataset.validation.documents.domains
    assert (len(dataset.train.documents), len(dataset.validation.documents)) == (36, 4)
    assert not prompts(dataset.train.rows) & prompts(dataset.validation.rows)
    other_seed = load(tmp_path, tiny_tokenizer, train=(source,), validation_fraction=0.1, seed=9)
    assert prompts(other_seed.validation.rows) == prompts(dataset.validation.rows)


def test_given_splits_push_their_prompts_out_of_training(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    train = write(
        tmp_path / "t.jsonl", ("a", "one?", "1"), ("a", "two?", "2"), ("a", "three?", "3"), ("a", "four?", "4")
    )
    validation = write(tmp_path / "v.jsonl", ("a", "One?", "uno"), ("b", "five?", "5"))
    test = write(tmp_path / "e.jsonl", ("a", "two?", "due"))
    evaluation = EvaluationConfig(test=(test,))
    dataset = load(tmp_path, tiny_tokenizer, evaluation, train=(train,), validation=(validation,))
    assert prompts(dataset.train.rows) == {"three?", "four?"}
    assert dataset.train.report.leaked_into_evaluation == 2
    assert dataset.domains == ("a", "b")
    assert prompts(dataset.test.rows) == {"two?"}
    assert set(dataset.reports()) == {"train", "validation", "test"}


def test_questions_with_a_check_are_kept_for_the_scores_and_others_are_no_rows(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    train = write(tmp_path / "t.jsonl", ("a", "one?", "1"), ("a", "two?", "2"), ("a", "three?", "3"))

    def question(prompt: str, **more: Any) -> str:
        return json.dumps({"domain": "q", "messages": [{"role": "user", "content": prompt}], **more}) + "\n"

    path = tmp_path / "q.jsonl"
    path.write_text(question("two?", references=["due"]))
    held = write(tmp_path / "e.jsonl", ("a", "four?", "4"))
    evaluation = EvaluationConfig(test=(SourceConfig(path="q.jsonl"), held))
    dataset = load(tmp_path, tiny_tokenizer, evaluation, train=(train,), validation_fraction=0.5)
    assert [row.contents for row in dataset.test.questions] == [("two?",)]
    assert (dataset.domains, len(dataset.test.documents)) == (("a",), 1)
    assert dataset.train.report.leaked_into_evaluation == 1  # a question is not trained on either
    with pytest.raises(DataError, match=r"evaluation\.test: no row has an answer"):
        load(tmp_path, tiny_tokenizer, EvaluationConfig(test=(SourceConfig(path="q.jsonl"),)), train=(train,))
    path.write_text(question("two?"))
    with pytest.raises(DataError, match="1 of 2 rows cannot be used"):
        load(tmp_path, tiny_tokenizer, evaluation, train=(train,))


def test_equal_documents_are_dropped_though_prompts_differ(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two texts that share a piece: other prompts, the same tokens."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "abcdefgh" + "qrstuvw"}) + "\n")
    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "abcdefgh" + "zyxwvut"}) + "\n")
    sources = {"train": (SourceConfig(path="t.jsonl"),), "validation": (SourceConfig(path="v.jsonl"),)}
    dataset = load(tmp_path, tiny_tokenizer, max_seq_len=8, **sources)
    assert dataset.train.report.leaked_into_evaluation == 1
    assert len(dataset.train.documents) == 1
    uids = [{d.uid for d in split.documents} for split in (dataset.train, dataset.validation)]
    assert not uids[0] & uids[1]


def test_limits_per_domain_cut_validation_and_test(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    train = write(tmp_path / "t.jsonl", *[("a", f"train {i}", "x") for i in range(5)])
    held = write(tmp_path / "v.jsonl", *[(d, f"{d} {i}", "x") for d in "ab" for i in range(9)])
    test = EvaluationConfig(test=(held,), test_limit_per_domain=4)
    dataset = load(tmp_path, tiny_tokenizer, test, train=(train,), validation=(held,), validation_limit_per_domain=3)
    assert [c.documents for c in dataset.validation.report.domains.values()] == [3, 3]
    assert [c.documents for c in dataset.test.report.domains.values()] == [4, 4]


def test_domain_without_validation_rows_is_a_warning(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*[("a", f"p{i}", "x") for i in range(10)], ("b", "alone", "x")]
    dataset = load(tmp_path, tiny_tokenizer, train=(write(tmp_path / "t.jsonl", *rows),))
    assert dataset.validation.report.warnings == (
        "domain 'b' has no validation rows, so its loss is not in the headline",
    )
    assert dataset.test is dataset.validation


def test_nothing_to_train_on_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    source = write(tmp_path / "t.jsonl", ("a", "one?", "1"), ("a", "two?", "2"))
    with pytest.raises(
        DataError, match=r"data.train: no document is left to train on: of 2 rows, 0 were rejected and 2"
    ):
        load(tmp_path, tiny_tokenizer, train=(source,), validation=(source,))


def test_nothing_to_validate_on_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    source = write(tmp_path / "t.jsonl", ("a", "one?", "1"))
    with pytest.raises(DataError, match=r"data.validation: there is no document to validate on"):
        load(tmp_path, tiny_tokenizer, train=(source,))


def test_real_chat_data_is_used_nearly_whole(shared_data: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The collection promises that no train prompt stands in validation or test; a few rows prove the path."""
    splits = {
        split: (SourceConfig(path=f"chat/*/{split}.jsonl", limit_per_domain=20),) for split in ("train", "validation")
    }
    dataset = load(shared_data, tiny_tokenizer, max_seq_len=4096, **splits)
    assert len(dataset.domains) == 8
    assert dataset.train.report.leaked_into_evaluation == 0
    assert dataset.train.report.documents == dataset.train.report.rows == 160


def test_limits_on_held_out_rows_do_not_follow_the_seed(
    chat_jsonl: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = SourceConfig(path=str(chat_jsonl))
    config = DataConfig(train=(source,), validation=(source,), validation_limit_per_domain=2, max_seq_len=64)
    uids = [
        load_dataset(
            config,
            tiny_tokenizer,
            seed=seed,
            base_dir=Path(),
            tokenizer_hash="t",
            test=EvaluationConfig(test=(source,), test_limit_per_domain=3),
        )
        for seed in (0, 1)
    ]
    for split in ("validation", "test"):
        first, second = (getattr(dataset, split).documents.uids.tolist() for dataset in uids)
        assert first == second
