"""How surprising a labeller finds its own answers: boilerplate at one end, noise at the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from stillhouse.data.batching import make_micro_batches
from stillhouse.data.chat import ChatFormat, Rejection
from stillhouse.data.document import BoolArray, Document, DocumentSet
from stillhouse.data.rows import Message
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.models.head import split_model
from stillhouse.models.tokenizers import vocabulary_size
from stillhouse.rollout.mode import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_HEAD_CHUNK = 512


class AnswerScorer(Protocol):
    """Scores the last turn of conversations."""

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        """Return the mean NLL of each last turn in nats per token; None where it cannot be encoded."""
        ...


class ModelScorer:
    """A live model's NLL of the content tokens of the last assistant turn, the end-of-turn token left out."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        template: str | None = None,
        micro_batch_tokens: int = 4096,
    ) -> None:
        """Raises DataError where there is no usable chat template."""
        self._model, self._parts = model, split_model(model)
        self._chat = ChatFormat(tokenizer, template)
        self._vocab_size = vocabulary_size(tokenizer)
        self._budget = micro_batch_tokens

    @torch.no_grad()
    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        """See :meth:`AnswerScorer.score`."""
        documents, numbers = self._documents(conversations)
        sums = np.zeros(len(documents))
        if len(documents):
            everything = range(len(documents))
            batches = make_micro_batches(
                documents, everything, micro_batch_tokens=self._budget, layout="padded", pad_id=0
            )
            with evaluating(self._model):
                for batch in batches:
                    on_device = batch.to(self._model.device)
                    projection = self._parts.projection(self._parts.hidden(on_device))
                    nll = token_nll(projection, on_device.labels, vocab_size=self._vocab_size, chunk=_HEAD_CHUNK)
                    np.add.at(sums, batch.document_ids.numpy(), nll.cpu().double().numpy())
        found: list[float | None] = [None] * len(conversations)
        for number, total, targets in zip(numbers, sums, documents.num_targets, strict=True):
            found[number] = float(total / targets)
        return found

    def _documents(self, conversations: Sequence[Sequence[Message]]) -> tuple[DocumentSet, list[int]]:
        """Return a document for each conversation that has something to score, and its number."""
        documents: list[Document] = []
        numbers: list[int] = []
        for number, outcome in enumerate(self._chat.encode_batch(conversations)):
            if isinstance(outcome, Rejection):
                continue
            ids, mask = outcome
            last = _last_answer(mask)
            if int(ids[last.nonzero()[0][-1]]) in self._chat.end_of_turn_ids:
                last[last.nonzero()[0][-1]] = False
            if not last.any():
                continue
            documents.append(Document(ids, last, 0, bytes(16)))
            numbers.append(number)
        return DocumentSet.build(documents, range(len(documents)), ("all",), ""), numbers


def _last_answer(mask: BoolArray) -> BoolArray:
    """Keep the last run of targets, bool [T]: earlier answers are examples."""
    targets = mask.nonzero()[0]
    breaks = np.flatnonzero(np.diff(targets) > 1)
    last = np.zeros_like(mask)
    last[targets[breaks[-1] + 1 if len(breaks) else 0 :]] = True
    return last
