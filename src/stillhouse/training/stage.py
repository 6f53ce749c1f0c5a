"""Puts a stage together: student, teacher, plan, optimizer, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.dataset import Dataset
from stillhouse.data.document import DocumentSet
from stillhouse.data.formatting import chat_format_for
from stillhouse.data.prepare import read_template
from stillhouse.divergence.cross_tokenizer.objective import CrossTokenizerTerms
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.evaluation.held_out import stop_ids
from stillhouse.evaluation.nll import NLLReport, TokenScorer, measure_nll
from stillhouse.mixture.controller import MixtureController
from stillhouse.mixture.plan import Plan
from stillhouse.models.head import verify_head, verify_isolation
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.lora import merge_lora
from stillhouse.models.placement import place_model
from stillhouse.models.save import save_model
from stillhouse.recipe import (
    CrossTokenizerObjective,
    DistillationObjective,
    GKDObjective,
    Recipe,
    SequenceKDObjective,
    SFTObjective,
    StageConfig,
    TEDObjective,
)
from stillhouse.rollout.generator import Generator, ModelGenerator
from stillhouse.rollout.mode import evaluating
from stillhouse.run_directory import RunDirectory
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.teachers.aligned import AlignedTeacher
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Teacher
from stillhouse.teachers.server_generation import ServedGenerator
from stillhouse.training.answers import refuse_plain_text
from stillhouse.training.cached import teacher_dtype, uses_cache
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.context import StageContext
from stillhouse.training.cross_tokenizer import aligned_teacher
from stillhouse.training.distributed import World
from stillhouse.training.loop import Cadence, LoopState, StageLoop
from stillhouse.training.methods import alignment, filter_training, proxy, teacher_shape
from stillhouse.training.metrics import MetricsLog, forget_after, open_tracker
from stillhouse.training.mixing import build_mixture, interval_steps_of, num_interval_steps
from stillhouse.training.models import Student
from stillhouse.training.on_policy import OnPolicy
from stillhouse.training.precision import MasterWeights, ShardedWeights, Weights, resolve_dtype
from stillhouse.training.progress import open_progress
from stillhouse.training.sequence_labels import journal_path, label_rows, prepare_labelled
from stillhouse.training.served import open_server
from stillhouse.training.stages import FinishedStage
from stillhouse.training.step import TrainStep
from stillhouse.training.student import DistillationModule, shard_student
from stillhouse.training.ted import FilterTraining, HiddenAlignment, HiddenTeacher, teacher_filters

_EVALUATIONS_PER_RUN = 10
MODEL_PREFIX = "model."
"""Of the student's own parameters among those of the wrapped module."""


@dataclass
class BuiltStage:
    """A stage that can be trained, and the way to its saved model."""

    loop: StageLoop
    weights: Weights
    dtype: torch.dtype
    resumed_from: int | None
    early_stopping: bool
    filters: FilterTraining | None = None

    @property
    def method_result(self) -> dict[str, Any]:
        """What only this stage's method found out, under its name, for ``result.json``."""
        proxy = self.loop.train_step.proxy
        if proxy is not None:
            return {"doremi": proxy.result()}
        return {} if self.filters is None else {"ted": self.filters.report()}

    def close(self) -> None:
        self.loop.progress.close()
        if self.loop.metrics is not None:
            self.loop.metrics.close()

    @property
    def kept_step(self) -> int:
        """Whose weights go on: the best under early stopping, else the last."""
        state = self.loop.state
        return state.best_step if self.early_stopping and state.best_step is not None else state.step

    def save_model(self, directory: RunDirectory, student: Student) -> None:
        """Write ``model/`` from the weights that go on. Every rank takes part."""
        if self.kept_step != self.loop.state.step:
            self.loop.checkpoints.load_weights(self.kept_step, self.weights)
        exact = self.weights.exact_state()
        if self.loop.world.is_main:
            model = student.load(torch.float32)
            _load_exact(model, exact)
            if student.recipe.student.lora is not None:
                model = merge_lora(model)
            save = student.recipe.output.save_dtype
            dtype = self.dtype if save == "auto" else getattr(torch, save)
            save_model(model, student.tokenizer, directory / "model", dtype=dtype, overwrite=True)
        self.loop.world.barrier()


