"""Negative log-likelihood of single tokens from factored logits.

Logits exist for one chunk of tokens at a time, in float32, so evaluating a model with a large
vocabulary costs ``chunk * V`` floats and not ``N * V``. Training has its own fused version of
this; evaluation keeps a plain one, which the other is checked against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from stillhouse.teachers.protocol import Projection


def slice_vocabulary(projection: Projection, vocab_size: int | None) -> Projection:
    """Return ``projection`` with its first ``vocab_size`` rows: padding rows of the head get no probability.

    The slice happens before any softmax, so the probabilities of the real ids sum to one.
    ``None`` keeps all rows.
    """
    if vocab_size is None or vocab_size == projection.weight.shape[0]:
        return projection
    if vocab_size > projection.weight.shape[0]:
        raise ValueError(f"vocab_size={vocab_size} exceeds the head's {projection.weight.shape[0]} rows")
    bias = None if projection.bias is None else projection.bias[:vocab_size]
    return replace(projection, weight=projection.weight[:vocab_size], bias=bias)


def chunk_logits(projection: Projection, rows: slice) -> Tensor:
    """Return the logits of the positions ``rows``, float32 [n, V], scaled and soft-capped."""
    logits = F.linear(projection.hidden[rows], projection.weight, projection.bias).float()
    logits = logits * projection.scale
    if projection.softcap is None:
        return logits
    return projection.softcap * torch.tanh(logits / projection.softcap)


def chunk_slices(num_rows: int, chunk: int) -> Iterator[slice]:
    """Cut ``range(num_rows)`` into slices of at most ``chunk``; nothing for no rows."""
    return (slice(start, min(start + chunk, num_rows)) for start in range(0, num_rows, chunk))


@torch.no_grad()
def token_nll(projection: Projection, labels: Tensor, *, vocab_size: int | None, chunk: int) -> Tensor:
    """Return ``logsumexp(z) - z[label]`` per position in nats, float32 [N].

    projection: hidden [N, H] and head [V, H]; labels int64 [N], each below ``vocab_size``, the
    number of real ids (``None``: all V rows are real). ``chunk`` positions have logits at one time.
    """
    projection = slice_vocabulary(projection, vocab_size)
    nll = torch.empty(labels.shape[0], dtype=torch.float32, device=projection.hidden.device)
    for rows in chunk_slices(labels.shape[0], chunk):
        logits = chunk_logits(projection, rows)
        chosen = logits.gather(1, labels[rows, None]).squeeze(1)
        nll[rows] = torch.logsumexp(logits, dim=-1) - chosen
    return nll
