"""From a study file to its runs: every combination of labels and seeds, resolved and checked before any starts."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.recipe import FollowingMixture, Recipe
from stillhouse.recipe_io import read_mapping, recipe_from_mapping, set_field
from stillhouse.study.budget import Sizes, apply_budget
from stillhouse.study.config import StudyConfig

RUNS_FOLDER = "runs"
PREPARED_FOLDER = "prepare"
_ERRORS_SHOWN = 10


@dataclass(frozen=True)
class Cell:
    """One combination of labels and a seed; ``run`` is the directory that answers it, relative to the output."""

    labels: dict[str, str]
    seed: int
    run: str

    def describe(self) -> str:
        """For people: ``method=kd, size=100, seed 0``."""
        return ", ".join([*(f"{axis}={label}" for axis, label in self.labels.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class PlannedRun:
    """A run to do: its directory relative to the output, and its whole recipe."""

    name: str
    recipe: Recipe
    cell: Cell
    """The first cell that it answers; one without labels for a run that others build on."""
    needs: tuple[str, ...] = ()
    """Names of the runs that must be done before."""


@dataclass(frozen=True)
class Plan:
    """All cells of a study in their order, and the runs behind them; cells of equal recipes share a run.

    Runs that others build on come first among ``runs``; they are no cells.
    """

    config: StudyConfig
    cells: tuple[Cell, ...]
    runs: dict[str, PlannedRun]

    @property
    def output(self) -> Path:
        """The study's folder, relative to the working directory."""
        return Path(self.config.output)


def plan_study(
    config: StudyConfig, folder: Path, *, where: str = "study", sizes: Callable[[], Sizes] | None = None
) -> Plan:
    """Expand the grid and check every resolved recipe.

    ``folder`` is where the path of the base recipe starts; ``sizes`` gives the sizes of a recipe's
    models, which only a budget in FLOPs asks for. The order is by seed first, then by the axes as
    the file names them, so that the runs that are compared with each other end together.

    Raises RecipeError that names axis, label and field of everything that is wrong.
    """
    base = read_mapping(folder / config.base)
    cells: list[Cell] = []
    runs = _prepared(config, base, where)
    prepared = tuple(runs)
    owners = {fingerprint(run.recipe): name for name, run in runs.items()}
    names: dict[str, dict[str, str]] = {}
    errors = _Errors(config, base, where)
    measured = sizes() if sizes is not None and config.budget is not None and config.budget.flops is not None else None
    for seed, labels in itertools.product(config.seeds, _combinations(config)):
        name = _run_name(labels, seed)
        if names.setdefault(name, labels) != labels:
            raise RecipeError(
                f"{where}: the labels {_show(names[name])} and {_show(labels)} would share the folder {name}; rename one"
            )
        try:
            data = _resolve(config, base, labels, seed, name, where)
            recipe = recipe_from_mapping(data, where=f"{where}: {_show(labels)}" if labels else where)
            if config.budget is not None:
                recipe = apply_budget(recipe, config.budget, measured, where=f"{where}: {_show(labels)}")
        except RecipeError as error:
            errors.add(labels, str(error))
            continue
        run = owners.setdefault(fingerprint(recipe), name)
        cells.append(Cell(labels, seed, run))
        if run == name:
            runs[name] = PlannedRun(name, recipe, cells[-1], _named(recipe, prepared, config))
    errors.raise_if_any()
    if not cells:
        raise RecipeError(f"{where}: exclude leaves out every run; drop one of its combinations")
    return Plan(config, tuple(cells), runs)


def fingerprint(recipe: Recipe) -> str:
    """What a recipe does, as text: all of it but the place of its output."""
    data = recipe.model_dump(mode="json")
    del data["output"]["dir"]
    return json.dumps(data, sort_keys=True)


def held_out_notes(plan: Plan) -> list[str]:
    """What a reader should know about the rows on which the runs are compared."""
    return _drawn_rows_notes(plan) + _driving_rows_notes(plan)


def _drawn_rows_notes(plan: Plan) -> list[str]:
    drawn = {
        tuple((source.limit, source.limit_per_domain) for source in run.recipe.data.train)
        for run in plan.runs.values()
        if not run.recipe.data.validation and not run.recipe.evaluation.test
    }
    limited = any(value is not None for limits in drawn for limit in limits for value in limit)
    if not limited or (len(drawn) == 1 and len(plan.config.seeds) == 1):
        return []
    return [
        "held-out rows are split off the training rows, and these are drawn with `limit`: runs of other sizes or seeds "
        "are measured on other rows; name held-out files under `data.validation` or `evaluation.test` of the base recipe"
    ]


def _driving_rows_notes(plan: Plan) -> list[str]:
    """A mixture that follows the student keeps validation rows for itself: how many depends on it and its budget."""
    taken = {
        tuple(
            (stage.mixture.validation_tokens_per_domain, stage.mixture.interval_steps, stage.optimisation.batch_tokens)
            for stage in plan.runs[name].recipe.stages
            if isinstance(stage.mixture, FollowingMixture)
        )
        for name in {cell.run for cell in plan.cells}
        if not plan.runs[name].recipe.evaluation.test
    }
    if len(taken) < 2:
        return []
    return [
        "some runs follow the gap, and the validation rows that drive their weights do not score them: arms are scored on "
        "unequal rows; name held-out files under `evaluation.test` of the base recipe"
    ]


