"""The mixture of a stage: from the recipe's policy to the controller that the loop asks for documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.data.dataset import HELD_OUT_SEED, Dataset
from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.data.formatting import chat_format_for
from stillhouse.data.prepare import Prepared, count_domains
from stillhouse.evaluation.assess import teacher_scorer
from stillhouse.evaluation.held_out import stop_ids
from stillhouse.evaluation.nll import NLLReport, TokenScorer, measure_nll
from stillhouse.mixture.controller import DomainLosses, Measurements, MixtureController
from stillhouse.mixture.discrepancy import DiscrepancyStop
from stillhouse.mixture.interval import IntervalPlan, check_interval
from stillhouse.mixture.policy import DDKPolicy, Policy, StaticPolicy
from stillhouse.mixture.validation_budget import (
    TokenCosts,
    ValidationBudget,
    choose_validation_tokens,
    count_content_targets,
    predict_overhead,
    split_driving_documents,
    warn_of_thin_domains,
)
from stillhouse.mixture.weights import FloatArray, equal_weights, fixed_weights, proportional_weights
from stillhouse.recipe import (
    DDKMixture,
    DistillationObjective,
    DoReMiMixture,
    DoReMiProxyObjective,
    EqualMixture,
    FixedMixture,
    FollowingMixture,
    ProportionalMixture,
    Recipe,
    SequenceKDObjective,
    StageConfig,
    UnsmoothedDDKMixture,
)
from stillhouse.teachers.protocol import Teacher
from stillhouse.training.distributed import World
from stillhouse.training.doremi import read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class HeldOutSplit:
    """The dataset whose held-out documents only score; by stage, those that drive the weights and their cost.

    ``warnings`` name the domains whose weight is moved by noise.
    """

    dataset: Dataset
    driving: dict[str, DocumentSet] = field(default_factory=dict)
    budgets: dict[str, ValidationBudget] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What a person should know before the run: what is measured, at what cost, and the warnings."""
        costs = [
            f"mixture of {name}: {budget.tokens_per_domain} held-out tokens a domain drive the weights, measured "
            f"{budget.measurements} times: predicted overhead {budget.overhead:.1%} of training"
            for name, budget in self.budgets.items()
        ]
        return costs + [f"warning: {warning}" for warning in self.warnings]


def interval_steps_of(stage: StageConfig) -> int | None:
    """K, or None where the mixture is plain shuffled epochs."""
    return stage.mixture.interval_steps


def num_interval_steps(stage: StageConfig, documents: DocumentSet) -> int:
    """Steps of a stage whose plan is drawn by intervals: the first limit of the budget that is reached."""
    budget, batch_tokens = stage.optimisation.budget, stage.optimisation.batch_tokens
    limits = [] if budget.steps is None else [budget.steps]
    if budget.tokens is not None:
        limits.append(math.ceil(budget.tokens / batch_tokens))
    if budget.epochs is not None:
        limits.append(math.ceil(budget.epochs * int(documents.lengths.sum()) / batch_tokens))
    if isinstance(stage.mixture, FollowingMixture) and stage.mixture.max_intervals is not None:
        limits.append(stage.mixture.max_intervals * stage.mixture.interval_steps)
    return max(1, min(limits))


def check_mixtures(recipe: Recipe, dataset: Dataset, base_dir: Path, *, proxies_trained: bool) -> None:
    """Refuse mixtures that could not be drawn, before time is spent on models.

    Every interval must fit into its stage, and weights that never move must fit the domains that the
    stage trains on. ``proxies_trained``: a DoReMi proxy's weights must be there, unless an earlier stage
    of this recipe writes them. Stages without documents are skipped. Where the teacher writes the
    answers first, what depends on them is checked when they are there.

    Raises RecipeError or DataError that names the field.
    """
    for i, stage in enumerate(recipe.stages):
        documents, mixture = dataset.of_stage(stage.name).train.documents, stage.mixture
        interval_steps = interval_steps_of(stage)
        if interval_steps is None or not len(documents):
            continue
        where = f"stages.{i}.mixture"
        labelled = isinstance(stage.objective, SequenceKDObjective)
        if not (labelled and stage.optimisation.budget.epochs is not None):
            check_interval(interval_steps, num_interval_steps(stage, documents), where=f"{where}.interval_steps")
        if isinstance(mixture, FollowingMixture) or labelled:
            continue
        if isinstance(mixture, DoReMiMixture):
            promised = not proxies_trained or _is_written_before(recipe, i, mixture, base_dir)
            if promised and not (base_dir / Path(mixture.weights_from).expanduser()).exists():
                continue
        constant_weights(mixture, documents.domains, _tokens_by_domain(documents), base_dir, where=where)


