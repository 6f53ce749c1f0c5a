"""Generation shared out over processes, with the result of one process.

The batches are those that one process would make, each with its own seed, so the answers do not
depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist

from stillhouse.rollout.generate import GenerationSettings, generate_share, plan_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Processes(Protocol):
    """This process's place among all of them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


@torch.no_grad()
def generate_together(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    *,
    seed: int,
    world: Processes,
    lock_step: bool,
) -> list[list[int]]:
    """Return the new ids of every prompt on every process; each process writes its share of the batches.

    ``lock_step``: the weights are sharded (FSDP2), so each forward needs all processes: they run
    equally many batches and go on until the slowest is done.

    Raises DataError as :func:`stillhouse.rollout.generate.generate` does.
    """
    share = (world.rank, world.size)
    mine = generate_share(model, tokenizer, prompts, settings, seed=seed, share=share, lock_step=lock_step)
    if world.size == 1:
        return [mine[i].token_ids for i in range(len(prompts))]
    owners = owners_of(prompts, settings, world.size)
    # One row per prompt: its length, then its ids. Every prompt is written by exactly one process.
    table = torch.zeros(len(prompts), 1 + settings.max_new_tokens, dtype=torch.int64, device=world.device)
    for index, generation in mine.items():
        ids = generation.token_ids
        if owners[index] != world.rank:
            continue  # written to stay in step only
        table[index, 0] = len(ids)
        table[index, 1 : 1 + len(ids)] = torch.tensor(ids, device=world.device)
    dist.all_reduce(table)
    return [row[1 : 1 + row[0]] for row in table.tolist()]


def owners_of(prompts: Sequence[list[int]], settings: GenerationSettings, size: int) -> dict[int, int]:
    """Return the rank that writes each prompt: batch number modulo the number of processes."""
    batches = plan_batches([len(p) for p in prompts], settings.max_new_tokens, settings.batch_tokens)
    return {index: number % size for number, batch in enumerate(batches) for index in batch}
