"""The arms of a study as a page names and draws them.

An arm is what is compared at each size: a method with its teacher, and the labels of all other axes
(its group). A method that learns from no teacher has the same runs under every teacher; it is one arm here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.report.text import shorten

Json = Mapping[str, Any]
ArmKey = tuple[str | None, str | None, tuple[tuple[str, str], ...]]

MAX_LABEL = 40
COLORS = ("@student", "@run2", "@run3", "@run4", "@run5", "@teacher")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is named and drawn: its colour is its method, its dash and symbol its teacher."""

    name: str
    color: str
    dash: str
    symbol: str


def arm_of(key: ArmKey) -> dict[str, Any]:
    """The arm of a key, as ``analysis.json`` has it."""
    method, teacher, group = key
    return {"method": method, "teacher": teacher, "group": dict(group)}


def key_of(arm: Json) -> ArmKey:
    """An arm of ``analysis.json`` as something that can be looked up."""
    return arm["method"], arm["teacher"], tuple(sorted(arm["group"].items()))


class Arms:
    """All arms of an analysis in the study's order."""

    def __init__(self, analysis: Json) -> None:
        self._cells: dict[ArmKey, list[Json]] = {}
        for cell in analysis["cells"]:
            self._cells.setdefault(key_of(cell["arm"]), []).append(cell)
        self.baseline: str | None = analysis["baseline"]
        self.baseline_name = shorten(self.baseline, MAX_LABEL)
        methods = list(dict.fromkeys(method for method, _, _ in self._cells))
        self._by_method = len(methods) > 1
        teachers = list(dict.fromkeys(teacher for _, teacher, _ in self._cells))
        self.many_teachers = len(teachers) > 1
        self._twins = self._find_twins(analysis["costs"])
        self._styles: dict[ArmKey, ArmStyle] = {}
        palette: dict[Any, str] = {self.baseline: "@before"} if self.baseline is not None else {}
        for place, key in enumerate(self._cells):
            kind = key[0] if self._by_method else key
            color = palette.setdefault(kind, COLORS[(len(palette) - (self.baseline is not None)) % len(COLORS)])
            step = 0 if key[:1] + key[2:] in self._twins else teachers.index(key[1])
            name = self._name(key, many_teachers=self.many_teachers, place=place)
            taken = [style.name for style in self._styles.values()]
            self._styles[key] = ArmStyle(
                # Long labels may be alike in all that is shown of them.
                name=name if name not in taken or key[:1] + key[2:] in self._twins else f"{name} ({place + 1})",
                color=color,
                dash=DASHES[step % len(DASHES)],
                symbol=SYMBOLS[step % len(SYMBOLS)],
            )

    @property
    def groups(self) -> list[tuple[tuple[str, str], ...]]:
        """What is never compared with each other, for example two students; one empty group where there is no such axis.

        A study without methods compares exactly these labels, so there they are all one.
        """
        found = list(dict.fromkeys(key[2] for key in self._cells))
        return found if self.splits else [()]

    @property
    def splits(self) -> bool:
        """Whether each group gets charts of its own."""
        return self._by_method and len({key[2] for key in self._cells}) > 1

    def in_group(self, group: tuple[tuple[str, str], ...]) -> list[ArmKey]:
        """The arms of one group, each method without a teacher once."""
        return [key for key in self.distinct if key[2] == group or not self.splits]

    @property
    def distinct(self) -> list[ArmKey]:
        """All arms, a method that is the same under every teacher once."""
        first: dict[Any, ArmKey] = {}
        for key in self._cells:
            same = key[:1] + key[2:]
            first.setdefault(same if same in self._twins else key, key)
        return list(first.values())

    def style(self, key: ArmKey) -> ArmStyle:
        """Name and look of an arm."""
        return self._styles[key]

    def name(self, arm: Json) -> str:
        """The name of an arm given as ``analysis.json`` has it; one without finished runs is put together anew."""
        key = key_of(arm)
        return self._styles[key].name if key in self._styles else self._name(key, many_teachers=True, place=0)

    def cells(self, key: ArmKey) -> list[Json]:
        """An arm's cells, from few rows to many."""
        return sorted(self._cells[key], key=lambda cell: (cell["rows"] is not None, cell["rows"] or 0.0))

    def _name(self, key: ArmKey, *, many_teachers: bool, place: int) -> str:
        method, teacher, group = key
        parts = [method] if method is not None else []
        if teacher is not None and many_teachers and key[:1] + key[2:] not in self._twins:
            parts.append(teacher if method is None else f"{teacher} teacher")
        parts += [f"{axis} {label}" for axis, label in group]
        return ", ".join(shorten(part, MAX_LABEL) for part in parts) or f"arm {place + 1}"

    def _find_twins(self, costs: Sequence[Json]) -> set[Any]:
        """Method and group of arms that are the same under every teacher, or were run under one and spent nothing on it."""
        spent = {cost["arm"]["method"] for cost in costs if cost["teacher_share"] != 0}
        variants: dict[Any, list[list[tuple[Any, float]]]] = {}
        for key, cells in self._cells.items():
            numbers = [(cell["size"], cell["nll"]["mean"]) for cell in cells]
            variants.setdefault(key[:1] + key[2:], []).append(numbers)
        return {
            same
            for same, found in variants.items()
            if all(f == found[0] for f in found) and (len(found) > 1 or same[0] not in spent)
        }


def group_title(title: str, group: Sequence[tuple[str, str]]) -> str:
    """A chart's title with the group that it shows: ``Gain by data size, student small``."""
    return ", ".join([title, *(shorten(f"{axis} {label}", MAX_LABEL) for axis, label in group)])
