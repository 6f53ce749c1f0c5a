"""Recipes as files: reading, overriding, and errors that name the field."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stillhouse import recipe as recipe_module
from stillhouse.errors import RecipeError, did_you_mean
from stillhouse.recipe import Recipe

ModelT = TypeVar("ModelT", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice (line {line})")
            if isinstance(key, (str, int, float, bool)):
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text, because it wants a dot and a signed exponent.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse safe YAML; a syntax error becomes a RecipeError with ``where`` and the line."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{place}: this is not valid YAML: {problem}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top is a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: there is no such file; `stillhouse init DATA` writes a recipe to start from"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected `key: value` lines at the top, found {type(data).__name__}")
    return data


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; ``overrides`` are ``key.sub=value`` texts, values in YAML.

    Raises RecipeError with one line for each wrong field.
    """
    data = read_mapping(path)
    for override in overrides:
        apply_override(data, override)
    return validate(Recipe, data, where=str(path))


def recipe_from_mapping(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as a mapping, with the same messages as a file's."""
    return validate(Recipe, data, where=where)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set ``a.b.0.c=value`` in nested mappings and lists, in place."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(
            f"override {override!r}: expected key.sub=value, for example stages.0.optimisation.learning_rate=1e-4"
        )
    key = key.strip()
    set_field(data, key, parse_yaml(text, f"override {key}"), where=f"override {override!r}")


def set_field(data: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set the dotted field ``a.b.0.c`` in nested mappings and lists, in place.

    ``*`` stands for every item of a list, and missing mappings are made. Raises RecipeError, which
    begins with ``where``, for an index that does not exist or a plain value that has no fields.
    """
    _set(data, key.split("."), 0, value, where)


def _set(node: Any, parts: list[str], depth: int, value: Any, where: str) -> None:
    part, here, last = parts[depth], ".".join(parts[: depth + 1]), depth == len(parts) - 1
    if isinstance(node, list):
        if part != "*" and (not part.isdigit() or int(part) >= len(node)):
            raise RecipeError(f"{where}: {here} is not an index of a list of {len(node)}")
        for index in range(len(node)) if part == "*" else [int(part)]:
            if last:
                node[index] = copy.deepcopy(value)
            else:
                _set(node[index], parts, depth + 1, value, where)
    elif isinstance(node, dict):
        if last:
            node[part] = copy.deepcopy(value)
        else:
            if node.get(part) is None:
                node[part] = {}
            _set(node[part], parts, depth + 1, value, where)
    else:
        raise RecipeError(f"{where}: {'.'.join(parts[:depth])} is a plain value and has no {part!r}")


def validate(model: type[ModelT], data: Mapping[str, Any], where: str) -> ModelT:
    """Validate ``data``; every wrong field becomes one line ``where: field=value: what; way out``."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        items = error.errors()
        # A tuple whose only item is wrong is also called too short: say the first alone.
        inner = {item["loc"][: len(other["loc"])] for item in items for other in items if item is not other}
        names = _all_field_names() if model.__module__.startswith(recipe_module.__name__) else _field_names(model)
        lines = [
            _describe(item, data, names) for item in items if item["type"] != "too_short" or item["loc"] not in inner
        ]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def dump_recipe(recipe: BaseModel) -> str:
    """Return the resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _describe(item: Any, data: Any, names: set[str]) -> str:
    path, value = _real_path(item["loc"], data)
    field = ".".join(map(str, path)) or "recipe"
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{field}: unknown key.{did_you_mean(str(path[-1]), names)}"
    if kind == "missing":
        return f"{field}: missing, and it has no default"
    if kind == "union_tag_not_found":
        return f"{field}: needs a `type`; one of {_tags(field)}" if _tags(field) else f"{field}: needs a `type`"
    if kind == "union_tag_invalid":
        allowed = context["expected_tags"].replace("'", "").split(", ")
        return f"{field}.type={context['tag']}: expected one of {', '.join(allowed)}.{did_you_mean(context['tag'], allowed)}"
    if kind == "value_error":
        return f"{field}: {context['error']}" if path else str(context["error"])
    shown = "" if isinstance(value, (dict, list)) else f"={value!r}"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{field}{shown}: {message}"


def _real_path(loc: Iterable[str | int], data: Any) -> tuple[list[str | int], Any]:
    """Drop the union tags that pydantic puts into a location, and find the value there."""
    path: list[str | int] = []
    node = data
    parts = list(loc)
    for i, part in enumerate(parts):
        children: Any = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, Mapping) and part in children:
            node = children[part]
        elif i < len(parts) - 1 or (isinstance(node, Mapping) and part == node.get("type")):
            continue
        path.append(part)
    return path, node


def _classes() -> Iterator[type[BaseModel]]:
    for value in vars(recipe_module).values():
        if isinstance(value, type) and issubclass(value, BaseModel):
            yield value


def _all_field_names() -> set[str]:
    return {name for cls in _classes() for name in cls.model_fields}


def _field_names(model: type[BaseModel]) -> set[str]:
    """The fields of a class and of the classes that it names directly."""
    names = set(model.model_fields)
    for info in model.model_fields.values():
        for inner in (info.annotation, *get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names |= set(inner.model_fields)
    return names


def _tags(field: str) -> str:
    unions: dict[str, Any] = {
        "objective": recipe_module.ObjectiveConfig,
        "divergence": recipe_module.DivergenceConfig,
        "mixing": recipe_module.MixingConfig,
        "codec": recipe_module.CodecConfig,
        "mixture": recipe_module.MixtureConfig,
        "format": recipe_module.FormatConfig,
        "input_format": recipe_module.FormatConfig,
    }
    union = unions.get(field.rsplit(".", 1)[-1])
    if union is None:
        return ""
    return ", ".join(str(m.model_fields["type"].annotation.__args__[0]) for m in union.__origin__.__args__)
