"""The methods that ``stillhouse compare --methods`` names: what each changes in a recipe, and nothing else.

To add one, add an entry to ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from stillhouse.errors import RecipeError, did_you_mean
from stillhouse.recipe import Budget, DistillationObjective, ProportionalMixture, Recipe, StageConfig

INTERVALS_PER_RUN = 10
"""Intervals of a mixture that the recipe gives no length for."""
_OBJECTIVE, _MIXTURE = "stages.*.objective", "stages.*.mixture"
_REFERENCE, _PROXY = "doremi_reference", "doremi_proxy"

Overrides = dict[str, Any]
CountSteps = Callable[[], int]
"""Optimizer steps of the recipe's shortest stage; asked where a budget in epochs leaves them to the data."""


@dataclass(frozen=True)
class Method:
    """A named change of every stage of a recipe. ``overrides`` are recipe fields, as in a study file."""

    description: str
    overrides: Callable[[Recipe, CountSteps], Overrides]
    prepare: Callable[[Recipe], dict[str, Overrides]] | None = None
    """Runs that must be there before, as in a study file."""


def method_overrides(names: Sequence[str], recipe: Recipe, count_steps: CountSteps) -> dict[str, Overrides]:
    """The labels of a study's axis ``method``.

    ``count_steps`` reads data, so it is called once at most, and only for a method drawn by intervals on a
    recipe that tells neither their length nor its steps. Raises RecipeError for an unknown name or one given twice.
    """
    counted = cache(count_steps)
    found: dict[str, Overrides] = {}
    for name in names:
        if name not in METHODS:
            raise RecipeError(
                f"--methods {name}: unknown; known are {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
            )
        if name in found:
            raise RecipeError(f"--methods: {name} stands twice; name each method once")
        found[name] = METHODS[name].overrides(recipe, counted)
    return found


def method_preparations(names: Sequence[str], recipe: Recipe) -> dict[str, Overrides]:
    """What a study of these methods has to ``prepare``."""
    found: dict[str, Overrides] = {}
    for name in names:
        prepare = METHODS[name].prepare
        found |= {} if prepare is None else prepare(recipe)
    return found


def _objective(recipe: Recipe, kind: str, **required: Any) -> dict[str, Any]:
    """The recipe's own objective of this kind, with its parameters; else the kind at its defaults."""
    own = (stage.objective for stage in recipe.stages if stage.objective.type == kind)
    found = next(own, None)
    return {"type": kind, **required} if found is None else found.model_dump(mode="json")


def _compared(recipe: Recipe, kind: str) -> dict[str, Any]:
    """The recipe's own objective of this kind; else the kind with what the recipe's comparison has in common with it.

    So KD and TED differ by what TED adds, and not by divergence, mixing or temperature.
    """
    objectives = [stage.objective for stage in recipe.stages]
    other = next((o for o in objectives if isinstance(o, DistillationObjective)), None)
    if other is None or any(o.type == kind for o in objectives):
        return _objective(recipe, kind)
    shared = other.model_dump(mode="json", include=set(DistillationObjective.model_fields))
    return {"type": kind, **shared}


def _epochs(recipe: Recipe) -> dict[str, Any]:
    """Each domain by its share of the tokens: as the recipe draws that, else plain epochs."""
    mixture = recipe.stages[0].mixture
    return mixture.model_dump(mode="json") if isinstance(mixture, ProportionalMixture) else {"type": "proportional"}


def _intervals(recipe: Recipe, kind: str, count_steps: CountSteps) -> dict[str, Any]:
    """A mixture drawn by intervals: the recipe's own of this kind, else one with the recipe's intervals."""
    mixture = recipe.stages[0].mixture
    if mixture.type == kind and mixture.interval_steps is not None:
        return mixture.model_dump(mode="json")
    return {"type": kind, "interval_steps": mixture.interval_steps or _interval_steps(recipe, count_steps)}


