"""Build the chat rows of the quickstart from the hand-written lists in ``content/``.

Run ``python -m stillhouse.quickstart.make_data`` after editing a list; the rows in ``data/`` are
committed, and a test checks that this module makes exactly those bytes. Draws come from
``derive_seed``, not from a library's generator, so they are the same with every Python and NumPy.

Held-out rows share no question, no story and no sentence with the training rows: word problems,
extraction sentences, clauses, people, places, facts and topics of validation are lists of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from stillhouse.randomness import derive_seed

Split = Literal["train", "validation"]
Row = dict[str, Any]
Draft = tuple[str, str, str | None]
"""Prompt, completion, and the one right answer where there is one."""

T = TypeVar("T")
HERE = Path(__file__).parent
DATA = HERE / "data"
SEED = 7
ROWS_PER_PROBLEM = {"train": 6, "validation": 5}
ROWS_PER_SENTENCE = {"train": 9, "validation": 3}


class Draws:
    """A stream of choices that depends on its purpose and on nothing else."""

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._count = 0

    def below(self, stop: int) -> int:
        """Return a number from 0 to ``stop`` - 1."""
        self._count += 1
        return derive_seed(SEED, self._purpose, self._count) % stop

    def between(self, low: int, high: int) -> int:
        """Return a number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of ``options``."""
        return options[self.below(len(options))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return ``items`` in another order."""
        keys = [self.below(1 << 62) for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def arithmetic(content: dict[str, Any], split: Split) -> Iterator[Draft]:
    """Word problems with one or two steps; the answer is the number."""
    draws = Draws(f"arithmetic:{split}")
    for problem in content[split]:
        for _ in range(ROWS_PER_PROBLEM[split]):
            values = draw_numbers(problem["operation"], draws)
            values["name"] = draws.pick(content["names"][split])
            yield problem["prompt"].format(**values), problem["answer"].format(**values), str(values["r"])


def draw_numbers(operation: str, draws: Draws) -> dict[str, Any]:
    """Return a, b, c, the product p where there is one, and the result r of a word problem."""
    if operation in ("add", "subtract"):
        b, rest = draws.between(2, 39), draws.between(3, 50)
        return {"a": rest, "b": b, "r": rest + b} if operation == "add" else {"a": rest + b, "b": b, "r": rest}
    a, b, c = draws.between(3, 12), draws.between(3, 9), draws.between(4, 30)
    if operation == "multiply":
        return {"a": a, "b": b, "r": a * b}
    if operation == "divide":
        return {"a": a * b, "b": b, "r": a}
    if operation == "multiply_add":
        return {"a": a, "b": b, "c": c, "p": a * b, "r": a * b + c}
    if operation == "multiply_subtract":
        return {"a": a, "b": b, "c": a * b + c, "p": a * b, "r": c}
    raise ValueError(f"arithmetic.yaml: operation={operation} is not known")


def rewriting(content: dict[str, Any], split: Split) -> Iterator[Draft]:
    """Tense, voice, question and negation of a clause; polite, formal and shorter wording of a sentence."""
    draws = Draws(f"rewriting:{split}")
    for clause in content["clauses"][split]:
        forms = clause_forms(clause)
        for task in content["clause_tasks"].values():
            which = draws.below(len(task["prompts"]))
            answer = task["answers"][which] if "answers" in task else task["answer"]
            completion = answer.format(**forms)
            yield task["prompts"][which].format(**forms), completion, completion
    for name, pairs in content["pairs"][split].items():
        for text, target in pairs:
            yield draws.pick(content["pair_tasks"][name]["prompts"]).format(text=text), target, None


def clause_forms(clause: Sequence[Any]) -> dict[str, str]:
    """Return the words that the rewrites of one clause need, by slot name."""
    subject, present, past, base, participle, obj, plural = clause
    capital = capitalised(subject)
    return {
        "subject": subject,
        "Subject": capital,
        "past": past,
        "base": base,
        "participle": participle,
        "object": obj,
        "Object": capitalised(obj),
        "was": "were" if plural else "was",
        "present_text": f"{capital} {present} {obj}.",
        "past_text": f"{capital} {past} {obj}.",
    }


def extraction(content: dict[str, Any], split: Split) -> Iterator[Draft]:
    """Facts that stand in a sentence, named one by one."""
    draws = Draws(f"extraction:{split}")
    slots = content["slots"][split]
    for kind in content["kinds"].values():
        for sentence in kind[split]:
            for _ in range(ROWS_PER_SENTENCE[split]):
                values = {name: draws.pick(options) for name, options in slots.items()}
                prompt = draws.pick(kind["prompts"]).format(text=sentence.format(**values))
                completion = kind["answer"].format(**values)
                yield prompt, completion, completion


def knowledge(content: dict[str, Any], split: Split) -> Iterator[Draft]:
    """General knowledge, one question a fact. Where a word decides, exact match wants the whole sentence."""
    for question, completion, key in content[split]:
        yield question, completion, completion if key and not key.isdigit() else key


def classification(content: dict[str, Any], split: Split) -> Iterator[Draft]:
    """A label for a text, with the reason (which could be worded otherwise, so there is no exact match)."""
    draws = Draws(f"classification:{split}")
    for name, rows in content[split].items():
        task = content["tasks"][name]
        prompts = task["prompts"] if split == "train" else [draws.pick(task["prompts"])]
        for text, label, reason in rows:
            completion = task["answer"].format(text=text, label=label, reason=reason, Reason=capitalised(reason))
            for prompt in prompts:
                yield prompt.format(text=text), completion, None


def advice(content: dict[str, Any], split: Split) -> Iterator[Draft]:
    """Three tips on a topic, and short explanations."""
    draws = Draws(f"advice:{split}")
    for topic, tips in content["tips"][split]:
        completion = "\n".join(f"{i}. {tip}" for i, tip in enumerate(tips, start=1))
        for prompt in variants(content["tips_prompts"], split, draws):
            yield prompt.format(topic=topic), completion, None
    for question, completion in content["explanations"][split]:
        for prompt in variants(content["explain_prompts"], split, draws):
            yield prompt.format(question=question), completion, None


def variants(prompts: Sequence[str], split: Split, draws: Draws) -> list[str]:
    """Return two wordings for a training row and one for a held-out row."""
    return draws.shuffled(prompts)[: 2 if split == "train" else 1]


def capitalised(text: str) -> str:
    """Return ``text`` with its first letter in upper case."""
    return text[0].upper() + text[1:]


DOMAINS = {
    "advice": advice,
    "arithmetic": arithmetic,
    "classification": classification,
    "extraction": extraction,
    "knowledge": knowledge,
    "rewriting": rewriting,
}


def make_rows(split: Split) -> list[Row]:
    """Return the rows of one split, shuffled, each prompt once."""
    rows: list[Row] = []
    for domain, make in DOMAINS.items():
        content = yaml.safe_load((HERE / "content" / f"{domain}.yaml").read_text(encoding="utf-8"))
        drafts = {prompt: (completion, answer) for prompt, completion, answer in make(content, split)}
        for number, (prompt, (completion, answer)) in enumerate(drafts.items()):
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            row: Row = {"id": f"{domain}-{split}-{number:03d}", "domain": domain, "messages": messages}
            rows.append(row if answer is None else {**row, "answer": answer})
    return Draws(f"order:{split}").shuffled(rows)


def render(split: Split) -> str:
    """Return the JSONL text of one split."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(split))


def main() -> None:
    """Write ``data/train.jsonl`` and ``data/validation.jsonl``."""
    splits: tuple[Split, Split] = ("train", "validation")
    for split in splits:
        (DATA / f"{split}.jsonl").write_text(render(split), encoding="utf-8")


if __name__ == "__main__":
    main()