def _is_written_before(recipe: Recipe, stage: int, mixture: DoReMiMixture, base_dir: Path) -> bool:
    """Whether an earlier stage of the same run is the proxy whose weights a stage waits for."""
    file = base_dir / Path(mixture.weights_from).expanduser()
    proxies = any(isinstance(e.objective, DoReMiProxyObjective) for e in recipe.stages[:stage])
    return proxies and base_dir / recipe.output.dir in (file, file.parent)


def _tokens_by_domain(documents: DocumentSet) -> Int64Array:
    """Tokens of each domain, prompts included, int64 [D]."""
    counts = np.zeros(len(documents.domains), np.int64)
    np.add.at(counts, documents.domain_ids, documents.lengths)
    return counts


def split_held_out(
    recipe: Recipe,
    dataset: Dataset,
    student_parameters: int,
    teacher_parameters: int | None,
    *,
    tokenizer: PreTrainedTokenizerFast,
    base_dir: Path,
) -> HeldOutSplit:
    """Take the validation rows that drive the weights of any stage out of those that score.

    As many as cost at most 3 % of a stage's training time, unless the recipe says how many. They do not
    depend on the recipe's seed, so runs with other seeds are scored on the same rows. Stages without
    documents take none. ``tokenizer`` (the student's) and ``base_dir`` say which tokens end a turn.

    Raises RecipeError or DataError where too few are left.
    """
    validation = dataset.validation.documents
    following = [
        stage
        for stage in recipe.stages
        if isinstance(stage.mixture, FollowingMixture) and len(dataset.of_stage(stage.name).train.documents)
    ]
    if not following:
        return HeldOutSplit(dataset)
    assert teacher_parameters is not None, "the recipe's validation asks for a teacher"
    ends = stop_ids(tokenizer, chat_format_for(dataset.validation.rows, tokenizer, recipe.data, base_dir))
    scoring = np.arange(len(validation), dtype=np.int64)
    driving, budgets, warnings = {}, {}, []
    for stage in following:
        train = dataset.of_stage(stage.name).train.documents
        budget, indices = _driving_documents(recipe, stage, train, validation, student_parameters, teacher_parameters)
        chosen = validation.select(indices)
        driving[stage.name], budgets[stage.name] = chosen, budget
        scoring = np.setdiff1d(scoring, indices)
        targets, active = count_content_targets(chosen, ends), _tokens_by_domain(train) > 0
        warnings.append(warn_of_thin_domains(chosen, targets, active=active, where=f"mixture of {stage.name}"))
    scored = _only(dataset.validation, scoring)
    test = scored if dataset.test is dataset.validation else dataset.test
    dataset = replace(dataset, validation=scored, test=test)
    return HeldOutSplit(dataset, driving, budgets, tuple(w for w in warnings if w is not None))


def _driving_documents(
    recipe: Recipe,
    stage: StageConfig,
    train: DocumentSet,
    validation: DocumentSet,
    student_parameters: int,
    teacher_parameters: int,
) -> tuple[ValidationBudget, Int64Array]:
    """What one stage's measurements cost, and the validation documents that they read."""
    mixture = stage.mixture
    assert isinstance(mixture, FollowingMixture)
    # Targets that are read from a cache cost a step no pass of the teacher.
    live = recipe.teacher is not None and recipe.teacher.source == "live"
    distilled = live and isinstance(stage.objective, DistillationObjective)
    costs = TokenCosts.from_parameters(student_parameters, teacher_parameters, distilled=distilled)
    active = _tokens_by_domain(train) > 0
    num_steps = num_interval_steps(stage, train)
    shape = {
        "num_domains": int(active.sum()),
        "interval_steps": min(mixture.interval_steps, num_steps),
        "num_steps": num_steps,
        "tokens_per_step": stage.optimisation.batch_tokens,
    }
    if mixture.validation_tokens_per_domain is None:
        held = np.bincount(validation.domain_ids, weights=validation.lengths, minlength=len(validation.domains))
        budget = choose_validation_tokens(costs, **shape, available_tokens=int(held.max()))
    else:
        budget = predict_overhead(costs, mixture.validation_tokens_per_domain, **shape)
    driving, _ = split_driving_documents(validation, budget.tokens_per_domain, seed=HELD_OUT_SEED, active=active)
    # Whole rows are drawn, so what is read is not quite what was asked for.
    read = round(int(validation.lengths[driving].sum()) / shape["num_domains"])
    return predict_overhead(costs, read, **shape), driving


