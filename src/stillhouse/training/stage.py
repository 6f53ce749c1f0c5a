"""Puts a stage together: student, teacher, plan, optimizer, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.dataset import Dataset
from stillhouse.data.document import DocumentSet
from stillhouse.data.formatting import chat_format_for
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.evaluation.held_out import stop_ids
from stillhouse.evaluation.nll import NLLReport, TokenScorer, measure_nll
from stillhouse.mixture.controller import MixtureController
from stillhouse.mixture.plan import Plan
from stillhouse.models.head import verify_head, verify_isolation
from stillhouse.models.load import load_model
from stillhouse.models.lora import merge_lora
from stillhouse.models.placement import place_model
from stillhouse.models.save import save_model
from stillhouse.recipe import KDObjective, Recipe, SFTObjective, StageConfig
from stillhouse.rollout.mode import evaluating
from stillhouse.run_directory import RunDirectory
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Teacher
from stillhouse.training.cached import cached_teacher, teacher_dtype, uses_cache
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.distributed import World
from stillhouse.training.loop import Cadence, LoopState, StageLoop
from stillhouse.training.metrics import MetricsLog, forget_after, open_tracker
from stillhouse.training.mixing import build_mixture, interval_steps_of, num_interval_steps
from stillhouse.training.models import Student
from stillhouse.training.precision import MasterWeights, ShardedWeights, Weights, resolve_dtype
from stillhouse.training.progress import open_progress
from stillhouse.training.step import TrainStep
from stillhouse.training.student import DistillationModule, shard_student

_EVALUATIONS_PER_RUN = 10


@dataclass
class BuiltStage:
    """A stage that can be trained, and the way to its saved model."""

    loop: StageLoop
    weights: Weights
    dtype: torch.dtype
    resumed_from: int | None
    early_stopping: bool

    def close(self) -> None:
        self.loop.progress.close()
        if self.loop.metrics is not None:
            self.loop.metrics.close()

    def save_model(self, directory: RunDirectory, student: Student) -> None:
        """Write ``model/``: the best weights under early stopping, else the last. Every rank takes part."""
        state = self.loop.state
        if self.early_stopping and state.best_step is not None and state.best_step != state.step:
            self.loop.checkpoints.load_weights(state.best_step, self.weights)
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
    recipe: Recipe,
    base_dir: Path,
    directory: RunDirectory,
    student: Student,
    dataset: Dataset,
    world: World,
    console: Console | None,
    driving: DocumentSet | None = None,
) -> BuiltStage:
    """Load and wrap the student, start the teacher, and go back to the last checkpoint if there is one.

    ``driving``: held-out documents that the mixture follows, if it follows any.
    """
    stage = recipe.stages[0]
    optimisation = stage.optimisation
    dtype = resolve_dtype(optimisation.precision, world.device)
    module = _student_module(student, stage, world)
    weights: Weights
    if world.is_distributed and recipe.parallel.strategy == "fsdp":
        shard_student(module, dtype, cpu_offload=recipe.parallel.cpu_offload)
        weights = ShardedWeights(module)
    else:
        weights = MasterWeights(module, dtype)
    documents = dataset.train.documents
    ends = _end_ids(recipe, base_dir, student, dataset)
    epochs = Plan(documents.lengths, batch_tokens=optimisation.batch_tokens, seed=recipe.seed)
    drawn = interval_steps_of(stage) is not None
    num_steps = num_interval_steps(stage, documents) if drawn else epochs.num_steps_for(optimisation.budget)
    teacher = _teacher(recipe, stage, base_dir, student, documents, world)
    train_step = TrainStep(
        module,
        weights,
        teacher=teacher,
        terms=ObjectiveTerms.from_config(stage.objective, student.vocab_size),
        config=optimisation,
        domains=documents.domains,
        world=world,
    )
    checkpoints = Checkpoints(directory / "checkpoints" / stage.name, world, keep=recipe.checkpoints.keep)
    score = _scorer(module, student)
    mixture = build_mixture(
        recipe,
        documents,
        num_steps,
        driving=driving,
        student_score=score,
        load_teacher=lambda: (
            teacher if isinstance(teacher, LiveTeacher) else live_teacher(recipe, base_dir, student, world)
        ),
        end_of_turn_ids=ends,
        world=world,
    )
    state, resumed_from = _resume(checkpoints, train_step, mixture)
    metrics_path = directory / "metrics.jsonl"
    if world.is_main:
        forget_after(metrics_path, state.step if resumed_from is not None else -1)
    loop = StageLoop(
        stage=stage,
        num_steps=num_steps,
        plan=mixture or epochs,
        documents=documents,
        train_step=train_step,
        evaluate=_validator(recipe, module, score, ends, dataset, world),
        checkpoints=checkpoints,
        metrics=_metrics(recipe, directory, metrics_path) if world.is_main else None,
        progress=open_progress(console, stage.name, state.step),
        cadence=_cadence(recipe, num_steps),
        world=world,
        seed=recipe.seed,
        pad_id=_pad_id(student),
        mixture=mixture,
        state=state,
    )
    return BuiltStage(loop, weights, dtype, resumed_from, recipe.evaluation.early_stopping_patience is not None)


def _student_module(student: Student, stage: StageConfig, world: World) -> DistillationModule:
    optimisation = stage.optimisation
    model = student.load(torch.float32)
    verify_head(model)
    if optimisation.layout == "packed":
        verify_isolation(model)
    if optimisation.gradient_checkpointing:
        # transformers renamed the method in 5.23.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.train()
    module = DistillationModule(model, chunk=optimisation.head_chunk, compiled=optimisation.compile_head)
    return module.to(world.device)


def _teacher(
    recipe: Recipe, stage: StageConfig, base_dir: Path, student: Student, documents: DocumentSet, world: World
) -> Teacher | CachedTeacher | None:
    """The teacher of a KD stage, in memory or from its cache; SFT does not pay for one."""
    if not isinstance(stage.objective, KDObjective):
        return None
    config = recipe.teacher
    assert config is not None, "the recipe's validation asks for one"
    if uses_cache(recipe):
        return cached_teacher(recipe, documents, student.vocab_size, base_dir)
    return live_teacher(recipe, base_dir, student, world)


def live_teacher(recipe: Recipe, base_dir: Path, student: Student, world: World) -> LiveTeacher:
    """Load the recipe's teacher into its place."""
    config = recipe.teacher
    assert config is not None, "the recipe's validation asks for one"
    model = load_model(config, dtype=teacher_dtype(recipe, config, world.device), base_dir=base_dir)
    verify_head(model)
    if config.quantization == "none":  # 4-bit weights were loaded into their place
        model = place_model(model, config.placement, world.device)
    return LiveTeacher(model, vocabulary_map=student.vocabulary_map, vocab_size=student.vocab_size)


