"""A served model that writes: answers to conversations, and continuations of token ids.

``ServedGenerator`` speaks the chat endpoint that every OpenAI-compatible server has, so any of them
can label data. ``continue_prompts`` sends the very ids that a local model would continue, which
vLLM's completions endpoint takes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
    settings, seed, the recipe's ``extra_body``; not the address), and is never asked for again.
    ``progress`` is told (answers there, answers wanted).
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
        """The served model's name, and a digest of the recipe's ``extra_body`` where there is one."""
        name, extra = served_fingerprint(self._client.config.model).rstrip(":"), self._client.config.extra_body
        return f"{name}:{_digest(extra)[:8]}" if extra else name

    def generate(self, prompts: Sequence[list[Message]], settings: SamplingSettings, *, seed: int) -> list[Completion]:
        """Write the next assistant turn of every conversation, in the prompts' order.

        A prompt given several times is asked for with as many seeds. Raises ServerError when an answer
        cannot be had or is none; what came before is in the journal.
        """
        ((_, found),) = self.generate_each([(0, prompts, seed)], settings)
        return found

    def generate_each(
        self, batches: Iterable[tuple[int, Sequence[list[Message]], int]], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Answer batches of (number, prompts, seed), and yield (number, answers) of each as its last answer comes.

        The answers are those of :meth:`generate`; but no batch waits for the slowest answer of the one
        before it, so the server stays as busy as ``concurrency`` allows. ``batches`` is drawn from as
        places become free. Raises as :meth:`generate`.
        """
        whole: deque[_Batch] = deque()
        there = wanted = 0

        def requests() -> Iterator[tuple[tuple[_Batch, str], Request]]:
            nonlocal there, wanted
            for number, prompts, seed in batches:
                batch, bodies = self._begin(number, prompts, settings, seed)
                there, wanted = there + len(batch.found), wanted + len(bodies)
                if batch.is_whole:
                    whole.append(batch)
                missing = {key: body for key, body in bodies.items() if key not in batch.found}
                yield from (((batch, key), Request("chat/completions", self._sent(b))) for key, b in missing.items())

        for (batch, key), answer in self._client.stream(requests()):
            batch.found[key] = self._completion(answer)
            if self._journal is not None:
                self._journal.add(key, asdict(batch.found[key]))
            there += 1
            if self._progress is not None:
                self._progress(there, wanted)
            if batch.is_whole:
                whole.append(batch)
            while whole:
                yield whole.popleft().result()
        yield from (batch.result() for batch in whole)

    def _begin(
        self, number: int, prompts: Sequence[list[Message]], settings: SamplingSettings, seed: int
    ) -> tuple[_Batch, dict[str, dict[str, Any]]]:
        """A batch with what the journal has of it, and all its requests by key."""
        bodies = _bodies(prompts, settings, seed)
        keys = [self._key(body) for body in bodies]
        kept = {} if self._journal is None else {key: self._journal.get(key) for key in keys}
        found = {key: Completion(**answer) for key, answer in kept.items() if answer is not None}
        wanted = dict(zip(keys, bodies, strict=True))
        return _Batch(number, keys, len(wanted), found), wanted

    def _key(self, body: dict[str, Any]) -> str:
        """What was asked, with the seed even where it is not sent, so that equal prompts have answers of their own."""
        config = self._client.config
        return _digest([config.model, body, *([config.extra_body] if config.extra_body else [])])

    def _sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request as the recipe's ``extra_body`` wants it."""
        return {name: value for name, value in (body | self._client.config.extra_body).items() if value is not None}

    def _completion(self, answer: dict[str, Any]) -> Completion:
        choice, usage = answer["choices"][0], answer.get("usage")
        message = choice.get("message")
        if not isinstance(message, dict):
            raise ServerError(f"{self._client.field}.url: an answer of the chat endpoint has no message")
        text = message.get("content")
        counts = usage if isinstance(usage, dict) else {}
        tokens, prompt_tokens = (
            count if isinstance(count, int) else None
            for count in (counts.get("completion_tokens"), counts.get("prompt_tokens"))
        )
        finished = choice.get("finish_reason") == "stop"
        return Completion(text if isinstance(text, str) else "", finished, tokens, prompt_tokens)


@dataclass(frozen=True)
class _Batch:
    """The keys of a batch in its prompts' order, and its answers so far."""

    number: int
    keys: list[str]
    size: int
    """How many of the keys are different."""
    found: dict[str, Completion]

    @property
    def is_whole(self) -> bool:
        return len(self.found) == self.size

    def result(self) -> tuple[int, list[Completion]]:
        return self.number, [self.found[key] for key in self.keys]


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
        text = answer["choices"][0].get("text")
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


def _digest(value: Any) -> str:
    content = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
