"""One run from recipe to result: data, models, evaluation, training, checkpoint, evaluation."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stillhouse.data.dataset import Dataset
from stillhouse.data.document import DocumentSet
from stillhouse.evaluation.diagnosis import diagnose, gap_closed
from stillhouse.evaluation.suite import side_by_side
from stillhouse.mixture.controller import MixtureController
from stillhouse.recipe import KDObjective, Recipe
from stillhouse.run_directory import RunDirectory, write_json_atomic
from stillhouse.training.distributed import World, world
from stillhouse.training.evaluating import Evaluator, Measured
from stillhouse.training.loop import LoopState
from stillhouse.training.mixing import split_held_out
from stillhouse.training.models import Student, prepare_student
from stillhouse.training.stage import build_stage


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

    def run(self, *, overwrite: bool) -> RunOutcome:
        directory = self._open_directory(overwrite)
        student, dataset = prepare_student(self._recipe, self._base, directory, self._world, self._say)
        split = split_held_out(self._recipe, dataset, student.parameters, student.teacher_parameters)
        dataset = split.dataset
        self._say_data(dataset)
        if split.budget is not None:
            self._say(
                f"mixture: {split.budget.tokens_per_domain} held-out tokens a domain drive the weights, measured "
                f"{split.budget.measurements} times: predicted overhead {split.budget.overhead:.1%} of training"
            )
        evaluator = Evaluator(self._recipe, self._base, directory, dataset, student, self._world)
        self._say("measuring on held-out rows before training")
        teacher = evaluator.teacher() if self._recipe.teacher is not None else None
        before = evaluator.student_before()
        self._say_start(teacher, before)
        state, mixture = self._train_stage(directory, student, dataset, split.driving)
        if state.stopped_because == "interrupted":
            return RunOutcome(directory.path, state, None)
        self._say("measuring the saved model")
        after = evaluator.student_after()
        result = None
        if self._world.is_main:
            ratios = gradient_ratios(directory / "metrics.jsonl")
            result = self._result(state, student, dataset, (teacher, before, after), ratios)
            if split.budget is not None and mixture is not None:
                training = max(state.seconds - mixture.measured_seconds, 1e-9)
                result["mixture"] = {
                    "validation_tokens_per_domain": split.budget.tokens_per_domain,
                    "predicted_overhead": split.budget.overhead,
                    "measured_overhead": mixture.measured_seconds / training,
                }
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

    def _train_stage(
        self, directory: RunDirectory, student: Student, dataset: Dataset, driving: DocumentSet | None
    ) -> tuple[LoopState, MixtureController | None]:
        built = build_stage(self._recipe, self._base, directory, student, dataset, self._world, self._console, driving)
        if built.resumed_from is not None:
            self._say(f"resuming from the checkpoint of step {built.resumed_from}")
        try:
            state = built.loop.train()
        finally:
            built.close()
        if state.stopped_because != "interrupted":
            built.save_model(directory, student)
        return state, built.loop.mixture

    def _result(
        self,
        state: LoopState,
        student: Student,
        dataset: Dataset,
        measured: tuple[Measured | None, Measured, Measured],
        ratios: list[float],
    ) -> dict[str, Any]:
        teacher, before, after = measured
        teacher_likelihood = None if teacher is None else teacher.evaluation.likelihood
        teacher_nll = None if teacher_likelihood is None else teacher_likelihood.nll
        likelihood_before, likelihood_after = before.evaluation.likelihood, after.evaluation.likelihood
        warnings = diagnose(
            teacher=teacher_likelihood,
            before=likelihood_before,
            after=likelihood_after,
            gradient_ratios=ratios,
            distilled=isinstance(self._recipe.stages[-1].objective, KDObjective),
        )
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
                "teacher": None if teacher is None else teacher.evaluation.to_json(),
                "student_before": before.evaluation.to_json(),
                "student_after": after.evaluation.to_json(),
            },
            "samples": side_by_side(None if teacher is None else teacher.samples, before.samples, after.samples),
            "training": {
                "steps": state.step,
                "tokens": state.tokens,
                "targets": state.targets,
                "seconds": state.seconds,
                "tokens_per_second": state.tokens / state.seconds if state.seconds else None,
                "stopped_because": state.stopped_because,
                "best_step": state.best_step,
            },
            "data": dataset.reports(),
            "parameters": {"teacher": student.teacher_parameters, "student": student.parameters},
            "student": student.notes,
            "warnings": [*warnings, *data_warnings(dataset)],
        }

    def _say(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _say_data(self, dataset: Dataset) -> None:
        for name, report in dataset.reports().items():
            self._say(f"{name}: {report['documents']} documents, {report['tokens']} tokens")

    def _say_start(self, teacher: Measured | None, before: Measured) -> None:
        beside = f", teacher {teacher.evaluation.likelihood.nll:.3f}" if teacher is not None else ""
        self._say(
            f"before training: student {before.evaluation.likelihood.nll:.3f}{beside} nats/token (macro over domains)"
        )


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
