"""Write docs/reference/recipe.md from the recipe's own classes, so that the two cannot disagree."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stillhouse import recipe
from stillhouse.recipe import (
    data,
    mixtures,
    models,
    objectives,
    optimisation,
    running,
    stages,
    synthesis,
    whole,
)

MODULES = (whole, models, data, stages, objectives, mixtures, optimisation, synthesis, running)
"""The order of the page: the recipe, then its parts."""
TARGET = Path(__file__).parents[1] / "docs" / "reference" / "recipe.md"
HEAD = """# Recipe reference

Written by `scripts/write_recipe_reference.py` from `src/stillhouse/recipe/`. Unknown keys are errors.
"""


def reference() -> str:
    """Return the page: one table a class, module by module."""
    sections = [HEAD]
    for module in MODULES:
        for name, cls in vars(module).items():
            is_part = isinstance(cls, type) and issubclass(cls, BaseModel) and cls.__module__ == module.__name__
            if is_part and cls.model_fields:
                sections.append(_section(name, cls))
    return "\n".join(sections)


def _section(name: str, cls: type[BaseModel]) -> str:
    lines = [f"## {name}", ""]
    if cls.__doc__ and cls.__doc__ != recipe.Config.__doc__:
        lines += [" ".join(cls.__doc__.split()), ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field, info in cls.model_fields.items():
        default = "required" if info.is_required() else _default(info.get_default(call_default_factory=True))
        meaning = " ".join((info.description or "").split())
        lines.append(f"| `{field}` | {_type(_annotation(cls, field))} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _annotation(cls: type[BaseModel], field: str) -> str:
    """The annotation as it stands in the source, of the class that wrote it."""
    return str(next(c.__annotations__[field] for c in cls.__mro__ if field in c.__annotations__))


def _default(value: object) -> str:
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "its own defaults"
    return f"`{value!r}`"


def _type(annotation: str) -> str:
    return re.sub(r"\s+", " ", annotation).replace("|", "or").replace('"', "'")


if __name__ == "__main__":
    page = reference()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == page else f"{TARGET.name} is out of date: run this script")
    TARGET.write_text(page, encoding="utf-8")