def _combinations(config: StudyConfig) -> Iterator[dict[str, str]]:
    for labels in itertools.product(*config.axes.values()):
        chosen = dict(zip(config.axes, labels, strict=True))
        if not any(all(chosen[axis] == label for axis, label in out.items()) for out in config.exclude):
            yield chosen


def _run_name(labels: Mapping[str, str], seed: int) -> str:
    return f"{RUNS_FOLDER}/{'-'.join([*labels.values(), f'seed{seed}'])}"


def _prepared(config: StudyConfig, base: Mapping[str, Any], where: str) -> dict[str, PlannedRun]:
    """The runs of ``prepare``, each with those others that its recipe names."""
    recipes: dict[str, tuple[int, Recipe]] = {}
    for seed, (label, overrides) in itertools.product(config.seeds, config.prepare.items()):
        name = f"{PREPARED_FOLDER}/{label}-seed{seed}"
        layers = [("overrides", config.overrides), (f"prepare.{label}", overrides)]
        data = _filled(config, base, layers, {}, seed, name, where)
        recipes[name] = seed, recipe_from_mapping(data, where=f"{where}: prepare.{label}")
    names = tuple(recipes)
    runs = {n: PlannedRun(n, r, Cell({}, seed, n), _named(r, names, config)) for n, (seed, r) in recipes.items()}
    waiting = dict(runs)
    while ready := [name for name, run in waiting.items() if not waiting.keys() & set(run.needs)]:
        waiting = {name: run for name, run in waiting.items() if name not in ready}
    if waiting:
        raise RecipeError(
            f"{where}: prepare: {', '.join(waiting)} wait for each other; let one of them start from others"
        )
    return runs


def _named(recipe: Recipe, prepared: Sequence[str], config: StudyConfig) -> tuple[str, ...]:
    """Those of the ``prepared`` runs whose directory stands in a recipe."""
    text = fingerprint(recipe)
    return tuple(name for name in prepared if re.search(rf"{re.escape(f'{config.output}/{name}')}(?![\w.-])", text))


def _resolve(
    config: StudyConfig, base: Mapping[str, Any], labels: Mapping[str, str], seed: int, name: str, where: str
) -> dict[str, Any]:
    return _filled(config, base, _layers(config, labels), labels, seed, name, where)


def _filled(
    config: StudyConfig,
    base: Mapping[str, Any],
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    labels: Mapping[str, str],
    seed: int,
    name: str,
    where: str,
) -> dict[str, Any]:
    """The base recipe with the overrides of ``layers``, one after the other."""
    data = copy.deepcopy(dict(base))
    names = {"output": config.output, **labels, "seed": str(seed)}
    for place, overrides in layers:
        for field, value in overrides.items():
            set_field(data, field, fill_in(value, names), where=f"{where}: {place}: {field}")
    output = data.get("output")
    data["seed"] = seed
    data["output"] = {**(output if isinstance(output, dict) else {}), "dir": f"{config.output}/{name}"}
    return data


def _layers(config: StudyConfig, labels: Mapping[str, str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The overrides of a run in the order in which they are applied, each with its place in the file."""
    own = [(f"axes.{axis}.{label}", config.axes[axis][label]) for axis, label in labels.items()]
    return [("overrides", config.overrides), *own]


def fill_in(value: Any, names: Mapping[str, str]) -> Any:
    """Return an override's value with `{seed}`, `{output}` and `{AXIS}` in its strings replaced by the run's own.

    So one label can name what differs between runs: `teacher.path: runs/teachers/{size}-seed{seed}/model`.
    """
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, dict):
        return {key: fill_in(item, names) for key, item in value.items()}
    return [fill_in(item, names) for item in value] if isinstance(value, list) else value


def _show(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={label}" for axis, label in labels.items())


class _Errors:
    """Collects what is wrong over the grid, says it once, and names the overrides that it follows from."""

    def __init__(self, config: StudyConfig, base: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self._lines: dict[str, str] = {}
        self._own = self._lines_of_base(base)

    def add(self, labels: Mapping[str, str], message: str) -> None:
        prefixes = (f"{self._where}: {_show(labels)}: ", f"{self._where}: ")
        for line in message.splitlines():
            prefix = next((p for p in prefixes if line.startswith(p)), "")
            text = line.removeprefix(prefix)
            if text in self._own:
                self._lines.setdefault(text, f"{self._config.base}: {text}")
                continue
            cause = self._cause(labels, text)
            place = cause[0] if cause else _show(labels)
            by = f" (set by {cause[1]!r})" if cause else ""
            key = f"{place}: {text}" if cause else text
            self._lines.setdefault(key, f"{self._where}: {place}: {text}{by}" if place else f"{self._where}: {text}")

    def raise_if_any(self) -> None:
        if not self._lines:
            return
        lines = list(self._lines.values())
        more = len(lines) - _ERRORS_SHOWN
        raise RecipeError("\n".join(lines[:_ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else [])))

    def _lines_of_base(self, base: Mapping[str, Any]) -> set[str]:
        try:
            recipe_from_mapping(base, where="base")
        except RecipeError as error:
            return {line.removeprefix("base: ") for line in str(error).splitlines()}
        return set()

    def _cause(self, labels: Mapping[str, str], text: str) -> tuple[str, str] | None:
        """Place and field of the last override that touches the field at which the message begins."""
        field = text.split(":", 1)[0].split("=", 1)[0].strip().split(".")
        for place, overrides in reversed(_layers(self._config, labels)):
            for key in reversed(list(overrides)):
                pairs = zip(key.split("."), field, strict=False)
                if all(ours in (theirs, "*") for ours, theirs in pairs):
                    return place, key
        return None
