"""A served model that writes: answers to conversations, and continuations of token ids.

``ServedGenerator`` speaks the chat endpoint that every OpenAI-compatible server has, so any of them
can label data. ``continue_prompts`` sends the very ids that a local model would continue, which
vLLM's completions endpoint takes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.data.rows import Message
from stillhouse.errors import ServerError
from stillhouse.randomness import derive_seed
from stillhouse.rollout.generator import Completion, SamplingSettings
from stillhouse.teachers.server_client import Request, ServedModel, ServerClient, served_fingerprint
from stillhouse.teachers.server_journal import Journal

_SEED_BITS = 31
"""Seeds beyond 2^31 - 1 are refused by some servers."""


class ServedGenerator:
    """Asks a server's chat endpoint: a :class:`stillhouse.rollout.generator.Generator`.

    With a ``journal`` every answer is kept as it comes, under what was asked (model, conversation,
    settings, seed; not the address), and is never asked for again. ``progress`` is told (answers there,
    answers wanted).
    """

    def __init__(
        self,
        client: ServerClient,
        *,
        journal: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._client, self._progress = client, progress
        self._journal = None if journal is None else Journal(journal)

    @property
    def fingerprint(self) -> str:
        """The served model's name."""
        return served_fingerprint(self._client.config.model).rstrip(":")

    def generate(self, prompts: Sequence[list[Message]], settings: SamplingSettings, *, seed: int) -> list[Completion]:
        """Write the next assistant turn of every conversation, in the prompts' order.

        A prompt given several times is asked for with as many seeds. Raises ServerError when an answer
        cannot be had or is none; what came before is in the journal.
        """
        bodies = _bodies(prompts, settings, seed)
        keys = [self._key(body) for body in bodies]
        found: dict[str, Completion] = {}
        if self._journal is not None:
            kept = {key: self._journal.get(key) for key in keys}
            found = {key: Completion(**answer) for key, answer in kept.items() if answer is not None}
        wanted = {key: Request("chat/completions", body) for key, body in zip(keys, bodies, strict=True)}
        todo = ((key, request) for key, request in wanted.items() if key not in found)
        for key, answer in self._client.stream(list(todo)):
            found[key] = self._completion(answer)
            if self._journal is not None:
                self._journal.add(key, asdict(found[key]))
            if self._progress is not None:
                self._progress(len(found), len(wanted))
        return [found[key] for key in keys]

    def _key(self, body: dict[str, Any]) -> str:
        content = json.dumps([self._client.config.model, body], sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _completion(self, answer: dict[str, Any]) -> Completion:
        choice = _first_choice(answer, self._client.field)
        message, usage = choice.get("message"), answer.get("usage")
        text = message.get("content") if isinstance(message, dict) else None
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not isinstance(message, dict) or not isinstance(usage, dict) or not isinstance(tokens, int):
            raise ServerError(f"{self._client.field}.url: an answer of the chat endpoint has no message or no usage")
        prompt_tokens = usage.get("prompt_tokens")
        return Completion(
            text if isinstance(text, str) else "",
            choice.get("finish_reason") == "stop",
            tokens,
            prompt_tokens if isinstance(prompt_tokens, int) else None,
        )


def continue_prompts(
    client: ServerClient,
    served: ServedModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
) -> list[str]:
    """Continue token ids greedily, until one of ``stop_ids``, and return the texts in the prompts' order.

    A prompt that leaves no room for ``max_new_tokens`` gives an empty text, as a local model's does.
    Raises ServerError when an answer cannot be had.
    """
    room = served.max_model_len

    def requests() -> Iterator[tuple[int, Request]]:
        for index, prompt in enumerate(prompts):
            if room is None or len(prompt) + max_new_tokens <= room:
                body = {
                    "prompt": prompt,
                    "max_tokens": max_new_tokens,
                    "temperature": 0.0,
                    "stop_token_ids": sorted(stop_ids),
                    # Else the model folder's own recommendation would apply.
                    "repetition_penalty": 1.0,
                }
                yield index, Request("completions", body)

    texts = [""] * len(prompts)
    for index, answer in client.stream(requests()):
        text = _first_choice(answer, client.field).get("text")
        if not isinstance(text, str):
            raise ServerError(f"{client.field}.url: an answer of the completions endpoint has no text")
        texts[index] = text
    return texts


def _bodies(prompts: Sequence[list[Message]], settings: SamplingSettings, seed: int) -> list[dict[str, Any]]:
    """The chat requests; the n-th request for the same conversation has the n-th seed."""
    times: Counter[tuple[Message, ...]] = Counter()
    bodies = []
    for prompt in prompts:
        number = times[tuple(prompt)]
        times[tuple(prompt)] += 1
        body = {
            "messages": [{"role": message.role, "content": message.content} for message in prompt],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": derive_seed(seed, "served-answer", number) % (1 << _SEED_BITS),
        }
        bodies.append(body | ({"stop": list(settings.stop)} if settings.stop else {}))
    return bodies


def _first_choice(answer: dict[str, Any], field: str) -> dict[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        raise ServerError(f"{field}.url: an answer has no choices; is this an OpenAI-compatible API?")
    return first