def _only(prepared: Prepared, indices: Int64Array) -> Prepared:
    """The documents at ``indices``, with their counts and without the rows of the others."""
    dropped = np.setdiff1d(prepared.documents.rows, prepared.documents.rows[indices])
    kept = np.setdiff1d(np.arange(len(prepared.rows), dtype=np.int64), dropped)
    documents = prepared.documents.select(indices)
    documents = replace(documents, rows=np.searchsorted(kept, documents.rows))
    report = replace(
        prepared.report,
        documents=len(documents),
        tokens=len(documents.tokens),
        targets=int(documents.mask.sum()),
        domains=count_domains(documents),
    )
    return replace(prepared, documents=documents, rows=[prepared.rows[i] for i in kept], report=report)


def build_mixture(
    stage: StageConfig,
    documents: DocumentSet,
    num_steps: int,
    *,
    seed: int,
    base_dir: Path,
    driving: DocumentSet | None,
    student_score: TokenScorer,
    load_teacher: Callable[[], Teacher],
    end_of_turn_ids: frozenset[int],
    world: World,
) -> MixtureController | None:
    """Return the controller of a stage that draws by intervals, None for plain epochs.

    Raises RecipeError for weights that do not fit the domains or an interval longer than the run.
    """
    interval_steps = interval_steps_of(stage)
    if interval_steps is None:
        return None
    plan = IntervalPlan(
        documents,
        seed=seed,
        interval_steps=interval_steps,
        num_steps=num_steps,
        tokens_per_step=stage.optimisation.batch_tokens,
    )
    policy = _policy(stage, plan, base_dir)
    if driving is None:
        return MixtureController(policy, plan)
    measured_documents = driving

    def losses(score: TokenScorer) -> DomainLosses:
        report = measure_nll(
            score,
            measured_documents,
            end_of_turn_ids=end_of_turn_ids,
            byte_counts=None,
            micro_batch_tokens=stage.optimisation.micro_batch_tokens,
            device=world.device,
        )
        return _losses(report, plan.domains)

    measurements = Measurements(
        student=lambda: losses(student_score),
        teacher=lambda: losses(teacher_scorer(load_teacher(), stage.optimisation.head_chunk)),
    )
    mixture = stage.mixture
    assert isinstance(mixture, FollowingMixture)
    stop = None if mixture.stop_discrepancy is None else DiscrepancyStop(mixture.stop_discrepancy)
    return MixtureController(policy, plan, measurements=measurements, stop=stop)


def _policy(stage: StageConfig, plan: IntervalPlan, base_dir: Path) -> Policy:
    domains, tokens, mixture = plan.domains, plan.domain_tokens, stage.mixture
    if isinstance(mixture, DDKMixture):
        return DDKPolicy(domains, tokens, alpha=mixture.alpha)
    if isinstance(mixture, UnsmoothedDDKMixture):
        return DDKPolicy(domains, tokens, smoothed=False)
    return StaticPolicy(mixture.type, domains, constant_weights(mixture, domains, tokens, base_dir))


def constant_weights(
    mixture: ProportionalMixture | EqualMixture | FixedMixture | DoReMiMixture,
    domains: Sequence[str],
    tokens: Int64Array,
    base_dir: Path,
    *,
    where: str = "mixture",
) -> FloatArray:
    """The weights of a mixture that never moves, float64 [D]; ``tokens`` int64 [D] of the training set.

    ``where`` is the mixture's field. Raises RecipeError where the recipe or the proxy's file does not fit the domains.
    """
    match mixture:
        case ProportionalMixture():
            return proportional_weights(domains, tokens)
        case EqualMixture():
            return equal_weights(domains, tokens)
        case FixedMixture(weights=weights):
            return fixed_weights(weights, domains, tokens, where=f"{where}.weights")
        case DoReMiMixture(weights_from=path):
            source = f"{where}.weights_from={path}"
            return fixed_weights(read_weights(path, base_dir), domains, tokens, where=source)


def _losses(report: NLLReport, domains: tuple[str, ...]) -> DomainLosses:
    """NLL and tokens in the order of the plan's domains; a domain that was not measured counts none."""
    found = [report.domains.get(name) for name in domains]
    return DomainLosses(
        nll=np.array([0.0 if d is None else d.nll for d in found]),
        counts=np.array([0 if d is None else d.content_tokens for d in found], dtype=np.int64),
    )
