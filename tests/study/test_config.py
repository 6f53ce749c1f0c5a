"""Study files: what they may say, and one line for each wrong field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import RecipeError
from stillhouse.study.config import StudyConfig, axis_roles


def study(**fields: Any) -> dict[str, Any]:
    axes = {"method": {"kd": {}, "sft": {"stages.0.objective": {"type": "sft"}}}, "size": {"100": {}, "1000": {}}}
    return {"name": "s", "base": "base.yaml", "output": "out", "axes": axes, **fields}


def test_the_shortest_study_has_one_seed_and_one_job() -> None:
    config = StudyConfig.from_mapping({"name": "s", "base": "base.yaml", "output": "out"})
    assert (config.seeds, config.axes, config.exclude, config.retry, config.jobs) == ((0,), {}, (), 0, 1)


def test_yaml_labels_that_are_numbers_become_text_and_an_empty_label_is_the_base(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\nbase: b.yaml\noutput: o\n"
        "axes:\n  method:\n    kd:\n    sft: {stages.0.objective.type: sft}\n"
        "  size:\n    100: {data.train.*.limit: 100}\n    0.5: {}\n"
        "exclude: [{method: sft, size: 100}]\n"
    )
    config = StudyConfig.from_yaml(path)
    assert list(config.axes["size"]) == ["100", "0.5"]
    assert config.axes["method"]["kd"] == {}
    assert config.exclude == ({"method": "sft", "size": "100"},)


def test_a_study_written_as_yaml_is_read_back_equal(tmp_path: Path) -> None:
    config = StudyConfig.from_mapping(study(seeds=[3, 1], exclude=[{"method": "kd", "size": "100"}], jobs=2))
    path = tmp_path / "study.yaml"
    path.write_text(config.to_yaml())
    assert StudyConfig.from_yaml(path) == config
    assert "retry" not in path.read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": [0]}, r"seed: unknown key. Did you mean 'seeds'\?"),
        ({"jobs": 0}, "jobs=0"),
        ({"seeds": []}, "seeds: tuple should have at least 1 item"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: a seed stands twice"),
        ({"seeds": [-1]}, r"seeds.0=-1"),
        ({"parallel": "dask"}, "parallel='dask'"),
        ({"budget": {}}, "budget: give exactly one of tokens, updates, flops"),
        ({"budget": {"tokens": 5, "updates": 5}}, "budget: give exactly one"),
        ({"budget": {"token": 5}}, r"budget.token: unknown key. Did you mean 'tokens'\?"),
        ({"axes": {"method": {}}}, "axes.method: no label"),
        ({"axes": {"method": {"a b": {}}}}, "axes.method.a b"),
        ({"axes": {"method": {True: {}}}}, "reads this label as true; put it in quotes"),
        ({"axes": {"x": {"a": {"seed": 1}}}}, "axes.x.a: seed is set by the study; list it under `seeds`"),
        ({"axes": {"x": {"a": {"output.dir": "z"}}}}, "output.dir is set by the study"),
        ({"overrides": {"seed": 1}}, "overrides: seed is set by the study"),
        ({"roles": {"metod": "size"}}, "roles.metod"),
        ({"roles": {"method": "siz"}}, r"roles.method=siz: there is no such axis. Did you mean 'size'\?"),
        ({"roles": {"method": "size", "size": "size"}}, "an axis plays two parts"),
        ({"baseline": "sf"}, r"baseline=sf: no such label on the method's axis; it has kd, sft. Did you mean 'sft'\?"),
        ({"baseline": "sft", "roles": {"teacher": "method"}}, "there is none; set roles.method to an axis"),
        ({"exclude": [{}]}, "exclude.0: an empty combination"),
        ({"exclude": [{"methd": "kd"}]}, r"exclude.0: there is no axis 'methd'. Did you mean 'method'\?"),
        ({"exclude": [{"method": "kdd"}]}, r"exclude.0: axis 'method' has no label 'kdd'. Did you mean 'kd'\?"),
    ],
)
def test_every_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        StudyConfig.from_mapping(study(**fields), where="study.yaml")


def test_a_budget_counts_in_any_one_unit() -> None:
    for unit in ("tokens", "updates", "flops"):
        budget = StudyConfig.from_mapping(study(budget={unit: 7})).budget
        assert budget is not None
        assert getattr(budget, unit) == 7


@pytest.mark.parametrize(
    ("axes", "named", "found"),
    [
        (["method", "size"], {}, ("method", "size", None)),
        (["arm", "human"], {"method": "arm", "size": "human"}, ("arm", "human", None)),
        (["arm"], {}, ("arm", None, None)),
        (["size"], {}, (None, "size", None)),
        (["size"], {"method": "size"}, ("size", None, None)),
        (["arm", "rank"], {}, (None, None, None)),
        (["method", "arm"], {"method": "arm"}, ("arm", None, None)),
        ([], {}, (None, None, None)),
    ],
)
def test_axes_play_the_parts_they_are_named_for(axes: list[str], named: dict[str, str], found: tuple[Any, ...]) -> None:
    assert tuple(axis_roles(axes, named).values()) == found
