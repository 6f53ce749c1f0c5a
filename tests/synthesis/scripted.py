"""Generators that say what a test wants, and seeds of a small task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stillhouse.data.rows import Message, Row
from stillhouse.rollout.generator import Completion, SamplingSettings

INSTRUCTION = "Is this animal a pet? Answer yes or no.\n\nAnimal: "
ANIMALS = (
    ("a small brown dog from the village", "yes"),
    ("one grey wolf under tall trees", "no"),
    ("my lazy old cat called Tom", "yes"),
    ("the hungry lion behind that hill", "no"),
    ("her young hamster with white paws", "yes"),
    ("some wild geese above the lake", "no"),
    ("our green parrot who says hello", "yes"),
    ("two brown bears near a river", "no"),
)

Reply = Callable[[list[Message], int], str]


class Scripted:
    """Answers each prompt with ``reply(prompt, number of the prompt since the beginning)``; None is cut off."""

    def __init__(self, reply: Callable[[list[Message], int], str | None], name: str = "scripted") -> None:
        self.reply, self.fingerprint = reply, name
        self.prompts: list[list[Message]] = []
        self.settings: list[SamplingSettings] = []
        self.seeds: list[int] = []

    def generate(self, prompts: Sequence[list[Message]], settings: SamplingSettings, *, seed: int) -> list[Completion]:
        self.settings.append(settings)
        self.seeds.append(seed)
        found = []
        for prompt in prompts:
            text = self.reply(prompt, len(self.prompts))
            self.prompts.append(prompt)
            found.append(Completion(text or "cut", text is not None, 3, prompt_tokens=10))
        return found


def row(text: str, answer: str, *, number: int = 0, domain: str = "pets", file: str = "human.jsonl") -> Row:
    messages = (Message("user", INSTRUCTION + text), Message("assistant", answer))
    return Row(messages, None, domain, answer, f"human-{number}", f"{file}:{number + 1}")


NOUNS = ("otter", "raven", "pony", "carp", "beetle", "goat", "toad", "swan", "mole", "crab", "moth", "stork")
PLACES = ("in Rome", "on ice", "at sea", "by night", "under snow", "near Oslo", "after rain", "with friends")


def fresh_input(number: int) -> str:
    """A text of five or six words that differs from all others in most of them."""
    noun, place = NOUNS[number % len(NOUNS)], PLACES[(number // len(NOUNS)) % len(PLACES)]
    return f"{noun} {number} {place} eats{number}"
