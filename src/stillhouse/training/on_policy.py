"""On-policy steps: the student answers the prompts of the data, and learns from those answers.

Generalized KD (Agarwal 2024, arXiv 2306.13649): each step draws u from U(0, 1); with u < lambda the
student's own answers are scored, otherwise the data's. The draw depends on seed and step alone, so
all ranks agree and a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.data.document import Document, DocumentSet, Int64Array
from stillhouse.errors import DataError
from stillhouse.randomness import derive_seed, numpy_generator
from stillhouse.recipe import GKDObjective
from stillhouse.rollout.generate import GenerationSettings, fits_context
from stillhouse.rollout.shared import generate_together
from stillhouse.training.answers import prompt_ids, with_answer
from stillhouse.training.distributed import World
from stillhouse.training.student import DistillationModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Lookahead = Callable[[int], Sequence[int] | Int64Array | None]
"""The documents that the plan has for a step; None where it is not drawn yet."""


def is_on_policy(seed: int, step: int, fraction: float) -> bool:
    """Whether this step trains on the student's answers (the same on every rank)."""
    return bool(numpy_generator(seed, "on-policy", step).random() < fraction)


@dataclass(frozen=True)
class Answers:
    """The student's answers for one step, and how they came out."""

    documents: DocumentSet
    finished: float
    """Share that ended with a stop id."""

    @property
    def mean_tokens(self) -> float:
        return float(self.documents.num_targets.mean())


class OnPolicy:
    """Writes answers with the student as it is now, for one step or a few at a time."""

    def __init__(
        self,
        module: DistillationModule,
        tokenizer: PreTrainedTokenizerFast,
        documents: DocumentSet,
        config: GKDObjective,
        *,
        stop_ids: frozenset[int],
        seed: int,
        world: World,
        sharded: bool,
    ) -> None:
        """Raises DataError when a prompt leaves no room for an answer in the student's context."""
        rollout = config.rollout
        self._module, self._tokenizer, self._documents = module, tokenizer, documents
        self._fraction, self._buffer_steps = config.on_policy_fraction, config.buffer_steps
        self._settings = GenerationSettings(
            rollout.max_new_tokens, stop_ids, rollout.temperature, rollout.top_p, rollout.batch_tokens
        )
        self._seed, self._world, self._sharded = seed, world, sharded
        self._buffer: dict[int, list[tuple[int, list[int]]]] = {}
        longest = max((len(prompt_ids(document)) for document in documents), default=0)
        if not fits_context(module.model, longest, rollout.max_new_tokens):
            raise DataError(
                f"objective.rollout.max_new_tokens={rollout.max_new_tokens}: with the longest prompt of {longest} tokens "
                "this exceeds the student's positions; lower it, or data.max_seq_len"
            )

    def answers(self, step: int, planned: Lookahead) -> Answers | None:
        """Return the answers that ``step`` trains on; None where it trains on the data's own."""
        if not is_on_policy(self._seed, step, self._fraction):
            return None
        if step not in self._buffer:
            self._fill(step, planned)
        kept = self._buffer.pop(step)
        documents = [self._document(index, ids) for index, ids in kept]
        finished = sum(ids[-1] in self._settings.stop_ids for _, ids in kept)
        source = self._documents
        answered = DocumentSet.build(documents, (i for i, _ in kept), source.domains, source.tokenizer_hash)
        return Answers(answered, finished / len(kept))

    def state_dict(self) -> dict[str, Any]:
        """What was written ahead, as JSON."""
        return {str(step): [[index, ids] for index, ids in kept] for step, kept in self._buffer.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._buffer = {int(step): [(index, ids) for index, ids in kept] for step, kept in state.items()}

    def _fill(self, first: int, planned: Lookahead) -> None:
        steps: dict[int, list[int]] = {}
        step = first
        while len(steps) < self._buffer_steps and (indices := planned(step)) is not None:
            if is_on_policy(self._seed, step, self._fraction):
                steps[step] = [int(i) for i in indices]
            step += 1
        flat = [index for indices in steps.values() for index in indices]
        prompts = [prompt_ids(self._documents[index]) for index in flat]
        generations = self._module.with_whole_root(
            lambda model: generate_together(
                model,
                self._tokenizer,
                prompts,
                self._settings,
                seed=derive_seed(self._seed, "rollout", first),
                world=self._world,
                lock_step=self._sharded,
            )
        )
        written = iter(generations)
        for step, indices in steps.items():
            self._buffer[step] = [(index, next(written)) for index in indices]

    def _document(self, index: int, answer: list[int]) -> Document:
        source = self._documents[index]
        return with_answer(prompt_ids(source), answer, source.domain, self._documents.tokenizer_hash)
