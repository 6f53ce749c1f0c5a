"""The adviser from recipe to ``advice.json``: measure, pilot, predict. Killed anywhere, it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.data.formatting import chat_format_for
from stillhouse.data.sources import load_rows
from stillhouse.errors import RecipeError
from stillhouse.evaluation.held_out import stop_ids
from stillhouse.models.head import split_model
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.placement import place_model
from stillhouse.recipe import OutputConfig, PretrainedStudent, Recipe
from stillhouse.recipe_io import recipe_from_mapping
from stillhouse.run_directory import RunDirectory, read_json, write_json_atomic, write_text_atomic
from stillhouse.study.adviser.evidence import Evidence, Measurement, evidence_from_study
from stillhouse.study.adviser.measure import measure_pair
from stillhouse.study.adviser.pilot import (
    BASE_NAME,
    STUDY_NAME,
    Amount,
    pilot_epochs,
    pilot_objective,
    pilot_recipe,
    pilot_sizes,
    pilot_study,
    write_held_out,
)
from stillhouse.study.adviser.recommend import Advice, recommend
from stillhouse.study.analysis.rows import read_study
from stillhouse.study.config import StudyConfig
from stillhouse.study.estimate import Durations, preflight_durations
from stillhouse.study.grid import Plan, plan_study
from stillhouse.study.runner import StudyOutcome, run_study
from stillhouse.study.view import View
from stillhouse.teachers.live import LiveTeacher
from stillhouse.training.cached import teacher_dtype
from stillhouse.training.distributed import World, world
from stillhouse.training.models import prepare_student, student_source
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.tokenizer_relation import relate_tokenizers

ADVICE_NAME, MEASUREMENT_NAME = "advice.json", "measurement.json"


@dataclass(frozen=True)
class PilotOptions:
    """``sizes`` in rows (None: chosen from the data), ``seeds`` and how many runs go at one time."""

    sizes: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    retry_failed: bool = False


@dataclass(frozen=True)
class Looked:
    """Stage 1: what was measured, and what the pilot is made from."""

    measurement: Measurement
    amount: Amount
    student: str | None
    """Folder of the pruned student; None where the recipe's is taken as it is."""
    held_out: tuple[str, ...]
    """Files of the rows that were split off for validation; empty where the recipe names its own."""

    def to_json(self) -> dict[str, Any]:
        """The object of ``measurement.json``."""
        own = {"amount": asdict(self.amount), "student": self.student, "held_out": list(self.held_out)}
        return {"measurement": self.measurement.to_json(), **own}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Looked:
        """Rebuild what ``to_json`` gave."""
        amount = Amount(**{**data["amount"], "source_rows": tuple(data["amount"]["source_rows"])})
        return cls(Measurement.from_json(data["measurement"]), amount, data["student"], tuple(data["held_out"]))


@dataclass(frozen=True)
class Outcome:
    """``advice`` is None when the pilot was interrupted; the same call goes on."""

    folder: Path
    looked: Looked
    advice: Advice | None
    num_failed: int = 0


def look(recipe: Recipe, *, base_dir: Path, folder: Path, say: Callable[[str], None]) -> Looked:
    """Stage 1: measure teacher and untrained student, and count the data; done once for a folder.

    ``folder`` is relative to ``base_dir``. Raises OutputError or RecipeError where the folder holds
    something else, RecipeError for a recipe without a teacher whose weights are at hand, or whose teacher has
    another tokenizer, and as loading does.
    """
    _refuse(recipe, base_dir)
    inner = recipe.model_copy(update={"output": OutputConfig(dir=str(folder / "measure"))})
    directory = RunDirectory.open(inner, base_dir / inner.output.dir, overwrite=False)
    saved = base_dir / folder / MEASUREMENT_NAME
    if saved.exists():
        say("measured already")
        return Looked.from_json(read_json(saved))
    with world() as here:
        looked = _look(inner, base_dir, folder, directory, here, say)
    write_json_atomic(saved, looked.to_json())
    return looked


