"""One batched generator for everything that generates: evaluation, samples, and later rollouts.

Prompts of like length share a left-padded batch under a token budget, and the key-value cache is
transformers' own. What a model's ``generation_config`` recommends (sampling, penalties, a length)
never takes effect: results depend on the settings that are passed, and on nothing that lies in a
model folder.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from stillhouse.errors import DataError
from stillhouse.models.tokenizers import vocabulary_size
from stillhouse.randomness import derive_seed
from stillhouse.rollout.generator import check_sampling
from stillhouse.rollout.mode import evaluating

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all) after each batch."""


@dataclass(frozen=True)
class GenerationSettings:
    """How to continue prompts.

    ``temperature`` 0 is greedy decoding. ``top_p`` keeps the smallest set of ids with that mass
    (1: all). Generation ends at the first of ``stop_ids``, which stays the last of the token ids, or
    of the ``stop`` strings, whose last token is the last of the ids. Neither stands in the text.
    ``batch_tokens`` bounds rows * (longest prompt + max_new_tokens), the size of the cache; a
    prompt that exceeds it alone has a batch for itself. The model computes in its own dtype.
    """

    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    batch_tokens: int = 8192
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature, self.top_p, self.stop)


@dataclass(frozen=True)
class Generation:
    """A continuation: ids (what ended it included), their text (without that), and whether it was ended so."""

    token_ids: list[int]
    text: str
    finished: bool


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> list[Generation]:
    """Continue every prompt (ids, without padding) and return the continuations in the prompts' order.

    Sampling draws from (seed, "generate", number of the batch), so the same prompts, settings and
    seed give the same text; the global generators are left as they were. The model is put into
    evaluation mode meanwhile.

    Raises DataError for an empty prompt, and for one that leaves no room for ``max_new_tokens`` in
    the model's context (see :func:`fits_context`).
    """
    results = generate_share(model, tokenizer, prompts, settings, seed=seed, progress=progress)
    return [results[i] for i in range(len(prompts))]


@torch.no_grad()
def generate_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    *,
    seed: int,
    share: tuple[int, int] = (0, 1),
    lock_step: bool = False,
    progress: Progress | None = None,
) -> dict[int, Generation]:
    """Continue the prompts of the batches that fall to ``share`` = (i, n), by the prompt's index.

    Batches and seeds are those of :func:`generate`, which has them all. ``lock_step``: each forward
    needs all n processes, so all run equally many batches (the last perhaps twice) and as many
    tokens as the slowest. Raises DataError as :func:`generate` does.
    """
    for index, prompt in enumerate(prompts):
        _check_prompt(model, prompt, index, settings)
    results: dict[int, Generation] = {}
    batches = plan_batches([len(p) for p in prompts], settings.max_new_tokens, settings.batch_tokens)
    mine = list(range(share[0], len(batches), share[1]))
    if lock_step:
        rounds = -(-len(batches) // share[1])
        mine += [len(batches) - 1] * (rounds - len(mine))
    with evaluating(model), _own_generation_config(model, _transformers_config(model, tokenizer, settings)):
        for number in mine:
            batch = batches[number]
            ended = StoppingCriteriaList()
            if settings.stop:
                ended.append(_StopStrings(tokenizer, settings.stop, max(len(prompts[i]) for i in batch)))
            batch_seed = derive_seed(seed, "generate", number)
            new_ids = _generate_batch(model, [prompts[i] for i in batch], batch_seed, ended, lock_step)
            for index, ids in zip(batch, new_ids.tolist(), strict=True):
                results[index] = _generation(ids, tokenizer, settings)
            if progress is not None:
                progress(len(results), len(prompts))
    return results


def plan_batches(lengths: Sequence[int], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Group prompts by length, longest first, with rows * (longest + max_new_tokens) within the budget.

    Longest first, so that a lack of memory shows at once and not after an hour.
    """
    batches: list[list[int]] = []
    rows_that_fit = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or len(batches[-1]) == rows_that_fit:
            batches.append([])
            rows_that_fit = max(1, batch_tokens // (lengths[index] + max_new_tokens))
        batches[-1].append(index)
    return batches


def fits_context(model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int) -> bool:
    """Whether prompt and continuation fit the model's positions (models without such a limit: always)."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit is None or prompt_tokens + max_new_tokens <= limit


def _check_prompt(model: PreTrainedModel, prompt: list[int], index: int, settings: GenerationSettings) -> None:
    if not prompt:
        raise DataError(f"prompt {index} is empty; generation needs at least one token to start from")
    if not fits_context(model, len(prompt), settings.max_new_tokens):
        raise DataError(
            f"prompt {index} has {len(prompt)} tokens, and with max_new_tokens={settings.max_new_tokens} exceeds the "
            f"model's {model.config.max_position_embeddings} positions; shorten the prompt or generate fewer tokens"
        )


def _transformers_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: GenerationSettings
) -> GenerationConfig:
    stop_ids = sorted(settings.stop_ids)
    num_ids = vocabulary_size(tokenizer)
    head_rows: int = model.config.get_text_config().vocab_size
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.temperature > 0,
        eos_token_id=stop_ids or None,
        # Rows that have stopped are filled with it; the text ends at the stop id before that.
        pad_token_id=stop_ids[0] if stop_ids else 0,
        # A head may have more rows than the tokenizer has ids; those mean nothing and are never chosen.
        suppress_tokens=list(range(num_ids, head_rows)) or None,
        use_cache=True,
        **(sampling if settings.temperature > 0 else {}),
    )


