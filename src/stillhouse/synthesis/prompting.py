"""Ask for one more input in the manner of examples, read the reply, and train a model to do it well."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.data.rows import Message
from stillhouse.randomness import numpy_generator
from stillhouse.synthesis.seeds import Seed, SeedDomain

VERSION = 1
"""Part of every row's provenance; raise it when the wording changes."""
FIRST, NEXT = "Write one example.", "Write another one, of the same kind and form and with another content."
_HEADING = re.compile(r"\s*(?:new )?example(?:\s+\d+)?\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "`": "`"}


def input_prompt(examples: Sequence[str], description: str | None) -> list[Message]:
    """Return the conversation that asks for another input like ``examples``, which stand in it as earlier answers.

    Answers are what a chat model goes on with: a small one that finds the examples in its
    instructions talks about them instead of writing one.
    """
    first = FIRST if description is None else f"{description.strip()}\n\n{FIRST}"
    turns = [Message("user", first)]
    for text in examples:
        turns += [Message("assistant", text), Message("user", NEXT)]
    return turns


def read_input(reply: str) -> str:
    """Return the input in a reply: without a heading such as ``Example:``, and without quotes around it."""
    text = reply.strip()
    heading = _HEADING.match(text)
    if heading:
        text = text[heading.end() :].strip()
    closing = _QUOTES.get(text[:1])
    return text[1:-1].strip() if closing and len(text) > 1 and text.endswith(closing) else text


def label_prompt(domain: SeedDomain, text: str, system: str | None, examples: Sequence[Seed]) -> list[Message]:
    """Return the conversation that asks for the answer to ``text``, after examples as earlier turns."""
    *before, asked = domain.conversation(text, system)
    shown = [
        message
        for seed in examples
        for message in (Message("user", domain.frame.wrap(seed.text)), Message("assistant", seed.answer))
    ]
    return [*before, *shown, asked]


def make_input_writer_rows(
    domains: Sequence[SeedDomain], *, description: str | None, num_examples: int, rows_per_seed: int, seed: int
) -> list[dict[str, Any]]:
    """Return rows that teach a model to write inputs: other seeds as earlier answers, and a seed's input as the last.

    The prompts are those of :func:`input_prompt`, so a model that learned from these rows serves as
    ``synthesis.input_model``. Each seed is the answer ``rows_per_seed`` times, with other examples.
    Domains with ``num_examples`` seeds or fewer must not be given.
    """
    rows = []
    for domain in domains:
        for number, target in enumerate(domain.seeds):
            others = [s for s in domain.seeds if s is not target]
            for repeat in range(rows_per_seed):
                generator = numpy_generator(seed, f"synthesis-writer-{domain.name}", number, repeat)
                chosen = draw_distinct(others, num_examples, generator)
                prompt = input_prompt([s.text for s in chosen], description)
                messages = [*prompt, Message("assistant", target.text)]
                rows.append(
                    {
                        "id": f"writer-{target.id}-{repeat}",
                        "domain": domain.name,
                        "messages": [{"role": m.role, "content": m.content} for m in messages],
                    }
                )
    return rows


def draw_distinct(seeds: Sequence[Seed], count: int, generator: np.random.Generator) -> list[Seed]:
    """Draw ``count`` different seeds in random order."""
    return [seeds[i] for i in generator.choice(len(seeds), count, replace=False)]
