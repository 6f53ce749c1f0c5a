"""The methods that ``stillhouse compare --methods`` names: what each changes in a recipe, and nothing else.

To add one, add an entry to ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import RecipeError, did_you_mean
from stillhouse.recipe import ProportionalMixture, Recipe

INTERVALS_PER_RUN = 10
"""Intervals of a mixture that the recipe gives no length for."""
_OBJECTIVE, _MIXTURE = "stages.*.objective", "stages.*.mixture"
_REFERENCE, _PROXY = "doremi_reference", "doremi_proxy"

Overrides = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A named change of every stage of a recipe. ``overrides`` are recipe fields, as in a study file."""

    description: str
    overrides: Callable[[Recipe], Overrides]
    prepare: Callable[[Recipe], dict[str, Overrides]] | None = None
    """Runs that must be there before, as in a study file."""


def method_overrides(names: Sequence[str], recipe: Recipe) -> dict[str, Overrides]:
    """The labels of a study's axis ``method``. Raises RecipeError for an unknown name or one given twice."""
    found: dict[str, Overrides] = {}
    for name in names:
        if name not in METHODS:
            raise RecipeError(
                f"--methods {name}: unknown; known are {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
            )
        if name in found:
            raise RecipeError(f"--methods: {name} stands twice; name each method once")
        found[name] = METHODS[name].overrides(recipe)
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


def _epochs(recipe: Recipe) -> dict[str, Any]:
    """Each domain by its share of the tokens: as the recipe draws that, else plain epochs."""
    mixture = recipe.stages[0].mixture
    return mixture.model_dump(mode="json") if isinstance(mixture, ProportionalMixture) else {"type": "proportional"}


def _intervals(recipe: Recipe, kind: str) -> dict[str, Any]:
    """A mixture drawn by intervals: the recipe's own of this kind, else one with the recipe's intervals."""
    mixture = recipe.stages[0].mixture
    if mixture.type == kind and mixture.interval_steps is not None:
        return mixture.model_dump(mode="json")
    return {"type": kind, "interval_steps": mixture.interval_steps or _interval_steps(recipe, kind)}


def _interval_steps(recipe: Recipe, kind: str) -> int:
    optimisation = recipe.stages[0].optimisation
    budget = optimisation.budget
    limits = [] if budget.steps is None else [budget.steps]
    limits += [] if budget.tokens is None else [budget.tokens // optimisation.batch_tokens]
    if not limits:
        raise RecipeError(
            f"--methods {kind}: the recipe says neither how long its intervals are nor how many steps it trains; "
            "give stages.0.mixture.interval_steps, or a budget in steps or tokens"
        )
    return max(1, min(limits) // INTERVALS_PER_RUN)


def _on_epochs(objective: str) -> Callable[[Recipe], Overrides]:
    return lambda recipe: {_OBJECTIVE: _objective(recipe, objective), _MIXTURE: _epochs(recipe)}


def _reverse_kl(recipe: Recipe) -> Overrides:
    return {
        _OBJECTIVE: {**_objective(recipe, "kd"), "divergence": {"type": "reverse_kl"}},
        _MIXTURE: _epochs(recipe),
    }


def _kd_mixed_by(kind: str) -> Callable[[Recipe], Overrides]:
    return lambda recipe: {_OBJECTIVE: _objective(recipe, "kd"), _MIXTURE: _intervals(recipe, kind)}


def _doremi(recipe: Recipe) -> Overrides:
    interval_steps = _intervals(recipe, "doremi")["interval_steps"]
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
    "kd": Method("distillation on the data's sequences, as the recipe sets it", _on_epochs("kd")),
    "reverse_kl": Method("the same with reverse KL", _reverse_kl),
    "gkd": Method("on-policy distillation", _on_epochs("gkd")),
    "ted": Method("distillation of layers as well, through filters (TED)", _on_epochs("ted")),
    "sequence_kd": Method("cross-entropy on answers that the teacher writes", _on_epochs("sequence_kd")),
    "proportional": Method("KD, domains by their size, drawn by intervals", _kd_mixed_by("proportional")),
    "equal": Method("KD, every domain alike", _kd_mixed_by("equal")),
    "ddk": Method("KD, domains by how far the student lags its teacher", _kd_mixed_by("ddk")),
    "ddk_unsmoothed": Method("the same without smoothing", _kd_mixed_by("ddk_unsmoothed")),
}