def build_stage(
    context: StageContext,
    stage: StageConfig,
    dataset: Dataset,
    *,
    driving: DocumentSet | None = None,
    earlier: Sequence[FinishedStage] = (),
) -> BuiltStage:
    """Load and wrap the student, start the teacher, and go back to the last checkpoint if there is one.

    ``dataset``: this stage's. ``driving``: held-out documents that the mixture follows, if it follows
    any. ``earlier``: the finished stages, from the last of which the weights are taken.
    """
    recipe, base_dir, world = context.recipe, context.base_dir, context.world
    student = context.student
    optimisation = stage.optimisation
    dtype = resolve_dtype(optimisation.precision, world.device)
    module = _student_module(context, stage)
    weights = _wrap(context, module, dtype)
    documents = dataset.train.documents
    ends = _end_ids(recipe, base_dir, student, dataset)
    epochs = Plan(documents.lengths, batch_tokens=optimisation.batch_tokens, seed=recipe.seed)
    drawn = interval_steps_of(stage) is not None
    num_steps = num_interval_steps(stage, documents) if drawn else epochs.num_steps_for(optimisation.budget)
    teacher = _teacher(context, stage, dataset, module.alignment)
    score = _scorer(module, student)
    train_step = TrainStep(
        module,
        weights,
        teacher=teacher,
        terms=_terms(stage, student),
        config=optimisation,
        domains=documents.domains,
        world=world,
        proxy=proxy(context, stage, documents, score),
        filter_learning_rate=getattr(stage.objective, "filter_learning_rate", None),
    )
    checkpoints = context.checkpoints(stage.name)
    mixture = build_mixture(
        stage,
        documents,
        num_steps,
        seed=recipe.seed,
        base_dir=base_dir,
        driving=driving,
        student_score=score,
        load_teacher=lambda: _live(teacher) or live_teacher(recipe, base_dir, student, world),
        end_of_turn_ids=ends,
        world=world,
    )
    rollouts = _rollouts(context, stage, module, dataset, ends)
    state, resumed_from = _resume(checkpoints, train_step, mixture, rollouts)
    if resumed_from is None:
        _take_over(context, stage, train_step, earlier)
    filters = filter_training(context, stage, documents, checkpoints)
    if filters is not None:
        assert isinstance(teacher, HiddenTeacher)
        filters.run(module, train_step.weights, teacher, resumed=resumed_from is not None)
    _forget_lost_steps(context, stage, -1 if resumed_from is None else state.step, earlier)
    loop = StageLoop(
        stage=stage,
        num_steps=num_steps,
        plan=mixture or epochs,
        documents=documents,
        train_step=train_step,
        evaluate=_validator(stage, module, score, ends, dataset, world),
        checkpoints=checkpoints,
        metrics=_metrics(context, sum(e.state.step for e in earlier)) if world.is_main else None,
        progress=open_progress(context.console, stage.name, state.step),
        cadence=_cadence(recipe, num_steps),
        world=world,
        seed=recipe.seed,
        pad_id=student.pad_id,
        mixture=mixture,
        rollouts=rollouts,
        state=state,
    )
    patient = recipe.evaluation.early_stopping_patience is not None
    return BuiltStage(loop, weights, dtype, resumed_from, patient, filters)


def _forget_lost_steps(context: StageContext, stage: StageConfig, last: int, earlier: Sequence[FinishedStage]) -> None:
    """Drop what ``metrics.jsonl`` has of steps after the last checkpoint: they are taken again."""
    if context.world.is_main:
        forget_after(context.directory / "metrics.jsonl", stage.name, last, earlier=[e.name for e in earlier])


def _wrap(context: StageContext, module: DistillationModule, dtype: torch.dtype) -> Weights:
    """Float32 masters on every rank, or shards of them under FSDP2."""
    parallel = context.recipe.parallel
    if context.world.is_distributed and parallel.strategy == "fsdp":
        shard_student(module, dtype, cpu_offload=parallel.cpu_offload)
        return ShardedWeights(module)
    return MasterWeights(module, dtype)


def _student_module(context: StageContext, stage: StageConfig) -> DistillationModule:
    optimisation = stage.optimisation
    model = context.student.load(torch.float32)
    verify_head(model)
    if optimisation.layout == "packed":
        verify_isolation(model)
    if optimisation.gradient_checkpointing:
        # transformers renamed the method in 5.23.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.train()
    module = DistillationModule(
        model,
        chunk=optimisation.head_chunk,
        compiled=optimisation.compile_head,
        alignment=alignment(context, stage, model),
    )
    return module.to(context.world.device)


