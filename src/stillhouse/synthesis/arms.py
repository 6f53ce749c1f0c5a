"""The arms of a low-resource study, from one recipe of two stages: synthetic rows first, human rows then.

They are the controls that a claim about two-stage distillation needs: each stage alone, the other
order, one stage of both, each stage's loss, more updates without new rows, more or fewer synthetic
rows, more or fewer human ones. An arm is a set of overrides for the study runner, and differs from
the recipe in ``stages`` alone, so the same rows are held out in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.recipe import Recipe, StageConfig

ACROSS_SIZES = ("human_sft", "human_kd", "synthetic_kd", "two_stage_kd_kd")
"""Arms that are also run with fewer human rows."""
ALL_ROWS = "all"
_LOSSES = ("sft", "kd")
_SAME_RATIO = 0.05
"""A ratio so near to the reached one, as a share of it, means all rows."""

Overrides = dict[str, Any]
Stage = dict[str, Any]


def arms(
    recipe: Recipe, *, synthetic: str, ratio: float, num_human: int, ratios: Sequence[float] = ()
) -> dict[str, Overrides]:
    """Return the overrides of every arm by its label, the plain ones first.

    The recipe's first stage is the one on synthetic rows and its second the one on human rows; both
    count their budgets in epochs. ``synthetic`` is the file of synthetic rows, ``ratio`` how many of
    them there are for each of ``num_human`` human rows. Smaller ``ratios`` become arms of their own,
    on nested subsets; :func:`split_ratios` says which do not.

    ``mixed_natural`` sees every row as often as stage one sees its own; ``mixed_matched`` and
    ``human_sft_matched`` and ``human_kd_matched`` make as many updates as both stages together. Reversed
    and mixed arms with ``sft`` in their name learn by SFT, the others by KD.

    On-policy arms need a teacher beside the student: they turn a cached one into a live one, and are left
    out where the teacher is a server.

    Raises RecipeError naming the field when the recipe has other stages, or no teacher.
    """
    first, second = _two_stages(recipe)
    built = _Builder(recipe, first, second, synthetic)
    epochs_synthetic, epochs_human = _epochs(first, 0), _epochs(second, 1)
    both = epochs_synthetic * ratio + epochs_human
    found = {f"human_{loss}": [built.human(loss)] for loss in (*_LOSSES, "gkd")}
    found |= {f"human_{loss}_matched": [built.human(loss, epochs=both)] for loss in _LOSSES}
    found |= {f"synthetic_{loss}": [built.synthetic(loss)] for loss in _LOSSES}
    for before in _LOSSES:
        for after in _LOSSES:
            found[f"two_stage_{before}_{after}"] = [built.synthetic(before), built.human(after)]
    found["two_stage_kd_gkd"] = [built.synthetic("kd"), built.human("gkd")]
    for loss, ending in (("kd", ""), ("sft", "_sft")):
        found[f"reversed_{loss}_{loss}"] = [built.human(loss), built.synthetic(loss)]
        found[f"mixed_natural{ending}"] = [built.mixed(loss, epochs_synthetic)]
        found[f"mixed_matched{ending}"] = [built.mixed(loss, both / (ratio + 1))]
    for smaller in split_ratios(ratios, ratio)[0]:
        limit = max(1, round(smaller * num_human))
        found[f"two_stage_kd_kd_r{smaller:g}"] = [built.synthetic("kd", limit=limit), built.human("kd")]
    return {label: overrides for label, stages in found.items() if (overrides := _overrides(recipe, stages))}


def split_ratios(ratios: Sequence[float], reached: float) -> tuple[list[float], list[str]]:
    """Return the ratios that become arms of their own, and in words why each other one does not.

    One within 5 % of what was ``reached`` is the full set, and a larger one cannot be had. Raises
    RecipeError for a ratio that is not above zero.
    """
    smaller, left_out = [], []
    for ratio in ratios:
        if ratio <= 0:
            raise RecipeError(f"ratios={ratio:g}: expected synthetic rows for each human one, so a number above 0")
        if abs(ratio - reached) <= _SAME_RATIO * reached:
            left_out.append(f"ratio {ratio:g}: no arm of its own, {reached:g} was reached and two_stage_kd_kd has it")
        elif ratio > reached:
            left_out.append(f"ratio {ratio:g}: left out, the synthesis reached {reached:g} rows for each human one")
        else:
            smaller.append(ratio)
    return smaller, left_out


def _overrides(recipe: Recipe, stages: list[Stage]) -> Overrides | None:
    """The fields of an arm; None where this teacher cannot serve it."""
    assert recipe.teacher is not None
    if recipe.teacher.source == "live" or all(stage["objective"]["type"] != "gkd" for stage in stages):
        return {"stages": stages}
    return (
        {"teacher.source": "live", "teacher.cache": None, "stages": stages}
        if recipe.teacher.source == "cache"
        else None
    )


def arms_study(
    recipe: Recipe,
    *,
    base: str,
    output: str,
    seeds: Sequence[int],
    synthetic: str,
    ratio: float,
    num_human: int,
    ratios: Sequence[float] = (),
    sizes: Sequence[int] = (),
) -> dict[str, Any]:
    """Return a study file as a mapping: all arms on all rows, and some with fewer human rows.

    ``sizes`` are numbers of human rows below ``num_human``. With them ``synthetic`` must hold
    ``{human}``, so that fewer human rows also come with the rows that were made from them alone, and
    with several seeds ``{seed}``, the run's seed, which draws those human rows. Raises RecipeError
    where it does not, for other sizes, without a seed, and as :func:`arms` does.
    """
    if not seeds:
        raise RecipeError("seeds: there is none; name at least one, for example 0,1,2")
    _check_sizes(sizes, num_human, synthetic, len(set(seeds)))
    labels = arms(recipe, synthetic=synthetic, ratio=ratio, num_human=num_human, ratios=ratios)
    axes: dict[str, dict[str, Overrides]] = {}
    exclude: list[dict[str, str]] = []
    if sizes:
        axes["human"] = {str(size): {"data.train.*.limit": size} for size in sorted(sizes)} | {ALL_ROWS: {}}
        skipped = [label for label in labels if label not in ACROSS_SIZES]
        exclude = [{"human": str(size), "arm": label} for size in sorted(sizes) for label in skipped]
    axes["arm"] = labels
    roles = {"method": "arm"} | ({"size": "human"} if sizes else {})
    study = {"name": "Low-resource arms", "base": base, "output": output, "seeds": list(seeds), "axes": axes}
    study |= {"roles": roles, "baseline": "human_sft"}
    return study | ({"exclude": exclude} if exclude else {})


def _check_sizes(sizes: Sequence[int], num_human: int, synthetic: str, num_seeds: int) -> None:
    """Raise RecipeError for sizes that give no evidence, or wrong evidence."""
    for size in sizes:
        if not 1 <= size < num_human:
            raise RecipeError(
                f"sizes={size}: there are {num_human} human rows, and an arm with all of them is there anyway; name"
                f" sizes from 1 to {num_human - 1}"
            )
    if sizes and "{human}" not in synthetic:
        raise RecipeError(
            f"synthetic={synthetic}: a sweep over human rows needs rows made from as many seeds; write {{human}}"
            " into the path, and synthesize once for each size"
        )
    if sizes and num_seeds > 1 and "{seed}" not in synthetic:
        raise RecipeError(
            f"synthetic={synthetic}: each seed draws other human rows, so rows made under one seed come from rows that"
            " another must not see; write {seed} into the path, and synthesize once for each size and seed"
        )


class _Builder:
    """Stages of the arms, each with the optimisation of the recipe's stage on the same rows."""

    def __init__(self, recipe: Recipe, first: StageConfig, second: StageConfig, synthetic: str) -> None:
        self._recipe, self._first, self._second, self._path = recipe, first, second, synthetic

    def synthetic(self, loss: str, *, limit: int | None = None) -> Stage:
        return self._stage("synthetic", loss, self._first, data=[self._rows(limit)])

    def human(self, loss: str, *, epochs: float | None = None) -> Stage:
        return self._stage("human", loss, self._second, epochs=epochs)

    def mixed(self, loss: str, epochs: float) -> Stage:
        human = [source.model_dump(mode="json", exclude_defaults=True) for source in self._recipe.data.train]
        return self._stage("mixed", loss, self._first, data=[self._rows(None), *human], epochs=epochs)

    def _rows(self, limit: int | None) -> dict[str, Any]:
        return {"path": self._path} | ({} if limit is None else {"limit": limit})

    def _stage(
        self,
        name: str,
        loss: str,
        like: StageConfig,
        *,
        data: list[dict[str, Any]] | None = None,
        epochs: float | None = None,
    ) -> Stage:
        optimisation = like.optimisation.model_dump(mode="json", exclude_defaults=True)
        # Written out even at its default, so that the study file says how long each arm trains.
        optimisation["budget"] = {"epochs": round(_epochs(like, 0) if epochs is None else epochs, 4)}
        # A stage whose rows were all filtered away is left out: the arm is then the one without it.
        rows = {} if data is None else {"data": {"train": data, "when_empty": "skip"}}
        return {"name": name, **rows, "objective": self._objective(loss), "optimisation": optimisation}

    def _objective(self, loss: str) -> dict[str, Any]:
        """The recipe's own objective of this kind, with its parameters; else the kind at its defaults."""
        own = (s.objective for s in (self._second, self._first) if s.objective.type == loss)
        found = next(own, None)
        return {"type": loss} if found is None else found.model_dump(mode="json", exclude_defaults=True)


def _two_stages(recipe: Recipe) -> tuple[StageConfig, StageConfig]:
    if recipe.teacher is None:
        raise RecipeError("teacher: the arms compare SFT with KD, and there is no teacher; add one")
    if len(recipe.stages) != 2 or recipe.stages[0].data is None or recipe.stages[1].data is not None:
        raise RecipeError(
            "stages: the arms are made from two stages, the first with `data` that names the synthetic rows, the second"
            " without, on the recipe's own human rows (recipes/two_stage.yaml)"
        )
    return recipe.stages[0], recipe.stages[1]


def _epochs(stage: StageConfig, number: int) -> float:
    budget = stage.optimisation.budget
    if budget.epochs is None or budget.steps is not None or budget.tokens is not None:
        raise RecipeError(
            f"stages.{number}.optimisation.budget: the arms differ in their rows, so their budgets must be in epochs alone"
        )
    return budget.epochs
