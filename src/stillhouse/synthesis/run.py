"""``synthesize``: batches of candidates until there are enough rows, or no more come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stillhouse.data.rows import Message, Row
from stillhouse.errors import DataError, OutputError, SynthesisError
from stillhouse.randomness import derive_seed, numpy_generator
from stillhouse.recipe import RolloutConfig, SynthesisConfig
from stillhouse.rollout.generator import Completion, Generator, SamplingSettings
from stillhouse.run_directory import write_json_atomic, write_text_atomic
from stillhouse.synthesis.candidates import (
    Candidate,
    Rejection,
    Usage,
    candidates_needed,
    count_reasons,
    keep,
)
from stillhouse.synthesis.filters import InputFilter, LengthRange, choose_answer, length_range
from stillhouse.synthesis.fitting import farthest, fit_examples, has_room, longest, nothing_fits
from stillhouse.synthesis.formats import Format, Predicate, Verifier, build_format, holds_special
from stillhouse.synthesis.journal import Journal
from stillhouse.synthesis.leakage import GuardedSeeds, guard_seeds
from stillhouse.synthesis.output import identity_of, rows_jsonl, synthesis_report
from stillhouse.synthesis.prompting import draw_distinct, input_prompt, label_prompt, read_input
from stillhouse.synthesis.scoring import AnswerScorer
from stillhouse.synthesis.seeds import Seed, SeedDomain
from stillhouse.synthesis.vectors import Matrix, TextVectors

JOURNAL, ROWS, REPORT, PAGE = "journal.jsonl", "synthetic.jsonl", "synthesis_report.json", "report.html"
SERVED_ANSWERS = "_answers.jsonl"
CANDIDATES_PER_ROW = 20
LABEL_EXAMPLES = 4


@dataclass(frozen=True)
class SynthesisModels:
    """Who writes inputs, who answers them, and who scores the answers (None: nobody, as with most servers).

    The numbers of parameters, where they are known, turn tokens into FLOPs. ``special`` finds special
    tokens of the models' tokenizers: in a conversation they would be taken for turns. ``notes`` are
    warnings for the report.
    """

    inputs: Generator
    labels: Generator
    scorer: AnswerScorer | None = None
    input_parameters: int | None = None
    label_parameters: int | None = None
    special: tuple[re.Pattern[str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SynthesisProgress:
    """Where a synthesis stands; ``expected`` candidates in all at the acceptance so far, None before the first row."""

    kept: int
    target: int
    candidates: int
    expected: int | None


@dataclass(frozen=True)
class SynthesisOutcome:
    """The folder, the rows in it, and the report as in ``synthesis_report.json``."""

    directory: Path
    rows: int
    report: dict[str, Any]


def synthesize(
    config: SynthesisConfig,
    seeds: Sequence[Row],
    models: SynthesisModels,
    *,
    directory: Path,
    seed: int,
    evaluation: Sequence[Row] = (),
    base_dir: Path = Path(),
    predicate: Predicate | None = None,
    input_predicate: Predicate | None = None,
    verifier: Verifier | None = None,
    overwrite: bool = False,
    progress: Callable[[SynthesisProgress], None] | None = None,
) -> SynthesisOutcome:
    """Write new rows in the manner of ``seeds`` into ``directory``, or go on where a killed call stopped.

    ``predicate`` and ``input_predicate`` serve ``type: predicate`` formats. Only answers that
    ``verifier`` accepts for their inputs are kept, and vote where there are several samples; the
    journal knows it by its name. ``evaluation`` rows must not be given away by seeds or new rows. A
    larger target continues a finished synthesis.

    Raises:
        DataError: a seed is not one question with its answer, there are fewer seeds than a prompt
            needs, or seeds contaminate the evaluation (the rows are named).
        OutputError: the folder holds another synthesis.
        SynthesisError: no row was kept; the report with all reasons is written all the same.
    """
    guarded = guard_seeds(seeds, evaluation, config)
    checks = _checks(config, guarded, models.special, base_dir, predicate, input_predicate, verifier)
    state = _Synthesis(config, guarded, checks, models, directory, seed, overwrite=overwrite)
    return state.finish(state.run(progress))


@dataclass(frozen=True)
class _Checks:
    """What inputs and answers are held against; lengths of answers by domain."""

    inputs: InputFilter
    answers: Format
    answer_lengths: dict[str, LengthRange]
    verifier: Verifier | None

    def choose(self, candidate: Candidate, samples: Sequence[Completion], min_agreement: float) -> Candidate:
        """The candidate with the answer that the samples give, or why there is none."""
        verifier = self.verifier
        accepts = None if verifier is None else lambda answer: verifier(candidate.text, answer)
        lengths = self.answer_lengths[candidate.domain]
        answer, agreement, rejection = choose_answer(samples, self.answers, lengths, min_agreement, accepts)
        return replace(candidate, answer=answer, agreement=agreement, rejection=rejection, label_usage=_usage(samples))


def _checks(
    config: SynthesisConfig,
    guarded: GuardedSeeds,
    special: Sequence[re.Pattern[str]],
    base_dir: Path,
    predicate: Predicate | None,
    input_predicate: Predicate | None,
    verifier: Verifier | None,
) -> _Checks:
    domains = guarded.domains.values()
    answers = [s.answer for domain in domains for s in domain.seeds]
    answer_format = build_format(config.format, "synthesis.format", own=answers, predicate=predicate, base_dir=base_dir)
    input_format = None
    if config.input_format is not None:
        texts = [s.text for domain in domains for s in domain.seeds]
        field = "synthesis.input_format"
        input_format = build_format(config.input_format, field, own=texts, predicate=input_predicate, base_dir=base_dir)
    answer_format = answer_format.without(special)
    for domain in domains:
        for seed in domain.seeds:
            _check_seed(seed, answer_format, special)
    lengths = {d.name: length_range((s.answer for s in d.seeds), config.filters.length_factor) for d in domains}
    inputs = InputFilter(config.filters, domains, input_format, guarded.index, guarded.evaluation, special)
    return _Checks(inputs, answer_format, lengths, verifier)


def _check_seed(seed: Seed, answers: Format, special: Sequence[re.Pattern[str]]) -> None:
    """A format that the human answers do not have would reject good rows, and shows a mistake in the recipe."""
    if problem := holds_special(seed.text, special):
        raise DataError(f"{seed.where}: this seed {problem}, which a chat template would take for a turn; take it out")
    if problem := answers.problem(seed.answer):
        raise DataError(
            f"{seed.where}: the answer {seed.answer[:80]!r} of this seed does not have synthesis.format ({problem});"
            " mend the format or the row"
        )


class _Synthesis:
    """The state of one call: the journal, and what follows from it."""

    def __init__(
        self,
        config: SynthesisConfig,
        guarded: GuardedSeeds,
        checks: _Checks,
        models: SynthesisModels,
        directory: Path,
        seed: int,
        *,
        overwrite: bool,
    ) -> None:
        self.config, self.guarded, self.checks, self.models = config, guarded, checks, models
        self.directory, self.seed = directory, seed
        self.domains = guarded.domains
        self.seeds = [s for domain in self.domains.values() for s in domain.seeds]
        self.target = rows_wanted(config, len(self.seeds))
        self.max_candidates = config.max_candidates or CANDIDATES_PER_ROW * self.target
        texts = [s.text for s in self.seeds]
        self.vectors = TextVectors(texts)
        self.seed_vectors = {d.name: self.vectors([s.text for s in d.seeds]) for d in self.domains.values()}
        self.identity = identity_of(
            config, self.seeds, guarded.evaluation, models.inputs, models.labels, seed, checks.verifier
        )
        self.journal = _open_journal(directory, self.identity, overwrite=overwrite)
        self.candidates = [c for batch in self.journal.batches for c in batch]
        for candidate in self.candidates:
            if candidate.input_passed:
                self._know(candidate)

    def _know(self, candidate: Candidate) -> None:
        self.checks.inputs.add(f"candidate {candidate.number}", candidate.text)

    # --- the loop ---------------------------------------------------------------------------

    def run(self, progress: Callable[[SynthesisProgress], None] | None) -> str:
        """Write batches until the target, or until it is hopeless; return which of them."""
        while True:
            kept = sum(c.passed for c in self.selected())
            if progress is not None:
                expected = candidates_needed(self.target, kept / max(1, len(self.candidates)))
                progress(SynthesisProgress(kept, self.target, len(self.candidates), expected))
            if kept >= self.target:
                return "target"
            if len(self.candidates) >= self.max_candidates:
                return "max_candidates"
            last = self.journal.batches[-self.config.max_fruitless_batches :]
            if len(last) == self.config.max_fruitless_batches and not any(c.passed for b in last for c in b):
                return "fruitless"
            begun = time.monotonic()
            batch = self._batch(len(self.journal.batches))
            self.journal.append(batch, time.monotonic() - begun)
            self.candidates += batch

    def selected(self) -> list[Candidate]:
        """The candidates that passed, those not kept in the end with their reason."""
        tail = self.config.filters.nll_tail
        return keep([c for c in self.candidates if c.passed], self.target, tail)

    def _batch(self, number: int) -> list[Candidate]:
        size = min(self.config.batch_size, self.max_candidates - len(self.candidates))
        known = [c for c in self.candidates if c.passed]
        drafts = [self._draft(len(self.candidates) + i, known) for i in range(size)]
        prompts = [prompt for _, prompt in drafts if prompt is not None]
        if number == 0 and not prompts:
            raise nothing_fits("inputs")
        seed = derive_seed(self.seed, "synthesis-inputs", number)
        replies = iter(_ask(self.models.inputs, prompts, self.config.inputs, seed, "inputs"))
        judged = [draft if prompt is None else self._judge(draft, next(replies)) for draft, prompt in drafts]
        return self._answer(judged, number)

    def _draft(self, number: int, known: Sequence[Candidate]) -> tuple[Candidate, list[Message] | None]:
        """Choose the examples of one candidate: all of the domain of a seed drawn at random.

        What is drawn depends on the candidate's number alone. Where it is too long for the writer the
        longest examples go; the prompt is None where not even one fits.
        """
        generator = numpy_generator(self.seed, "synthesis-examples", number)
        domain = self.domains[self.seeds[int(generator.integers(len(self.seeds)))].domain]
        generated = [c for c in known if c.domain == domain.name]
        synthetic = min(self.config.synthetic_examples, len(generated))
        human = min(self.config.human_examples + self.config.synthetic_examples - synthetic, len(domain.seeds))
        chosen = draw_distinct(domain.seeds, human, generator)
        shown = [generated[i] for i in generator.choice(len(generated), synthetic, replace=False)] if synthetic else []
        drawn: list[Seed | Candidate] = [*chosen, *shown]
        mixed = [drawn[i] for i in generator.permutation(len(drawn))]
        fitting = fit_examples(mixed, lambda examples: self._has_room("inputs", self._input_prompt(examples)), longest)
        left = mixed if fitting is None else fitting
        seeds = [s for s in chosen if s in left]
        draft = Candidate(
            number,
            domain.name,
            tuple(s.id for s in seeds),
            tuple(c.number for c in shown if c in left),
            "",
            seeds[0].system,
            rejection=Rejection("prompt_too_long", "the writer's") if fitting is None else None,
        )
        return draft, None if fitting is None else self._input_prompt(fitting)

    def _input_prompt(self, examples: Sequence[Seed | Candidate]) -> list[Message]:
        return input_prompt([example.text for example in examples], self.config.description)

    def _has_room(self, section: Literal["inputs", "labels"], prompt: list[Message]) -> bool:
        return has_room(getattr(self.models, section), prompt, getattr(self.config, section), section)

    def _judge(self, draft: Candidate, reply: Completion) -> Candidate:
        text = read_input(reply.text)
        rejection = self.checks.inputs.judge(text, draft.domain, finished=reply.finished)
        candidate = replace(draft, text=text, rejection=rejection, input_usage=_usage([reply]))
        if candidate.input_passed:
            self._know(candidate)
        return candidate

    def _answer(self, judged: Sequence[Candidate], number: int) -> list[Candidate]:
        """Label the inputs that passed, and score the answers that passed."""
        labels = self.config.labels
        answered: dict[int, Candidate] = {}
        asked, prompts = [], []
        for candidate in (c for c in judged if c.input_passed):
            prompt = self._label_prompt(candidate)
            if prompt is None:
                too_long = Rejection("prompt_too_long", "the labeller's")
                answered[candidate.number] = replace(candidate, rejection=too_long)
            else:
                asked.append(candidate)
                prompts.append(prompt)
        if number == 0 and answered and not asked:
            raise nothing_fits("labels")
        repeated = [prompt for prompt in prompts for _ in range(labels.samples)]
        seed = derive_seed(self.seed, "synthesis-labels", number)
        replies = _ask(self.models.labels, repeated, labels, seed, "labels")
        chosen = [
            self.checks.choose(c, replies[i * labels.samples : (i + 1) * labels.samples], labels.min_agreement)
            for i, c in enumerate(asked)
        ]
        answered |= {c.number: c for c in chosen}
        scored = [(c, p) for c, p in zip(chosen, prompts, strict=True) if c.passed]
        if self.models.scorer is not None and self.config.filters.nll_tail > 0:
            conversations = [[*prompt, Message("assistant", c.answer or "")] for c, prompt in scored]
            for (candidate, _), nll in zip(scored, self.models.scorer.score(conversations), strict=True):
                answered[candidate.number] = replace(candidate, nll=nll)
        return [answered.get(c.number, c) for c in judged]

    def _label_prompt(self, candidate: Candidate) -> list[Message] | None:
        """The conversation with as many examples as fit; None where it is too long without any."""
        domain = self.domains[candidate.domain]

        def prompt(examples: Sequence[Seed]) -> list[Message]:
            return label_prompt(domain, candidate.text, candidate.system, examples)

        found = self._examples_for(domain, candidate.text)
        fitting = fit_examples(found, lambda examples: self._has_room("labels", prompt(examples)), farthest)
        return None if fitting is None else prompt(fitting)

    def _examples_for(self, domain: SeedDomain, text: str) -> list[Seed]:
        """The seeds most like the input, the nearest last, where the labeller sees it best."""
        wanted = self.config.labels.examples
        if wanted is None:
            wanted = 0 if self.config.label_model is not None else LABEL_EXAMPLES
        if wanted == 0:
            return []
        similarity: Matrix = self.seed_vectors[domain.name] @ self.vectors([text])[0]
        nearest = sorted(range(len(domain.seeds)), key=lambda i: (-similarity[i], i))[:wanted]
        return [domain.seeds[i] for i in reversed(nearest)]

    # --- the outcome ------------------------------------------------------------------------

    def finish(self, stopped: str) -> SynthesisOutcome:
        """Write rows and report; SynthesisError where there is no row."""
        final = {c.number: c for c in self.selected()}
        outcome = [final.get(c.number, c) for c in self.candidates]
        kept = [c for c in outcome if c.passed]
        write_text_atomic(self.directory / ROWS, rows_jsonl(kept, self.domains, self.identity))
        report = synthesis_report(
            config=self.config,
            guarded=self.guarded,
            candidates=outcome,
            target=self.target,
            stopped=stopped,
            identity=self.identity,
            parameters=(self.models.input_parameters, self.models.label_parameters),
            scored=self.models.scorer is not None,
            seconds=self.journal.seconds,
            seed=self.seed,
            notes=self.models.notes,
        )
        write_json_atomic(self.directory / REPORT, report)
        if not kept:
            raise SynthesisError(self._nothing_kept(outcome))
        return SynthesisOutcome(self.directory, len(kept), report)

    def _nothing_kept(self, outcome: Sequence[Candidate]) -> str:
        counts = count_reasons(outcome)
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))
        first = next(c for c in outcome if c.rejection is not None)
        assert first.rejection is not None
        shown = f"{first.text[:200]!r}" + (f" -> {first.answer[:200]!r}" if first.answer else "")
        return (
            f"synthesis: none of {len(outcome)} candidates was kept ({reasons}); the first was {shown}"
            f" ({first.rejection.reason}: {first.rejection.detail or 'see the report'}). Look at"
            f" {self.directory / JOURNAL}; fine-tune the writer or the labeller on the task, change the sampling, or mend"
            " format and filters"
        )


def rows_wanted(config: SynthesisConfig, num_seeds: int) -> int:
    """Return how many rows ``count`` or ``ratio`` ask for; at least one."""
    if config.count is not None:
        return config.count
    assert config.ratio is not None, "the recipe's validation asks for one of them"
    return max(1, round(config.ratio * num_seeds))


def _open_journal(directory: Path, identity: dict[str, Any], *, overwrite: bool) -> Journal:
    """Open the folder's journal, or begin one in a new or empty folder; OutputError for a foreign one."""
    if overwrite:
        for name in (JOURNAL, ROWS, REPORT, PAGE):
            (directory / name).unlink(missing_ok=True)
    path = directory / JOURNAL
    # A server's answers are kept beside the journal under what was asked, so they serve a new one too.
    foreign = directory.is_dir() and any(not p.name.endswith(SERVED_ANSWERS) for p in directory.iterdir())
    if not path.exists() and (foreign or directory.is_file()):
        raise OutputError(f"synthesis.dir={directory}: other files are here; name a new or empty folder")
    return Journal(path, identity)


def _ask(
    generator: Generator, prompts: Sequence[list[Message]], config: RolloutConfig, seed: int, section: str
) -> list[Completion]:
    """Raises DataError where a prompt does not fit the model, with the fields that make it shorter."""
    settings = SamplingSettings(config.max_new_tokens, config.temperature, config.top_p)
    try:
        return generator.generate(prompts, settings, seed=seed)
    except DataError as error:
        fields = "synthesis.human_examples" if section == "inputs" else "synthesis.labels.examples"
        raise DataError(
            f"synthesis.{section}: {error}. Show fewer examples ({fields}), or lower synthesis.{section}.max_new_tokens"
        ) from error


def _usage(completions: Sequence[Completion]) -> Usage:
    return Usage(sum(c.prompt_tokens or 0 for c in completions), sum(c.tokens or 0 for c in completions))
