"""What must be looked at before money is spent."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from stillhouse.data.dataset import Dataset
from stillhouse.divergence.rows import compiler_available
from stillhouse.errors import ModelError
from stillhouse.mixture.plan import Plan
from stillhouse.models.load import load_tokenizer
from stillhouse.models.parameters import count_parameters
from stillhouse.models.shrink.vocabulary import tokens_to_keep
from stillhouse.models.tokenizers import vocabulary_size
from stillhouse.preflight.estimate import Estimate, ModelSize, estimate, in_sequence, measure_flops
from stillhouse.recipe import (
    CrossTokenizerObjective,
    DistillationObjective,
    DoReMiMixture,
    DoReMiProxyObjective,
    GKDObjective,
    ModelConfig,
    PretrainedStudent,
    PrunedStudent,
    Recipe,
    SequenceKDObjective,
    StageConfig,
    TEDObjective,
)
from stillhouse.run_directory import RunDirectory
from stillhouse.training.cached import cache_lack, weights_are_here
from stillhouse.training.mixing import check_mixtures, interval_steps_of, num_interval_steps, split_held_out
from stillhouse.training.models import load_data, model_configuration, parameters_of, student_source, teacher_parameters
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.served import refuse_trimmed
from stillhouse.training.tokenizer_relation import finer_pieces, relate_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

_GIB = 1024**3


@dataclass(frozen=True)
class PreflightReport:
    """The result of all checks; a failed check raised instead."""

    data: dict[str, Any]
    student: ModelSize
    teacher: ModelSize | None
    dtype: str
    estimate: Estimate
    memory_available: int
    disk_available: int
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people, a line a fact."""
        found = []
        for split, report in self.data.items():
            found.append(
                f"{split}: {report['documents']} documents, {report['tokens']} tokens, {report['targets']} targets"
            )
            left_out = {k: v for k, v in {**report["rejected"], "truncated": report["truncated"]}.items() if v}
            left_out |= {k: report[k] for k in ("duplicates", "leaked_into_evaluation") if report[k]}
            if left_out:
                found.append(f"  {', '.join(f'{name} {count}' for name, count in left_out.items())}")
        sizes = f"student {self.student.parameters / 1e6:.1f}M parameters"
        if self.teacher is not None:
            sizes += f", teacher {self.teacher.parameters / 1e6:.1f}M"
        guess = self.estimate
        found.append(f"{sizes}; compute in {self.dtype}")
        found.append(
            f"{guess.steps} steps on {guess.training_tokens} tokens: about {_duration(guess.seconds)} on one process, "
            f"{guess.memory_bytes / _GIB:.1f} GiB of memory ({self.memory_available / _GIB:.1f} free), "
            f"{guess.disk_bytes / _GIB:.1f} GiB of disk ({self.disk_available / _GIB:.1f} free)"
        )
        return found + [f"warning: {warning}" for warning in self.warnings]


