"""One run from recipe to result: data, models, evaluation, training, checkpoint, evaluation."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from stillhouse.data.dataset import Dataset
from stillhouse.errors import DataError
from stillhouse.evaluation.by_bytes import bits_per_byte, other_tokenizer_warning
from stillhouse.evaluation.diagnosis import diagnose, gap_closed
from stillhouse.evaluation.suite import side_by_side
from stillhouse.recipe import DistillationObjective, Recipe, SequenceKDObjective, StageConfig
from stillhouse.run_directory import RunDirectory, write_json_atomic
from stillhouse.targets.cache import TargetCache
from stillhouse.training.cached import believed_note, check_cache
from stillhouse.training.context import StageContext
from stillhouse.training.distributed import World, world
from stillhouse.training.doremi import write_weights
from stillhouse.training.evaluating import Evaluator, Measured
from stillhouse.training.loop import LoopState
from stillhouse.training.mixing import HeldOutSplit, check_mixtures, split_held_out
from stillhouse.training.models import Student, prepare_student
from stillhouse.training.stage import build_stage, label_with_teacher
from stillhouse.training.stages import FinishedStage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class RunOutcome:
    """What ``train`` returns. ``result`` (as in ``result.json``) is there on rank 0 of a finished run."""

    directory: Path
    state: LoopState
    result: dict[str, Any] | None

    @property
    def interrupted(self) -> bool:
        return self.state.stopped_because == "interrupted"


def train(
    recipe: Recipe, *, base_dir: Path | None = None, overwrite: bool = False, console: Console | None = None
) -> RunOutcome:
    """Run a recipe, or resume it where an earlier attempt stopped.

    Relative paths of the recipe start at ``base_dir`` (None: the working directory). Without a
    ``console`` nothing is printed. Under torchrun every process calls this; rank 0 writes.

    Raises a StillhouseError that names file or field for everything a user can mend.
    """
    base = base_dir or Path.cwd()
    with world() as here:
        return _Run(recipe, base, here, console if here.is_main else None).run(overwrite=overwrite)


class _Run:
    def __init__(self, recipe: Recipe, base_dir: Path, world: World, console: Console | None) -> None:
        self._recipe, self._base, self._world, self._console = recipe, base_dir, world, console
        self._targets: TargetCache | None = None

    def run(self, *, overwrite: bool) -> RunOutcome:
        directory = self._open_directory(overwrite)
        student, dataset = prepare_student(
            self._recipe, self._base, directory, self._world, self._say, partial(self._check_targets, directory)
        )
        if student.finer_pieces is not None:
            self._say(f"warning: {student.finer_pieces}")
        check_mixtures(self._recipe, dataset, self._base, proxies_trained=True)
        split = split_held_out(
            self._recipe,
            dataset,
            student.parameters,
            student.teacher_parameters,
            tokenizer=student.tokenizer,
            base_dir=self._base,
        )
        dataset = split.dataset
        self._say_data(dataset)
        for line in split.lines():
            self._say(line)
        evaluator = Evaluator(self._recipe, self._base, directory, dataset, student, self._world)
        self._say("measuring on held-out rows before training")
        teacher = evaluator.teacher() if self._recipe.teacher is not None else None
        before = evaluator.student_before()
        self._say_start(teacher, before, comparable=student.other_tokenizer is None)
        finished, state = self._train_stages(directory, student, split)
        if state.stopped_because == "interrupted":
            return RunOutcome(directory.path, state, None)
        self._say("measuring the saved model")
        after = evaluator.student_after()
        result = None
        if self._world.is_main:
            ratios = gradient_ratios(directory / "metrics.jsonl")
            result = self._result(finished, student, dataset, (teacher, before, after), ratios)
            result["warnings"] += [*evaluator.notes, *split.warnings]
            mixtures = [m for e in finished if (m := _mixture_result(e, split)) is not None]
            if mixtures:
                result["mixture"] = mixtures[-1]
            for stage in finished:
                result |= {name: {"stage": stage.name, **found} for name, found in stage.method.items()}
            write_json_atomic(directory / "result.json", result)
        self._world.barrier()
        return RunOutcome(directory.path, state, result)

    def _open_directory(self, overwrite: bool) -> RunDirectory:
        path = self._base / self._recipe.output.dir
        if self._world.is_main:
            directory = RunDirectory.open(self._recipe, path, overwrite=overwrite)
            write_json_atomic(directory / "environment.json", environment(self._world))
        self._world.barrier()
        return RunDirectory(path)

    def _check_targets(self, directory: RunDirectory, tokenizer: PreTrainedTokenizerFast, dataset: Dataset) -> None:
        """Open the cache that the stages still to be trained read, before anything else takes time."""
        waiting = [s for s in self._recipe.stages if FinishedStage.read(record_of(directory, s.name)) is None]
        self._targets = check_cache(self._recipe, tokenizer, dataset, self._base, waiting)
        note = believed_note(self._recipe, self._base)
        if note is not None:
            self._say(note)

    def _train_stages(
        self, directory: RunDirectory, student: Student, split: HeldOutSplit
    ) -> tuple[list[FinishedStage], LoopState]:
        """Train what is not finished, in order; the state is the last stage's, perhaps an interrupted one's."""
        context = StageContext(self._recipe, self._base, directory, student, self._world, self._console, self._targets)
        finished: list[FinishedStage] = []
        for stage in self._recipe.stages:
            path = record_of(directory, stage.name)
            record = FinishedStage.read(path)
            self._world.barrier()  # nobody writes before all have read
            if record is None:
                record, state = self._train_stage(context, stage, split, finished)
                if record is None:
                    return finished, state
                if self._world.is_main:
                    record.write(path)
            finished.append(record)
        if all(e.skipped for e in finished):
            raise DataError("every stage was skipped for want of data; give at least one stage rows to train on")
        return finished, finished[-1].state

    def _train_stage(
        self, context: StageContext, stage: StageConfig, split: HeldOutSplit, finished: Sequence[FinishedStage]
    ) -> tuple[FinishedStage | None, LoopState]:
        """Train one stage; the record is None where it was interrupted."""
        dataset = split.dataset.of_stage(stage.name)
        if not len(dataset.train.documents):
            self._say(f"stage {stage.name}: no document to train on, skipped")
            return FinishedStage(stage.name, LoopState(stopped_because="no data"), None), LoopState()
        if isinstance(stage.objective, SequenceKDObjective):
            dataset = label_with_teacher(context, stage, stage.objective, dataset)
        built = build_stage(context, stage, dataset, driving=split.driving.get(stage.name), earlier=finished)
        if built.resumed_from is not None:
            self._say(f"resuming from the checkpoint of step {built.resumed_from}")
        try:
            state = built.loop.train()
        finally:
            built.close()
        if state.stopped_because == "interrupted":
            return None, state
        if stage is self._last_with_data(split):
            built.save_model(context.directory, context.student)
        mixture = built.loop.mixture
        seconds = mixture.measured_seconds if mixture is not None and stage.name in split.budgets else None
        method = built.method_result
        if self._world.is_main and "doremi" in method:
            write_weights(context.directory.path, method["doremi"])
        return FinishedStage(stage.name, state, built.kept_step, seconds, method), state

    def _last_with_data(self, split: HeldOutSplit) -> StageConfig:
        """The stage whose weights are the model's."""
        return [s for s in self._recipe.stages if len(split.dataset.of_stage(s.name).train.documents)][-1]

    def _result(
        self,
        finished: Sequence[FinishedStage],
        student: Student,
        dataset: Dataset,
        measured: tuple[Measured | None, Measured, Measured],
        ratios: list[float],
    ) -> dict[str, Any]:
        teacher, before, after = measured
        # Nats per token of another tokenizer compare with nothing here: they are kept apart.
        apart = teacher if student.other_tokenizer is not None else None
        comparable = teacher if apart is None else None
        teacher_likelihood = None if comparable is None else comparable.evaluation.likelihood
        teacher_nll = None if teacher_likelihood is None else teacher_likelihood.nll
        likelihood_before, likelihood_after = before.evaluation.likelihood, after.evaluation.likelihood
        warnings = diagnose(
            teacher=teacher_likelihood,
            before=likelihood_before,
            after=likelihood_after,
            gradient_ratios=ratios,
            distilled=isinstance(self._recipe.stages[-1].objective, DistillationObjective),
        )
        if apart is not None:
            warnings.insert(
                0, other_tokenizer_warning(apart.evaluation.likelihood, likelihood_before, likelihood_after)
            )
        state = [e.state for e in finished if not e.skipped][-1]
        tokens, seconds = sum(e.state.tokens for e in finished), sum(e.state.seconds for e in finished)
        objectives = {stage.name: stage.objective.type for stage in self._recipe.stages}
        return {
            "stillhouse": version("stillhouse"),
            "recipe": self._recipe.model_dump(mode="json"),
            "headline": {
                "teacher": teacher_nll,
                "student_before": likelihood_before.nll,
                "student_after": likelihood_after.nll,
                "gap_closed": gap_closed(likelihood_before.nll, likelihood_after.nll, teacher_nll),
            },
            "evaluation": {
                "teacher": None if comparable is None else comparable.evaluation.to_json(),
                **({} if apart is None else {"teacher_other_tokenizer": apart.evaluation.to_json()}),
                "student_before": before.evaluation.to_json(),
                "student_after": after.evaluation.to_json(),
            },
            "samples": side_by_side(None if teacher is None else teacher.samples, before.samples, after.samples),
            "training": {
                "steps": sum(e.state.step for e in finished),
                "tokens": tokens,
                "targets": sum(e.state.targets for e in finished),
                "seconds": seconds,
                "tokens_per_second": tokens / seconds if seconds else None,
                "stopped_because": state.stopped_because,
                "best_step": state.best_step,
                "stages": [e.as_result(objectives[e.name]) for e in finished],
            },
            "data": dataset.reports(),
            "parameters": {"teacher": student.teacher_parameters, "student": student.parameters},
            "student": student.notes,
            "warnings": [
                *([] if student.finer_pieces is None else [student.finer_pieces]),
                *warnings,
                *data_warnings(dataset),
                *_skipped(finished),
            ],
        }

    def _say(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _say_data(self, dataset: Dataset) -> None:
        for name, report in dataset.reports().items():
            self._say(f"{name}: {report['documents']} documents, {report['tokens']} tokens")

    def _say_start(self, teacher: Measured | None, before: Measured, *, comparable: bool) -> None:
        if teacher is not None and not comparable:
            bits = [bits_per_byte(m.evaluation.likelihood) for m in (before, teacher)]
            if None not in bits:
                self._say(
                    f"before training: student {bits[0]:.3f}, teacher {bits[1]:.3f} bits/byte (macro over domains)"
                )
            return
        beside = f", teacher {teacher.evaluation.likelihood.nll:.3f}" if teacher is not None else ""
        self._say(
            f"before training: student {before.evaluation.likelihood.nll:.3f}{beside} nats/token (macro over domains)"
        )


def record_of(directory: RunDirectory, stage: str) -> Path:
    """Where a finished stage's record is."""
    return directory / "checkpoints" / f"{stage}.json"


def _skipped(finished: Sequence[FinishedStage]) -> list[str]:
    return [f"stage {e.name} was skipped: no document to train on" for e in finished if e.skipped]


def _mixture_result(stage: FinishedStage, split: HeldOutSplit) -> dict[str, Any] | None:
    """What the measurements of a stage's mixture were said to cost, and did."""
    if stage.mixture_seconds is None:
        return None
    budget = split.budgets[stage.name]
    training = max(stage.state.seconds - stage.mixture_seconds, 1e-9)
    return {
        "stage": stage.name,
        "validation_tokens_per_domain": budget.tokens_per_domain,
        "predicted_overhead": budget.overhead,
        "measured_overhead": stage.mixture_seconds / training,
    }


def environment(world: World) -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, processor, processes. No paths, no names."""
    names = ("stillhouse", "torch", "transformers", "tokenizers", "datasets", "numpy")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in names},
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def gradient_ratios(metrics: Path) -> list[float]:
    """The KD-to-CE gradient ratios of all steps, from ``metrics.jsonl``."""
    lines = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [line["grad_rms_ratio"] for line in lines if line.get("grad_rms_ratio") is not None]


def data_warnings(dataset: Dataset) -> list[str]:
    """What the data room warned of in any split, each once."""
    return list(dict.fromkeys(w for report in dataset.reports().values() for w in report["warnings"]))
