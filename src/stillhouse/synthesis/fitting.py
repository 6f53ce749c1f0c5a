"""Prompts that leave no room for a reply are asked with fewer examples, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from stillhouse.data.rows import Message
from stillhouse.errors import DataError
from stillhouse.recipe import RolloutConfig
from stillhouse.rollout.generator import Generator
from stillhouse.synthesis.candidates import Candidate
from stillhouse.synthesis.seeds import Seed

ExampleT = TypeVar("ExampleT")


@runtime_checkable
class Measuring(Protocol):
    """A generator that knows its context. Any other one is asked as it is, and refuses by itself."""

    def fits(self, prompt: list[Message], max_new_tokens: int) -> bool:
        """Whether the model's context has room for the prompt and ``max_new_tokens`` more."""
        ...


def has_room(generator: Generator, prompt: list[Message], config: RolloutConfig, section: str) -> bool:
    """Whether ``generator`` can reply to ``prompt`` at full length, as far as it knows.

    Raises DataError naming ``section`` of the synthesis for a prompt that the chat template refuses.
    """
    if not isinstance(generator, Measuring):
        return True
    try:
        return generator.fits(prompt, config.max_new_tokens)
    except DataError as error:
        raise DataError(f"synthesis.{section}: {error}") from error


def fit_examples(
    examples: Sequence[ExampleT],
    fits: Callable[[Sequence[ExampleT]], bool],
    next_to_go: Callable[[Sequence[ExampleT]], int | None],
) -> list[ExampleT] | None:
    """Return the examples that stay when one after another goes until the rest fit; None where none of it fits.

    ``next_to_go`` gives the index of the example that goes, or None where no more may.
    """
    left = list(examples)
    while not fits(left):
        index = next_to_go(left)
        if index is None:
            return None
        del left[index]
    return left


def longest(examples: Sequence[Seed | Candidate]) -> int | None:
    """Name the longest example, so that as many as possible stay; the last human one does, and lends its system turn."""
    if len(examples) == 1:
        return None
    human = [i for i, example in enumerate(examples) if isinstance(example, Seed)]
    free = [i for i in range(len(examples)) if len(human) > 1 or i not in human]
    return max(free, key=lambda i: len(examples[i].text))


def farthest(examples: Sequence[Seed]) -> int | None:
    """Name the labeller's first example: the nearest stand last, and it can do without any."""
    return 0 if examples else None


def nothing_fits(section: str) -> DataError:
    """The error for a first batch without a single prompt that can be asked."""
    shown = "even with a single example" if section == "inputs" else "even without examples"
    return DataError(
        f"synthesis.{section}: {shown}, no prompt of the first batch leaves room for a reply of"
        f" synthesis.{section}.max_new_tokens in the model's context. Lower that, give shorter seeds (or a shorter"
        " synthesis.description), or choose a model with a longer context"
    )