def _terms(stage: StageConfig, student: Student) -> ObjectiveTerms:
    if isinstance(stage.objective, CrossTokenizerObjective):
        return CrossTokenizerTerms.of(stage.objective, student.vocab_size)
    return ObjectiveTerms.from_config(stage.objective, student.vocab_size)


def _teacher(
    context: StageContext, stage: StageConfig, dataset: Dataset, alignment: HiddenAlignment | None
) -> Teacher | CachedTeacher | AlignedTeacher | HiddenTeacher | None:
    """The teacher of a KD stage, in memory or from its cache; SFT does not pay for one."""
    recipe, base_dir, student = context.recipe, context.base_dir, context.student
    if isinstance(stage.objective, CrossTokenizerObjective):
        return aligned_teacher(recipe, base_dir, student, dataset.train, context.world, context.saying(stage))
    if not isinstance(stage.objective, DistillationObjective):
        return None
    config = recipe.teacher
    assert config is not None, "the recipe's validation asks for one"
    if uses_cache(recipe):
        assert context.targets is not None, "the run opens the cache before its stages"
        return CachedTeacher(context.targets, dataset.train.documents)
    teacher = live_teacher(recipe, base_dir, student, context.world)
    if alignment is None:
        return teacher
    assert isinstance(stage.objective, TEDObjective)
    filters = teacher_filters(stage.objective, alignment, teacher_shape(context), seed=recipe.seed)
    return HiddenTeacher(teacher, alignment, filters.to(context.world.device))


def _live(teacher: Teacher | CachedTeacher | AlignedTeacher | HiddenTeacher | None) -> LiveTeacher | None:
    """The teacher in memory that a stage has already, for the measurements of a mixture."""
    found = teacher.teacher if isinstance(teacher, HiddenTeacher) else teacher
    return found if isinstance(found, LiveTeacher) else None


def live_teacher(recipe: Recipe, base_dir: Path, student: Student, world: World) -> LiveTeacher:
    """Load the recipe's teacher into its place."""
    config = recipe.teacher
    assert config is not None, "the recipe's validation asks for one"
    model = load_model(config, dtype=teacher_dtype(recipe, config, world.device), base_dir=base_dir)
    verify_head(model)
    if config.quantization == "none":  # 4-bit weights were loaded into their place
        model = place_model(model, config.placement, world.device)
    return LiveTeacher(model, vocabulary_map=student.vocabulary_map, vocab_size=student.vocab_size)


def label_with_teacher(
    context: StageContext, stage: StageConfig, objective: SequenceKDObjective, dataset: Dataset
) -> Dataset:
    """The stage's rows with the teacher's answers in place of the data's."""
    recipe, base_dir = context.recipe, context.base_dir
    refuse_plain_text(dataset.train.rows, stage)
    rollout = objective.rollout
    connection = ExitStack()

    def load_generator() -> Generator:
        config = recipe.teacher
        assert config is not None, "the recipe's validation asks for one"
        if config.source == "server":
            client = connection.enter_context(open_server(config, processes=context.world.size))
            return ServedGenerator(client, journal=journal_path(folder, context.world.rank))
        dtype = teacher_dtype(recipe, config, context.world.device)
        model = load_model(config, dtype=dtype, base_dir=base_dir)
        if config.quantization == "none":
            model = place_model(model, config.placement, context.world.device)
        # A template that is written for the student's tokens means nothing to another tokenizer.
        other = context.student.other_tokenizer is not None
        template = None if other else read_template(recipe.data.chat_template, base_dir)
        tokenizer = load_tokenizer(config, base_dir=base_dir)
        return ModelGenerator(model, tokenizer, template=template, batch_tokens=rollout.batch_tokens)

    say = context.saying(stage)
    folder = context.directory / "generated" / stage.name
    with connection:
        rows = label_rows(
            dataset.train.rows, load_generator, rollout, folder, seed=recipe.seed, world=context.world, say=say
        )
    tokenizer = context.student.tokenizer
    return replace(dataset, train=prepare_labelled(rows, dataset.train, tokenizer, recipe.data, base_dir))