def _interval_steps(recipe: Recipe, count_steps: CountSteps) -> int:
    """A tenth of the shortest stage: one length serves all, and none may be longer than its stage."""
    known = [_steps(stage) for stage in recipe.stages]
    steps = [found for found in known if found is not None]
    shortest = min(steps) if len(steps) == len(known) else count_steps()
    return max(1, shortest // INTERVALS_PER_RUN)


def _steps(stage: StageConfig) -> int | None:
    """Steps of a stage as its budget says; None where they depend on the data."""
    budget: Budget = stage.optimisation.budget
    if budget.epochs is not None:
        return None
    limits = [] if budget.steps is None else [budget.steps]
    limits += [] if budget.tokens is None else [budget.tokens // stage.optimisation.batch_tokens]
    return min(limits)


def _on_epochs(objective: str) -> Callable[[Recipe, CountSteps], Overrides]:
    return lambda recipe, _: {_OBJECTIVE: _objective(recipe, objective), _MIXTURE: _epochs(recipe)}


def _compared_on_epochs(objective: str) -> Callable[[Recipe, CountSteps], Overrides]:
    return lambda recipe, _: {_OBJECTIVE: _compared(recipe, objective), _MIXTURE: _epochs(recipe)}


def _reverse_kl(recipe: Recipe, _: CountSteps) -> Overrides:
    return {
        _OBJECTIVE: {**_compared(recipe, "kd"), "divergence": {"type": "reverse_kl"}},
        _MIXTURE: _epochs(recipe),
    }


def _kd_mixed_by(kind: str) -> Callable[[Recipe, CountSteps], Overrides]:
    return lambda recipe, count_steps: {
        _OBJECTIVE: _compared(recipe, "kd"),
        _MIXTURE: _intervals(recipe, kind, count_steps),
    }


def _doremi(recipe: Recipe, count_steps: CountSteps) -> Overrides:
    interval_steps = _intervals(recipe, "doremi", count_steps)["interval_steps"]
    weights = f"{{output}}/prepare/{_PROXY}-seed{{seed}}"
    mixture = {"type": "doremi", "weights_from": weights, "interval_steps": interval_steps}
    return {_OBJECTIVE: _objective(recipe, "sft"), _MIXTURE: mixture}


def _doremi_preparations(recipe: Recipe) -> dict[str, Overrides]:
    """Reference and proxy are trained from the student's own start, on the recipe's rows and budget."""
    proxy = {
        **_objective(recipe, "doremi_proxy", reference="-"),
        "reference": f"{{output}}/prepare/{_REFERENCE}-seed{{seed}}",
    }
    plain = {_MIXTURE: {"type": "proportional"}}
    return {
        _REFERENCE: {_OBJECTIVE: _objective(recipe, "sft"), **plain},
        _PROXY: {_OBJECTIVE: proxy, **plain},
    }


METHODS: dict[str, Method] = {
    "sft": Method("cross-entropy on the answers, no teacher", _on_epochs("sft")),
    "cpt": Method("the same on raw text: continual pre-training", _on_epochs("sft")),
    "doremi": Method("the same, domains by the weights that a DoReMi proxy finds first", _doremi, _doremi_preparations),
    "kd": Method("distillation on the data's sequences, as the recipe sets it", _compared_on_epochs("kd")),
    "reverse_kl": Method("the same with reverse KL", _reverse_kl),
    "gkd": Method("on-policy distillation", _on_epochs("gkd")),
    "ted": Method("distillation of layers as well, through filters (TED)", _compared_on_epochs("ted")),
    "sequence_kd": Method("cross-entropy on answers that the teacher writes", _on_epochs("sequence_kd")),
    "proportional": Method("KD, domains by their size, drawn by intervals", _kd_mixed_by("proportional")),
    "equal": Method("KD, every domain alike", _kd_mixed_by("equal")),
    "ddk": Method("KD, domains by how far the student lags its teacher", _kd_mixed_by("ddk")),
    "ddk_unsmoothed": Method("the same without smoothing", _kd_mixed_by("ddk_unsmoothed")),
}
