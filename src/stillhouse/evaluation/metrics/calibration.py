"""Expected calibration error: how far confidence is from being right that often.

ECE = sum_b (n_b / N) * |accuracy_b - confidence_b| over ``NUM_BINS`` = 15 bins of equal width,
bin b holding confidences in [b/15, (b+1)/15) and the last one 1 too (Naeini et al. 2015; Guo et
al. 2017, arXiv 1706.04599). With S the sums over a bin, a term is |S_correct - S_confidence| / N.

Two confidences are measured: the probability of the likeliest next token at every content token
(end-of-turn apart), and the softmax over the choices of a multiple-choice question.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.evaluation.bootstrap import DRAWS, SEED, percentile_interval
from stillhouse.evaluation.scores import Score
from stillhouse.evaluation.sums import rank_and_world_size
from stillhouse.evaluation.token_nll import chunk_logits, chunk_slices, slice_vocabulary
from stillhouse.randomness import numpy_generator
from stillhouse.teachers.protocol import Projection

NUM_BINS = 15
_COLUMNS = 3  # of each bin: how many, the sum of their confidences, how many are correct
_COUNTS_AT_A_TIME = 2_000_000

Float64Array = npt.NDArray[np.float64]


def bin_of(confidence: Tensor) -> Tensor:
    """Return the bin of each confidence in [0, 1], int64 of the same shape."""
    return (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)


def bin_sums(groups: Tensor, confidence: Tensor, correct: Tensor, num_groups: int) -> Tensor:
    """Return count, sum of confidences and number correct by group and bin, float64 [G, 15, 3].

    groups int64 [N] below G; confidence [N] in [0, 1]; correct [N] of 0 and 1.
    """
    sums = torch.zeros(num_groups * NUM_BINS, _COLUMNS, dtype=torch.float64)
    columns = torch.stack([torch.ones_like(confidence), confidence, correct], dim=1).double()
    sums.index_add_(0, groups * NUM_BINS + bin_of(confidence), columns)
    return sums.view(num_groups, NUM_BINS, _COLUMNS)


def calibration_score(sums: Tensor, *, draws: int = DRAWS, seed: int = SEED) -> Score:
    """Return the ECE of all groups together, with an interval over resampled groups.

    sums float64 [G, 15, 3] of :func:`bin_sums`; groups are the items (documents, questions). Those
    with nothing in them do not count; at least one must have something.
    """
    items = sums[sums[..., 0].sum(1) > 0].reshape(-1, NUM_BINS * _COLUMNS).numpy()
    generator = numpy_generator(seed, "bootstrap-calibration")
    at_a_time = max(1, _COUNTS_AT_A_TIME // len(items))
    shares = np.full(len(items), 1 / len(items))
    drawn = [
        _ece(generator.multinomial(len(items), shares, size=min(at_a_time, draws - start)) @ items)
        for start in range(0, draws, at_a_time)
    ]
    return Score(float(_ece(items.sum(0)[None])[0]), len(items), percentile_interval(np.concatenate(drawn)))


def _ece(sums: Float64Array) -> Float64Array:
    """[K, 15 * 3] to the error of each of K sums, [K]."""
    bins = sums.reshape(-1, NUM_BINS, _COLUMNS)
    error: Float64Array = np.abs(bins[..., 2] - bins[..., 1]).sum(1) / bins[..., 0].sum(1)
    return error


@torch.no_grad()
def token_confidence(
    projection: Projection, labels: Tensor, *, vocab_size: int | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return NLL in nats, the largest probability, and whether it is the label's, float32 [N] each.

    projection: hidden [N, H] and head [V, H]; labels int64 [N]; only the first ``vocab_size`` ids
    (None: all) take part. Logits exist ``chunk`` positions at a time.
    """
    projection = slice_vocabulary(projection, vocab_size)
    nll = torch.empty(labels.shape[0], dtype=torch.float32, device=projection.hidden.device)
    confidence, correct = torch.empty_like(nll), torch.empty_like(nll)
    for rows in chunk_slices(labels.shape[0], chunk):
        logits = chunk_logits(projection, rows)
        normaliser = torch.logsumexp(logits, dim=-1)
        best, chosen = logits.max(dim=-1)
        nll[rows] = normaliser - logits.gather(1, labels[rows, None]).squeeze(1)
        confidence[rows] = (best - normaliser).exp().clamp(max=1.0)
        correct[rows] = (chosen == labels[rows]).float()
    return nll, confidence, correct


class TokenCalibration:
    """Wraps the scorer of an NLL pass, so that calibration costs no pass of its own.

    Sums are kept by document and set, not added, so a batch that a rank repeats to keep step with
    the others changes nothing; over the ranks the largest is taken, as all that saw a document agree.
    """

    def __init__(
        self,
        project: Callable[[Batch], Projection],
        *,
        num_documents: int,
        end_of_turn_ids: frozenset[int],
        vocab_size: int | None,
        head_chunk: int,
    ) -> None:
        self._project, self._vocab_size, self._chunk = project, vocab_size, head_chunk
        self._ends = torch.tensor(sorted(end_of_turn_ids), dtype=torch.long)
        self._sums = torch.zeros(num_documents, NUM_BINS, _COLUMNS, dtype=torch.float64)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the NLL of the batch's N targets, float32 [N], and keep how sure the model was."""
        nll, confidence, correct = token_confidence(
            self._project(batch), batch.labels, vocab_size=self._vocab_size, chunk=self._chunk
        )
        content = ~torch.isin(batch.labels.cpu(), self._ends)
        documents, groups = torch.unique(batch.document_ids.cpu()[content], return_inverse=True)
        self._sums[documents] = bin_sums(
            groups, confidence.cpu()[content], correct.cpu()[content], num_groups=len(documents)
        )
        return nll

    def score(self, device: torch.device | str, process_group: dist.ProcessGroup | None) -> Score:
        """Return the error over every document that was scored on any rank."""
        sums = self._sums
        if rank_and_world_size(process_group)[1] > 1:
            shared = sums.float().to(device)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=process_group)
            sums = shared.double().cpu()
        return calibration_score(sums)