def preflight(recipe: Recipe, *, base_dir: Path) -> PreflightReport:
    """Check files, columns, loss masks, vocabularies, the place for the output, memory, disk and time.

    Reads all data and the models' configurations; weights only to recognise the teacher of a cache. Raises a
    StillhouseError that names the field or the file for anything that would stop the run.
    """
    output = base_dir / recipe.output.dir
    RunDirectory.check(recipe, output, overwrite=True)
    source = student_source(recipe)
    tokenizer = load_tokenizer(source, base_dir=base_dir)
    trimmed = _check_vocabularies(recipe, source, base_dir)
    dataset = load_data(recipe, tokenizer, base_dir)
    finer = finer_pieces(*trimmed, dataset.train.documents) if trimmed else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(recipe.stages[0].optimisation.precision, device)
    student = _student_size(recipe, source, tokenizer, dataset, base_dir)
    lack = None if _trims(recipe) else cache_lack(recipe, tokenizer, dataset, base_dir)
    teacher = None
    if recipe.teacher is not None and recipe.teacher.source == "live":  # another one takes nothing here
        teacher = _size(recipe.teacher, base_dir)
    check_mixtures(recipe, dataset, base_dir, proxies_trained=False)
    split = split_held_out(
        recipe,
        dataset,
        student.parameters,
        teacher_parameters(recipe, base_dir),
        tokenizer=tokenizer,
        base_dir=base_dir,
    )
    flops = measure_flops(dtype, device)
    guesses = []
    for stage in recipe.stages:
        steps, tokens = _amount(recipe, stage, dataset.of_stage(stage.name))
        taught = isinstance(stage.objective, DistillationObjective | CrossTokenizerObjective)
        guesses.append(
            estimate(
                recipe,
                stage,
                student,
                teacher if taught else None,
                tokens=tokens,
                steps=steps,
                dtype=dtype,
                flops=flops,
            )
        )
    guess = in_sequence(guesses)
    memory = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    disk = shutil.disk_usage(_existing(output)).free
    return PreflightReport(
        data=dataset.reports(),
        student=student,
        teacher=teacher,
        dtype=str(dtype).removeprefix("torch."),
        estimate=guess,
        memory_available=memory,
        disk_available=disk,
        warnings=[
            *([] if lack is None else [lack]),
            *([] if finer is None else [finer]),
            *split.warnings,
            *_doremi_warnings(recipe, base_dir),
            *_warnings(recipe, dataset, guess, memory, disk, device),
        ],
    )


def _check_vocabularies(
    recipe: Recipe, source: ModelConfig, base_dir: Path
) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast] | None:
    """Return both tokenizers where the student's was trimmed from the teacher's."""
    if recipe.teacher is None:
        return None
    ours, theirs = load_tokenizer(source, base_dir=base_dir), load_tokenizer(recipe.teacher, base_dir=base_dir)
    mapping, difference = relate_tokenizers(recipe, ours, theirs)
    if recipe.teacher.source == "server":
        refuse_trimmed(mapping)
        return None
    trimmed = None if mapping is None else (ours, theirs)
    if not weights_are_here(recipe.teacher, base_dir):
        return trimmed  # its cache knows only ids that it had
    needed = vocabulary_size(theirs if difference else ours) if mapping is None else int(mapping.max()) + 1
    rows = model_configuration(recipe.teacher, base_dir).get_text_config().vocab_size
    if rows < needed:
        raise ModelError(
            f"teacher.path={recipe.teacher.path}: its head has {rows} rows and the tokenizers need {needed}"
        )
    return trimmed


def _trims(recipe: Recipe) -> bool:
    """Whether the documents of the training are not known before the run."""
    return isinstance(recipe.student, PrunedStudent) and recipe.student.vocabulary is not None


def _size(config: ModelConfig, base_dir: Path) -> ModelSize:
    text = model_configuration(config, base_dir).get_text_config()
    return ModelSize(parameters_of(config, base_dir), text.num_hidden_layers, text.hidden_size, text.vocab_size)


def _student_size(
    recipe: Recipe, source: ModelConfig, tokenizer: PreTrainedTokenizerFast, dataset: Dataset, base_dir: Path
) -> ModelSize:
    """The student's size; the data tells what a trimmed vocabulary keeps."""
    if isinstance(recipe.student, PretrainedStudent):
        return _size(source, base_dir)
    config = planned_configuration(model_configuration(source, base_dir), recipe.student)
    if recipe.student.vocabulary is not None:
        documents, fewest = dataset.train.documents, recipe.student.vocabulary.min_count
        config.vocab_size = len(tokens_to_keep(tokenizer, documents, min_count=fewest))
    return ModelSize(count_parameters(config), config.num_hidden_layers, config.hidden_size, config.vocab_size)


