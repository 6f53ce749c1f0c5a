"""Whoever continues conversations: a model in this process, or a server.

Synthesis, sequence-level KD and judges ask a :class:`Generator` and never look behind it, so a
served teacher is a drop-in for a local one. The server's generator lives in ``teachers/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from stillhouse.data.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.rollout.generate import Progress


@dataclass(frozen=True)
class SamplingSettings:
    """How to answer: ``temperature`` 0 is greedy; a text ends before the first of the ``stop`` strings.

    ``top_p`` keeps the smallest set of tokens with that mass (1: all).
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature, self.top_p, self.stop)


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, stop: Sequence[str]) -> None:
    """Raise ValueError for settings that no generator can follow."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: must be 0 (greedy) or greater")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")
    if not all(stop):
        raise ValueError("stop: an empty stop string would end every text before it begins; leave it out")


@dataclass(frozen=True)
class Completion:
    """One answer: its text, whether it ended by itself or at a stop string, and how many tokens were generated.

    ``finished`` False means that ``max_new_tokens`` cut it. ``prompt_tokens`` is what was read for
    it. Either count is None where a server does not tell it.
    """

    text: str
    finished: bool
    tokens: int | None
    prompt_tokens: int | None = None


class Generator(Protocol):
    """Answers conversations."""

    @property
    def fingerprint(self) -> str:
        """What wrote the texts, for their provenance: equal for equal weights, or a served model's name."""
        ...

    def generate(self, prompts: Sequence[list[Message]], settings: SamplingSettings, *, seed: int) -> list[Completion]:
        """Write the next assistant turn of every conversation, in the prompts' order.

        A prompt given several times gets that many answers (different ones where ``temperature`` > 0).
        """
        ...


class ModelGenerator:
    """A live model, asked in length-sorted batches through :mod:`stillhouse.rollout.generate`.

    The same prompts, settings and seed give the same texts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        template: str | None = None,
        batch_tokens: int = 8192,
        progress: Progress | None = None,
    ) -> None:
        """Use ``template`` (Jinja text) or the tokenizer's own; ``batch_tokens`` bounds a batch's cache.

        Raises DataError where there is no usable chat template.
        """
        from stillhouse.data.chat import ChatFormat

        self._model, self._tokenizer = model, tokenizer
        self._chat = ChatFormat(tokenizer, template)
        self._batch_tokens, self._progress = batch_tokens, progress

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every weight and of the tokenizer."""
        from stillhouse.models.load import model_fingerprint
        from stillhouse.models.tokenizers import tokenizer_hash

        return f"{model_fingerprint(self._model)}-{tokenizer_hash(self._tokenizer)[:8]}"

    def fits(self, prompt: list[Message], max_new_tokens: int) -> bool:
        """Whether the model's context has room for ``prompt`` and ``max_new_tokens`` more.

        Raises DataError for a conversation that the chat template refuses.
        """
        from stillhouse.rollout.generate import fits_context

        return fits_context(self._model, len(self._chat.render_prompt(prompt)), max_new_tokens)

    def generate(self, prompts: Sequence[list[Message]], settings: SamplingSettings, *, seed: int) -> list[Completion]:
        """See :meth:`Generator.generate`.

        Raises DataError for a conversation that the chat template refuses, or that leaves no room
        for ``max_new_tokens`` in the model's context.
        """
        from stillhouse.rollout.generate import GenerationSettings, generate

        rendered = [self._chat.render_prompt(prompt) for prompt in prompts]
        found = generate(
            self._model,
            self._tokenizer,
            rendered,
            GenerationSettings(
                settings.max_new_tokens,
                self._chat.end_of_turn_ids,
                temperature=settings.temperature,
                top_p=settings.top_p,
                batch_tokens=self._batch_tokens,
                stop=settings.stop,
            ),
            seed=seed,
            progress=self._progress,
        )
        return [
            Completion(g.text, g.finished, len(g.token_ids), len(ids)) for g, ids in zip(found, rendered, strict=True)
        ]
