"""Negative log-likelihood per domain: the first number of every comparison.

The headline is the macro-average over domains of nats per *content* token. A token average would
measure math and code alone (they make nearly all tokens of chat data), and end-of-turn tokens are
kept apart because a model that has just learned to stop looks better on them for free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.errors import DataError, ModelError
from stillhouse.evaluation.sums import GroupSums, rank_batches
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.rollout.mode import evaluating

if TYPE_CHECKING:
    from stillhouse.models.head import CausalParts

TokenScorer = Callable[[Batch], Tensor]
"""Maps a batch on the device to the NLL of its N targets, float32 [N], in row-major order."""


@dataclass(frozen=True)
class DomainNLL:
    """One domain. NLL in nats per token; ``bits_per_byte`` is None where bytes are not known."""

    nll: float
    perplexity: float | None
    bits_per_byte: float | None
    end_of_turn_nll: float | None
    content_tokens: int
    end_of_turn_tokens: int
    documents: int


@dataclass(frozen=True)
class NLLReport:
    """All domains that have content tokens, and their macro-averages.

    ``nll`` and ``end_of_turn_nll`` (None where no domain has such tokens) average over domains;
    ``perplexity`` is exp(nll), the geometric mean of the domains', None where it overflows.
    """

    nll: float
    perplexity: float | None
    end_of_turn_nll: float | None
    domains: dict[str, DomainNLL]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NLLReport:
        """Rebuild a report from its ``dataclasses.asdict`` form; further keys are left alone."""
        domains = {name: DomainNLL(**values) for name, values in data["domains"].items()}
        return cls(data["nll"], data["perplexity"], data["end_of_turn_nll"], domains)


def evaluate_nll(
    parts: CausalParts,
    documents: DocumentSet,
    *,
    end_of_turn_ids: frozenset[int],
    byte_counts: Int64Array | None,
    micro_batch_tokens: int,
    head_chunk: int,
    device: torch.device | str,
    vocab_size: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> NLLReport:
    """Score the model in evaluation mode on ``documents``; logits exist ``head_chunk`` tokens at a time.

    The model computes in its own dtype, or under the autocast that the caller has switched on.
    The other arguments and the errors are those of :func:`measure_nll`.
    """

    def score(batch: Batch) -> Tensor:
        projection = parts.projection(parts.hidden(batch))
        return token_nll(projection, batch.labels, vocab_size=vocab_size, chunk=head_chunk)

    with evaluating(parts.backbone):
        return measure_nll(
            score,
            documents,
            end_of_turn_ids=end_of_turn_ids,
            byte_counts=byte_counts,
            micro_batch_tokens=micro_batch_tokens,
            device=device,
            process_group=process_group,
        )


@torch.no_grad()
def measure_nll(
    score: TokenScorer,
    documents: DocumentSet,
    *,
    end_of_turn_ids: frozenset[int],
    byte_counts: Int64Array | None,
    micro_batch_tokens: int,
    device: torch.device | str,
    process_group: dist.ProcessGroup | None = None,
) -> NLLReport:
    """Sum what ``score`` says about every target, per domain, and average.

    ``score`` may run a wrapped (DDP, FSDP2) model: every rank calls it equally often.
    end_of_turn_ids: targets that count as end-of-turn; byte_counts: int64 [D], UTF-8 bytes of each
    document's content (:func:`stillhouse.evaluation.content_bytes.content_bytes`), or None.
    Under torch.distributed the documents are shared out and the sums added up before any division,
    so every rank returns the same report.

    Raises DataError if no document has a content token, ModelError if an NLL is not finite.
    """
    ends = torch.tensor(sorted(end_of_turn_ids), dtype=torch.long)
    sums = GroupSums(2 * len(documents.domains), 2)
    for batch, counts in rank_batches(documents, micro_batch_tokens=micro_batch_tokens, process_group=process_group):
        nll = score(batch.to(device)).cpu()
        if counts:
            is_end = torch.isin(batch.labels, ends).long()
            sums.add(2 * batch.domain_ids + is_end, torch.stack([nll, torch.ones_like(nll)], dim=1))
    sums.reduce(device, process_group)
    return _report(sums.values.view(len(documents.domains), 4).tolist(), documents, byte_counts)


def macro_average(values: Sequence[float]) -> float | None:
    """Return the unweighted mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def _report(sums: list[list[float]], documents: DocumentSet, byte_counts: Int64Array | None) -> NLLReport:
    """``sums[d]`` is (content NLL, content tokens, end-of-turn NLL, end-of-turn tokens) of domain d."""
    domains: dict[str, DomainNLL] = {}
    for index, name in enumerate(documents.domains):
        if sums[index][1] == 0:
            continue
        members = documents.domain_ids == index
        num_bytes = None if byte_counts is None else int(byte_counts[members].sum())
        domains[name] = _domain_nll(name, sums[index], int(np.count_nonzero(members)), num_bytes)
    nll = macro_average([domain.nll for domain in domains.values()])
    if nll is None:
        raise DataError(
            "the evaluation documents have no content tokens to score; "
            "look at the counts of rejected and truncated rows, and raise data.max_seq_len if they were cut"
        )
    ends = [domain.end_of_turn_nll for domain in domains.values() if domain.end_of_turn_nll is not None]
    return NLLReport(nll, _perplexity(nll), macro_average(ends), domains)


def _domain_nll(name: str, sums: list[float], num_documents: int, num_bytes: int | None) -> DomainNLL:
    nll_sum, num_content, end_sum, num_ends = sums
    if not math.isfinite(nll_sum + end_sum):
        raise ModelError(
            f"the NLL of domain {name!r} is not finite ({nll_sum + end_sum}): the model's logits overflow or its "
            "weights hold NaN; load an earlier checkpoint, or evaluate in float32"
        )
    nll = nll_sum / num_content
    return DomainNLL(
        nll=nll,
        perplexity=_perplexity(nll),
        bits_per_byte=nll_sum / math.log(2) / num_bytes if num_bytes else None,
        end_of_turn_nll=end_sum / num_ends if num_ends else None,
        content_tokens=int(num_content),
        end_of_turn_tokens=int(num_ends),
        documents=num_documents,
    )


def _perplexity(nll: float) -> float | None:
    """exp(nll); None where a float cannot hold it, since JSON has no infinity."""
    try:
        return math.exp(nll)
    except OverflowError:
        return None