def planned_configuration(config: PreTrainedConfig, student: PrunedStudent) -> PreTrainedConfig:
    """The configuration that pruning will give. Raises ModelError when it would have to grow."""
    planned = copy.deepcopy(config)
    if student.depth is not None:
        _shrink(planned, "num_hidden_layers", student.depth.layers, "student.depth.layers")
        if getattr(planned, "layer_types", None):
            planned.layer_types = planned.layer_types[: student.depth.layers]
    if student.width is not None:
        planned.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        group = config.num_attention_heads // config.num_key_value_heads
        for name, value in student.width.model_dump(exclude_none=True).items():
            _shrink(planned, name, value, f"student.width.{name}")
        planned.num_attention_heads = planned.num_key_value_heads * group
    return planned


def _shrink(config: PreTrainedConfig, name: str, value: int, field: str) -> None:
    if value > getattr(config, name):
        raise ModelError(f"{field}={value}: the source has {getattr(config, name)}; a student cannot be larger")
    setattr(config, name, value)


def _amount(recipe: Recipe, stage: StageConfig, dataset: Dataset) -> tuple[int, int]:
    """Steps and tokens of a stage; a stage without documents is skipped."""
    if not len(dataset.train.documents):
        return 0, 0
    optimisation = stage.optimisation
    if interval_steps_of(stage) is not None:
        steps = num_interval_steps(stage, dataset.train.documents)
        return steps, steps * optimisation.batch_tokens
    plan = Plan(dataset.train.documents.lengths, batch_tokens=optimisation.batch_tokens, seed=recipe.seed)
    steps = plan.num_steps_for(optimisation.budget)
    return steps, plan.tokens_before(steps)


def _doremi_warnings(recipe: Recipe, base_dir: Path) -> list[str]:
    """What the runs before have not left yet."""
    found = []
    for i, stage in enumerate(recipe.stages):
        mixture, objective = stage.mixture, stage.objective
        if isinstance(mixture, DoReMiMixture) and not (base_dir / Path(mixture.weights_from).expanduser()).exists():
            found.append(
                f"stages.{i}.mixture.weights_from={mixture.weights_from} is not there yet; train the proxy first"
            )
        if isinstance(objective, DoReMiProxyObjective) and not (base_dir / objective.reference).exists():
            found.append(
                f"stages.{i}.objective.reference={objective.reference} is no folder here: train the reference first, "
                "unless it is the name of a model"
            )
    return found


def _warnings(
    recipe: Recipe, dataset: Dataset, guess: Estimate, memory: int, disk: int, device: torch.device
) -> list[str]:
    found = [w for report in dataset.reports().values() for w in report["warnings"]]
    if guess.memory_bytes > memory:
        found.append(
            "the run may not fit into memory; lower optimisation.micro_batch_tokens, turn on "
            "optimisation.gradient_checkpointing, or use student.lora"
        )
    if guess.disk_bytes > disk:
        found.append(
            "checkpoints and model may not fit on the disk; lower checkpoints.keep or choose another output.dir"
        )
    if device.type == "cpu" and any(s.optimisation.compile_head for s in recipe.stages) and not compiler_available():
        found.append("no C++ compiler was found, so the objective runs uncompiled (about 5 times slower); install g++")
    slower = [f"stages.{i}.objective.type={s.objective.type}" for i, s in enumerate(recipe.stages) if _untimed(s)]
    if slower:
        found.append(f"the estimated time leaves out what {', '.join(slower)} does besides training steps")
    if guess.steps < 20:
        found.append(f"only {guess.steps} optimizer steps; lower optimisation.batch_tokens or raise the budget")
    return found


def _untimed(stage: StageConfig) -> bool:
    """Whether a stage does more than its training steps: answers are written, filters trained, a reference measured."""
    objective = stage.objective
    if isinstance(objective, GKDObjective):
        return objective.on_policy_fraction > 0
    return isinstance(objective, (SequenceKDObjective, TEDObjective, DoReMiProxyObjective))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
