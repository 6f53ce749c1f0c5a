"""A study file: one base recipe, the axes along which its runs differ, and the seeds.

Pure, like the recipe: no torch, and no file but the study's own is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from stillhouse.errors import did_you_mean
from stillhouse.recipe import Config
from stillhouse.recipe_io import read_mapping, validate

RESERVED_FIELDS = ("seed", "output.dir")
"""Recipe fields that the study itself sets."""


def _text(value: Any) -> Any:
    """YAML reads the label 1000 as a number and `on` as true; the first is as good as its text."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads this label as {str(value).lower()}; put it in quotes")
    return str(value) if isinstance(value, (int, float)) else value


def _mapping(value: Any) -> Any:
    """A label without overrides (`kd:`) is the base recipe itself."""
    return {} if value is None else value


Label = Annotated[
    str, BeforeValidator(_text), StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]*$", max_length=80)
]
"""Labels name folders, so they have no spaces or slashes."""
Overrides = Annotated[dict[str, Any], BeforeValidator(_mapping)]
Role = Literal["method", "size", "teacher"]


def axis_roles(axes: Sequence[str], named: Mapping[str, str]) -> dict[str, str | None]:
    """Return the axis that plays each part (method, size, teacher), None for a part that no axis plays.

    ``named`` goes first, then an axis of the part's own name; a study's only axis is its method unless
    it is named as something else. Raises ValueError for an axis that is not there or plays two parts.
    """
    parts: tuple[str, ...] = get_args(Role)
    for part, axis in named.items():
        if axis not in axes:
            raise ValueError(f"roles.{part}={axis}: there is no such axis.{did_you_mean(axis, axes)}")
    if len(set(named.values())) < len(named):
        raise ValueError(f"roles={dict(named)}: an axis plays two parts; name each once")
    free = set(axes) - set(named.values())
    found = {part: named.get(part, part if part in free else None) for part in parts}
    if len(axes) == 1 and not any(found.values()):
        found["method"] = axes[0]
    return found


class StudyBudget(Config):
    """The same cost for every run, instead of the budgets of its stages.

    Several stages share it in the proportion of their own budgets, which must then be in one unit.
    """

    tokens: int | None = Field(default=None, ge=1)
    """Trained tokens, prompts included."""
    updates: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    flops: float | None = Field(default=None, gt=0)
    """Floating-point operations by the rule of ``stillhouse.study.cost``."""

    @model_validator(mode="after")
    def _one(self) -> StudyBudget:
        if sum(value is not None for value in (self.tokens, self.updates, self.flops)) != 1:
            raise ValueError("give exactly one of tokens, updates, flops")
        return self


class StudyConfig(Config):
    name: str = Field(min_length=1)
    base: str
    """The recipe that all runs start from; relative to the study file."""
    output: str
    """Folder of the study. Like the paths in the recipe it starts at the working directory."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    overrides: Overrides = Field(default_factory=dict)
    """Recipe fields that all runs set, before the axes do: `{data.validation: [{path: held_out.jsonl}]}`."""
    prepare: dict[Label, Overrides] = Field(default_factory=dict)
    """Runs that others build on, once for each seed, with their recipe fields; `budget` is not for them. A run that
    names `{output}/prepare/LABEL-seed{seed}` waits until that directory holds a finished run."""
    axes: dict[Label, dict[Label, Overrides]] = Field(default_factory=dict)
    """Axis, label, and the recipe fields of that label: `stages.0.objective.type: sft`. `*` stands for all
    items of a list (`data.train.*.limit: 1000`); a value may be a whole object. In its strings `{seed}` and
    `{AXIS}` stand for the run's seed and its label on that axis. Axes are applied in order."""
    roles: dict[Role, Label] = Field(default_factory=dict)
    """Which axis plays which part in the analysis: `{method: arm}`. A part that is not named is played by the axis
    of its name; a study's only axis is its method. All other axes make groups, compared each within itself."""
    baseline: Label | None = None
    """Label of the method that the others are compared with; None: `sft`, else `cpt`, else one without a teacher."""
    exclude: tuple[dict[Label, Label], ...] = ()
    """Combinations that are left out: `{method: kd, size: "100"}` leaves out every run with both labels."""
    budget: StudyBudget | None = None
    retry: int = Field(default=0, ge=0)
    """Times that a failing run is tried again at once, before it counts as failed."""
    jobs: int = Field(default=1, ge=1)
    """Runs at one time; local ones share the cores."""
    keep_checkpoints: bool = False
    """Finished runs keep their checkpoints, optimizer state included; otherwise only the model stays."""
    parallel: Literal["local", "ray"] = "local"
    """`local`: worker processes here. `ray`: tasks on a Ray cluster whose machines share the folder."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> StudyConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: a seed stands twice; name each once")
        return self

    @model_validator(mode="after")
    def _axes_have_labels(self) -> StudyConfig:
        for axis, labels in self.axes.items():
            if not labels:
                raise ValueError(f"axes.{axis}: no label; give at least one, for example `{axis}: {{base: {{}}}}`")
        return self

    @model_validator(mode="after")
    def _fields_are_free(self) -> StudyConfig:
        labels = {f"axes.{axis}.{label}": fields for axis, ls in self.axes.items() for label, fields in ls.items()}
        prepared = {f"prepare.{label}": fields for label, fields in self.prepare.items()}
        for where, overrides in {"overrides": self.overrides, **prepared, **labels}.items():
            for field in overrides:
                if field in RESERVED_FIELDS:
                    way = "list it under `seeds`" if field == "seed" else "it follows from `output` and the labels"
                    raise ValueError(f"{where}: {field} is set by the study; {way}")
        return self

    @model_validator(mode="after")
    def _exclusions_exist(self) -> StudyConfig:
        for i, combination in enumerate(self.exclude):
            where = f"exclude.{i}"
            if not combination:
                raise ValueError(f"{where}: an empty combination would leave out every run; name at least one label")
            for axis, label in combination.items():
                if axis not in self.axes:
                    raise ValueError(f"{where}: there is no axis {axis!r}.{did_you_mean(axis, self.axes)}")
                if label not in self.axes[axis]:
                    raise ValueError(
                        f"{where}: axis {axis!r} has no label {label!r}.{did_you_mean(label, self.axes[axis])}"
                    )
        return self

    @model_validator(mode="after")
    def _roles_exist(self) -> StudyConfig:
        roles = axis_roles(list(self.axes), {str(part): axis for part, axis in self.roles.items()})
        labels = [] if roles["method"] is None else list(self.axes[roles["method"]])
        if self.baseline is not None and self.baseline not in labels:
            known = f"it has {', '.join(labels)}" if labels else "there is none; set roles.method to an axis"
            raise ValueError(
                f"baseline={self.baseline}: no such label on the method's axis; {known}."
                f"{did_you_mean(self.baseline, labels)}"
            )
        return self

    @classmethod
    def from_yaml(cls, path: Path) -> StudyConfig:
        """Read a study file. Raises RecipeError with one line for each wrong field."""
        return cls.from_mapping(read_mapping(path), where=str(path))

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], where: str = "study") -> StudyConfig:
        """Check a study given as a mapping, with the same messages as a file's."""
        return validate(cls, data, where=where)

    def to_yaml(self) -> str:
        """The study as YAML, without what is at its default."""
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True, width=120
        )