def _take_over(
    context: StageContext, stage: StageConfig, train_step: TrainStep, earlier: Sequence[FinishedStage]
) -> None:
    """Start from the weights of the last stage that was not skipped, and from its moments if asked."""
    trained = [e for e in earlier if e.kept_step is not None]
    if not trained:
        return
    last = trained[-1]
    assert last.kept_step is not None
    checkpoints = context.checkpoints(last.name)
    checkpoints.read_state(last.kept_step)  # refuses damaged files by name
    # TED's filters belong to their stage alone; the next one's start afresh.
    if stage.optimizer == "continued":
        checkpoints.load(last.kept_step, train_step.weights, train_step.optimizer, prefix=MODEL_PREFIX)
    else:
        checkpoints.load_weights(last.kept_step, train_step.weights, prefix=MODEL_PREFIX)


def _rollouts(
    context: StageContext, stage: StageConfig, module: DistillationModule, dataset: Dataset, ends: frozenset[int]
) -> OnPolicy | None:
    """The student's own answers, where the objective trains on them."""
    objective = stage.objective
    if not isinstance(objective, GKDObjective) or objective.on_policy_fraction == 0:
        return None
    refuse_plain_text(dataset.train.rows, stage)
    student = context.student
    return OnPolicy(
        module,
        student.tokenizer,
        dataset.train.documents,
        objective,
        stop_ids=ends,
        seed=context.recipe.seed,
        world=context.world,
        sharded=context.world.is_distributed and context.recipe.parallel.strategy == "fsdp",
    )


def _resume(
    checkpoints: Checkpoints, train_step: TrainStep, mixture: MixtureController | None, rollouts: OnPolicy | None
) -> tuple[LoopState, int | None]:
    steps = checkpoints.steps()
    if not steps:
        return LoopState(), None
    saved = checkpoints.read_state(steps[-1])
    checkpoints.load(steps[-1], train_step.weights, train_step.optimizer)
    if mixture is not None:
        mixture.load_state_dict(saved["mixture"])
    if rollouts is not None:
        rollouts.load_state_dict(saved["rollouts"])
    if train_step.proxy is not None:
        train_step.proxy.load_state_dict(saved["proxy"])
    fields = {name: saved[name] for name in LoopState.__dataclass_fields__}
    return LoopState(**fields), steps[-1]


def _scorer(module: DistillationModule, student: Student) -> TokenScorer:
    """NLL of a batch's targets by the wrapped student, in evaluation mode."""
    terms = ObjectiveTerms.from_config(SFTObjective(type="sft"), student.vocab_size)

    def score(batch: Batch) -> Tensor:
        with evaluating(module):
            ce: Tensor = module(batch, None, terms, 1.0)[1].ce
        return ce

    return score


def _end_ids(recipe: Recipe, base_dir: Path, student: Student, dataset: Dataset) -> frozenset[int]:
    """The ids that end a turn, which the headline leaves out."""
    return stop_ids(
        student.tokenizer, chat_format_for(dataset.validation.rows, student.tokenizer, recipe.data, base_dir)
    )


def _validator(
    stage: StageConfig,
    module: DistillationModule,
    score: TokenScorer,
    ends: frozenset[int],
    dataset: Dataset,
    world: World,
) -> Callable[[], NLLReport]:
    def evaluate() -> NLLReport:
        with evaluating(module):
            return measure_nll(
                score,
                dataset.validation.documents,
                end_of_turn_ids=ends,
                byte_counts=None,
                micro_batch_tokens=stage.optimisation.micro_batch_tokens,
                device=world.device,
            )

    return evaluate


def _cadence(recipe: Recipe, num_steps: int) -> Cadence:
    evaluation, checkpoints = recipe.evaluation, recipe.checkpoints
    every = evaluation.every_steps or max(1, math.ceil(num_steps / _EVALUATIONS_PER_RUN))
    return Cadence(every, checkpoints.every_steps or every, evaluation.early_stopping_patience)


def _metrics(context: StageContext, first_step: int) -> MetricsLog:
    recipe, directory = context.recipe, context.directory
    tracker = open_tracker(
        recipe.output.tracker, directory / "tracker", directory.path.name, recipe.model_dump(mode="json")
    )
    return MetricsLog(directory / "metrics.jsonl", tracker, first_step=first_step)


def _load_exact(model: torch.nn.Module, exact: dict[str, Tensor]) -> None:
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(exact[f"{MODEL_PREFIX}{name}"])