def _resume(
    checkpoints: Checkpoints, train_step: TrainStep, mixture: MixtureController | None
) -> tuple[LoopState, int | None]:
    steps = checkpoints.steps()
    if not steps:
        return LoopState(), None
    saved = checkpoints.read_state(steps[-1])
    checkpoints.load(steps[-1], train_step.weights, train_step.optimizer)
    if mixture is not None:
        mixture.load_state_dict(saved["mixture"])
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
    recipe: Recipe,
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
                micro_batch_tokens=recipe.stages[0].optimisation.micro_batch_tokens,
                device=world.device,
            )

    return evaluate


def _cadence(recipe: Recipe, num_steps: int) -> Cadence:
    evaluation, checkpoints = recipe.evaluation, recipe.checkpoints
    every = evaluation.every_steps or max(1, math.ceil(num_steps / _EVALUATIONS_PER_RUN))
    return Cadence(every, checkpoints.every_steps or every, evaluation.early_stopping_patience)


def _metrics(recipe: Recipe, directory: RunDirectory, path: Path) -> MetricsLog:
    tracker = open_tracker(
        recipe.output.tracker, directory / "tracker", directory.path.name, recipe.model_dump(mode="json")
    )
    return MetricsLog(path, tracker)


def _pad_id(student: Student) -> int:
    """Padding is never a target and never seen, so any id serves where the tokenizer has none."""
    return int(student.tokenizer.pad_token_id or 0)


def _load_exact(model: torch.nn.Module, exact: dict[str, Tensor]) -> None:
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(exact[f"model.{name}"])