def run_pilot(
    recipe: Recipe, looked: Looked, options: PilotOptions, *, base_dir: Path, folder: Path, view: View
) -> tuple[StudyOutcome, list[str]]:
    """Stage 2: write the pilot's study beside its base recipe and run what is left of it.

    Returns the outcome and the assumptions. Raises as ``run_study`` does, and RecipeError where the
    data is too small for a pilot.
    """
    pilot = folder / "pilot"
    epochs = pilot_epochs(recipe, looked.amount.tokens)
    base, notes = pilot_recipe(
        recipe, folder=pilot, student=looked.student, validation=[Path(p) for p in looked.held_out], epochs=epochs
    )
    recipe_from_mapping(base, where="pilot")
    batch_tokens = recipe.stages[0].optimisation.batch_tokens
    sizes = options.sizes or pilot_sizes(looked.amount, epochs=epochs, batch_tokens=batch_tokens)
    study = pilot_study(
        sizes,
        looked.amount,
        folder=pilot,
        seeds=options.seeds,
        objective=pilot_objective(recipe),
        jobs=options.jobs,
    )
    where = base_dir / pilot
    write_text_atomic(where / BASE_NAME, yaml.safe_dump(base, sort_keys=False, allow_unicode=True))
    write_text_atomic(where / STUDY_NAME, yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    share = sum(sizes) * 2 * len(options.seeds) / looked.amount.rows
    view.say(
        f"pilot: {', '.join(map(str, sizes))} of {looked.amount.rows} rows; in all {share:.1f} times the full data"
    )
    plan = plan_study(StudyConfig.from_mapping(study, where=str(where / STUDY_NAME)), where, where=STUDY_NAME)

    def estimate(plan: Plan, names: Sequence[str]) -> Durations:
        return preflight_durations(plan, names, base_dir=base_dir)

    outcome = run_study(plan, base_dir=base_dir, view=view, retry_failed=options.retry_failed, estimate=estimate)
    return outcome, notes


def advise(
    recipe: Recipe,
    *,
    base_dir: Path,
    folder: Path,
    view: View,
    options: PilotOptions | None,
) -> Outcome:
    """All stages; ``options`` None leaves the pilot out, and the advice then says what it cannot tell.

    Writes ``measurement.json`` and ``advice.json`` into ``folder`` (relative to ``base_dir``).
    """
    looked = look(recipe, base_dir=base_dir, folder=folder, say=view.say)
    failed = 0
    if options is None:
        evidence = Evidence("sft", "kd", looked.amount.documents, measurement=looked.measurement)
    else:
        outcome, notes = run_pilot(recipe, looked, options, base_dir=base_dir, folder=folder, view=view)
        if outcome.interrupted:
            return Outcome(folder, looked, None)
        failed = outcome.num_failed
        evidence = _evidence(outcome.result, looked, notes)
    advice = recommend(evidence)
    write_json_atomic(
        base_dir / folder / ADVICE_NAME,
        {
            "full_rows": looked.amount.documents,
            "measurement": looked.measurement.to_json(),
            "pilot": None if options is None else str(Path("pilot") / "study_result.json"),
            "advice": advice.to_json(),
        },
    )
    return Outcome(folder, looked, advice, failed)


def _evidence(result: dict[str, Any], looked: Looked, notes: Sequence[str]) -> Evidence:
    """The pilot's evidence; where too few runs finished, the measurement alone."""
    study = read_study(result)
    if len(study.methods) < 2:
        return Evidence(
            "sft",
            "kd",
            looked.amount.documents,
            measurement=looked.measurement,
            unfinished=study.unfinished,
            assumptions=notes,
        )
    return evidence_from_study(
        study, full_rows=looked.amount.documents, measurement=looked.measurement, assumptions=notes
    )


def _refuse(recipe: Recipe, base_dir: Path) -> None:
    if recipe.teacher is None:
        raise RecipeError(
            "teacher: the adviser compares distillation with SFT and needs a teacher; add `teacher: {path: ...}`"
        )
    if recipe.teacher.source not in ("live", "cache"):
        raise RecipeError(
            f"teacher.source={recipe.teacher.source}: the adviser reads the teacher's whole distribution and needs its "
            "weights; name a model with source: live"
        )
    ours = load_tokenizer(student_source(recipe), base_dir=base_dir)
    _, difference = relate_tokenizers(recipe, ours, load_tokenizer(recipe.teacher, base_dir=base_dir))
    if difference is not None:
        raise RecipeError(
            f"teacher.path={recipe.teacher.path}: the adviser compares teacher and student token by token, and "
            f"{difference}, or compare SFT with `cross_tokenizer` in a study of your own (`stillhouse study`)"
        )


def _look(
    recipe: Recipe, base_dir: Path, folder: Path, directory: RunDirectory, here: World, say: Callable[[str], None]
) -> Looked:
    teacher_config = recipe.teacher
    assert teacher_config is not None
    student, dataset = prepare_student(recipe, base_dir, directory, here, say)
    say("measuring teacher and student on held-out rows")
    dtype = resolve_dtype(recipe.stages[0].optimisation.precision, here.device)
    model = place_model(student.load(dtype, lora=False), "whole", here.device)
    teacher_model = load_model(
        teacher_config, dtype=teacher_dtype(recipe, teacher_config, here.device), base_dir=base_dir
    )
    if teacher_config.quantization == "none":
        place_model(teacher_model, teacher_config.placement, here.device)
    teacher = LiveTeacher(teacher_model, vocabulary_map=student.vocabulary_map, vocab_size=student.vocab_size)
    chat = chat_format_for(dataset.test.rows, student.tokenizer, recipe.data, base_dir)
    measurement = measure_pair(
        split_model(model),
        teacher,
        dataset.test.documents,
        end_of_turn_ids=stop_ids(student.tokenizer, chat),
        micro_batch_tokens=recipe.stages[0].optimisation.micro_batch_tokens,
        device=here.device,
    )
    rows = tuple(len(load_rows([source], seed=recipe.seed, base_dir=base_dir)) for source in recipe.data.train)
    report = dataset.reports()["train"]
    files = [] if recipe.data.validation else write_held_out(dataset.validation.rows, base_dir / folder)
    pruned = not isinstance(recipe.student, PretrainedStudent)
    return Looked(
        measurement,
        Amount(rows, report["documents"], report["tokens"]),
        str(folder / "measure" / "initial") if pruned else None,
        tuple(str(folder / path.name) for path in files),
    )