@contextmanager
def _own_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replace the model's recommendation: transformers fills whatever an argument leaves unset from it."""
    recommended = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = recommended


def _generate_batch(
    model: PreTrainedModel, prompts: Sequence[list[int]], seed: int, ended: StoppingCriteriaList, lock_step: bool
) -> Tensor:
    """Return the new ids, int64 [B, at most max_new_tokens]."""
    device = model.device
    input_ids, attention_mask = left_pad(prompts)
    with _global_seed(seed, device):
        continue_batch = cast("Callable[..., Tensor]", model.generate)
        output = continue_batch(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            stopping_criteria=ended,
            synced_gpus=lock_step,
        )
    return output[:, input_ids.shape[1] :].cpu()


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that transformers samples from, and give them their state back afterwards.

    ``torch.manual_seed`` is no use here: it would seed the other accelerators of the machine too.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def left_pad(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, int64 [B, T], padded on the left so that all rows end together.

    Which id pads does not matter: the mask hides it, and pad is never told by its id.
    """
    longest = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask


class _StopStrings(StoppingCriteria):
    """Tells which rows have written a stop string; those need no further steps.

    Only the end of each row is decoded. A token is at least one byte of text, so a string of n
    bytes lies within the last n tokens; a few more keep what a decoder does to the beginning of a
    text (a cut character, a leading space) away from it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str], prompt_tokens: int) -> None:
        self._tokenizer, self._stop, self._prompt_tokens = tokenizer, stop, prompt_tokens
        self._tail = max(len(s.encode()) for s in stop) + 4
        self._done: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:  # noqa: ARG002
        """Return bool [B] for ids int64 [B, T], prompts included."""
        start = max(self._prompt_tokens, input_ids.shape[1] - self._tail)
        texts = [_decode(self._tokenizer, ids) for ids in input_ids[:, start:].tolist()]
        before = self._done or [False] * len(texts)  # rows that are done are filled up and lose the string again
        self._done = [done or _stop_at(text, self._stop) is not None for done, text in zip(before, texts, strict=True)]
        return torch.tensor(self._done, device=input_ids.device)


def _generation(ids: list[int], tokenizer: PreTrainedTokenizerFast, settings: GenerationSettings) -> Generation:
    """Cut at the first stop id or stop string, whichever comes first."""
    stop = next((position for position, token in enumerate(ids) if token in settings.stop_ids), None)
    content = ids if stop is None else ids[:stop]
    text = _decode(tokenizer, content)
    cut = _stop_at(text, settings.stop)
    if cut is None:
        return Generation(ids if stop is None else ids[: stop + 1], text, stop is not None)
    # The fewest tokens that hold the string: once it is there, more tokens do not take it away.
    lengths = range(1, len(content) + 1)
    held = bisect_left(
        lengths, True, key=lambda n: _stop_at(_decode(tokenizer, content[:n]), settings.stop) is not None
    )
    return Generation(content[: lengths[held]], text[:cut], True)


def _stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop string begins, or None."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=None)


def _decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
