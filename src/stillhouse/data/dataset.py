"""All data of a run: training, validation and test documents that share nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.data.prepare import Prepared, prepare
from stillhouse.data.rows import Row, prompt_digest
from stillhouse.data.sources import draw, load_rows
from stillhouse.errors import DataError
from stillhouse.recipe import DataConfig, EvaluationConfig, SourceConfig, StageData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT_SEED = 0
"""Draws validation and test rows under their limits, whatever the recipe's seed."""


@dataclass(frozen=True)
class Dataset:
    """The three splits. All number their domains alike; ``test`` is ``validation`` where no test rows are given.

    ``stages`` holds the training rows of stages that bring their own.
    """

    train: Prepared
    validation: Prepared
    test: Prepared
    stages: Mapping[str, Prepared] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str, ...]:
        """The sorted domains of all splits."""
        return self.train.documents.domains

    def of_stage(self, name: str) -> Dataset:
        """The same with the training rows of one stage."""
        return replace(self, train=self.stages.get(name, self.train), stages={})

    def reports(self) -> dict[str, Any]:
        """What became of the rows of each split, as JSON; a stage's own rows are ``train of NAME``."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        splits |= {f"train of {name}": prepared for name, prepared in self.stages.items()}
        return {name: prepared.report.as_dict() for name, prepared in splits.items()}


def load_dataset(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    base_dir: Path,
    tokenizer_hash: str,
    test: EvaluationConfig,
    stages: Mapping[str, StageData] | None = None,
) -> Dataset:
    """Read, split and tokenize all data of a recipe.

    ``stages``: the training rows of the stages that bring their own.

    No document and no prompt (see :func:`prompt_digest`) of validation or test is trained on: such
    training rows are dropped and counted as ``leaked_into_evaluation``. Test rows that end with a question, and
    say how an answer to it is checked, make no document; they are kept for the scores. Which rows are held out does
    not depend on the seed, so runs with other seeds are compared on the same ones.

    Raises:
        DataError: see :func:`load_rows` and :func:`prepare`; or nothing is left to train on.
    """
    train_rows = load_rows(config.train, seed=seed, base_dir=base_dir)
    test_rows = _held_out_rows(test.test, test.test_limit_per_domain, base_dir)
    if config.validation:
        validation_rows = _held_out_rows(config.validation, config.validation_limit_per_domain, base_dir)
        train_rows, leaked = drop_leaked(train_rows, [*validation_rows, *test_rows])
    else:
        train_rows, leaked = drop_leaked(train_rows, test_rows)
        train_rows, validation_rows = split_validation(
            train_rows, config.validation_fraction, config.validation_limit_per_domain
        )

    own: dict[str, tuple[list[Row], int]] = {}
    for name, data in (stages or {}).items():
        may_be_empty = data.when_empty == "skip"
        rows = load_rows(data.train, seed=seed, base_dir=base_dir, allow_empty=may_be_empty)
        own[name] = drop_leaked(rows, [*validation_rows, *test_rows])
    questions = tuple(row for row in test_rows if row.is_question)
    test_rows = [row for row in test_rows if not row.is_question]
    every = (train_rows, validation_rows, test_rows, *(rows for rows, _ in own.values()))
    domains = sorted({row.domain for rows in every for row in rows})

    def tokenized(rows: Sequence[Row], held_out: Collection[bytes] = frozenset()) -> Prepared:
        return prepare(
            rows,
            tokenizer,
            config,
            domains=domains,
            tokenizer_hash=tokenizer_hash,
            base_dir=base_dir,
            held_out=held_out,
        )

    validation = tokenized(validation_rows)
    tested = validation
    if test.test:
        tested = replace(tokenized(test_rows), questions=questions)
        if not len(tested.documents):
            raise DataError(
                "evaluation.test: no row has an answer, so there is no NLL to report; add rows that have one"
            )
    held_out = {document.uid for prepared in (validation, tested) for document in prepared.documents}
    train = _count_leaked(tokenized(train_rows, held_out), leaked)
    _refuse_empty(train, len(train_rows) + leaked, validation)
    prepared = {name: _count_leaked(tokenized(rows, held_out), dropped) for name, (rows, dropped) in own.items()}
    for name, data in (stages or {}).items():
        if data.when_empty == "error" and not len(prepared[name].documents):
            raise DataError(
                f"stages.{name}.data.train: no document is left of {len(own[name][0]) + own[name][1]} rows; "
                "give more rows, or set when_empty: skip"
            )
    validation_with_warnings = _warn_of_empty_domains(validation, "validation", train)
    tested = validation_with_warnings if tested is validation else _warn_of_empty_domains(tested, "test", train)
    return Dataset(train, validation_with_warnings, tested, prepared)


def _refuse_empty(train: Prepared, num_rows: int, validation: Prepared) -> None:
    if not len(train.documents):
        raise DataError(
            f"data.train: no document is left to train on: of {num_rows} rows,"
            f" {train.report.num_rejected} were rejected and {train.report.leaked_into_evaluation} stand in validation"
            " or test; give more rows"
        )
    if not len(validation.documents):
        raise DataError(
            "data.validation: there is no document to validate on; give `data.validation`, or training rows with at"
            " least two different prompts in a domain"
        )


def _count_leaked(prepared: Prepared, leaked: int) -> Prepared:
    """Add the rows that were dropped before tokenization."""
    report = prepared.report
    return replace(prepared, report=replace(report, leaked_into_evaluation=report.leaked_into_evaluation + leaked))


def _held_out_rows(sources: Sequence[SourceConfig], limit_per_domain: int | None, base_dir: Path) -> list[Row]:
    rows = load_rows(sources, seed=HELD_OUT_SEED, base_dir=base_dir)
    return draw(rows, None, limit_per_domain, seed=HELD_OUT_SEED)


def _warn_of_empty_domains(prepared: Prepared, split: str, train: Prepared) -> Prepared:
    """Note each domain that is trained on and not measured in this split."""
    missing = [
        name
        for name, counts in prepared.report.domains.items()
        if not counts.documents and train.report.domains[name].documents
    ]
    warnings = tuple(f"domain {name!r} has no {split} rows, so its loss is not in the headline" for name in missing)
    return replace(prepared, report=replace(prepared.report, warnings=prepared.report.warnings + warnings))


def drop_leaked(rows: Sequence[Row], evaluation: Sequence[Row]) -> tuple[list[Row], int]:
    """Return the rows whose prompt is in no evaluation row, and how many were dropped."""
    held_out = {prompt_digest(row) for row in evaluation}
    kept = [row for row in rows if prompt_digest(row) not in held_out] if held_out else list(rows)
    return kept, len(rows) - len(kept)


def split_validation(rows: Sequence[Row], fraction: float, limit_per_domain: int | None) -> tuple[list[Row], list[Row]]:
    """Return (training rows, validation rows), each in the given order.

    Of each domain about ``fraction`` of the rows is held out, at least one row and at most
    ``limit_per_domain``, chosen by a hash of the prompt. Rows with the same prompt stay together,
    also across domains. A domain with a single prompt keeps it for training.
    """
    by_domain: defaultdict[str, dict[bytes, int]] = defaultdict(dict)
    keys = [prompt_digest(row) for row in rows]
    for row, key in zip(rows, keys, strict=True):
        counts = by_domain[row.domain]
        counts[key] = counts.get(key, 0) + 1
    held_out: set[bytes] = set()
    for domain in sorted(by_domain):
        counts = by_domain[domain]
        wanted = max(1, round(fraction * sum(counts.values())))
        held_out |= _hold_out(counts, wanted if limit_per_domain is None else min(wanted, limit_per_domain), held_out)
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def _hold_out(counts: dict[bytes, int], wanted: int, already: set[bytes]) -> set[bytes]:
    """Choose prompts of one domain until ``wanted`` rows are held out, those held out already included.

    ``counts`` are the rows per prompt. One prompt always stays for training; prompts with more
    rows than are wanted are passed over, unless there are no others.
    """
    free = sorted(
        (key for key in counts if key not in already),
        key=lambda key: hashlib.blake2b(key, digest_size=8, person=b"validation").digest(),
    )[:-1]
    have = sum(count for key, count in counts.items() if key in already)
    chosen: set[bytes] = set()
    for key in free:
        if have + counts[key] <= wanted:
            chosen.add(key)
            have += counts[key]
    if not have and free:
        chosen.add(min(free, key=lambda key: counts[key]))
    return chosen
