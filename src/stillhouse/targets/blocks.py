"""Find ids in rows of logits without sorting or summing whole rows more than once.

A row of V logits is seen as blocks of 64. One pass over the row gives every block's largest
logit and its sum of exponentials; what follows looks only at blocks that matter. The k largest
logits lie in the k blocks with the largest maxima, and a draw by inverse distribution function
falls into one block that the running sum of block sums names. With SmolLM2's 49,152 ids that is
one pass over 49,152 numbers and then k or N times 64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from stillhouse.divergence.rows import LogitTransform, compiler_or_warning
from stillhouse.teachers.protocol import Projection

BLOCK = 64
EAGER_TILE_ROWS = 8
"""On CPU uncompiled temporaries should stay in the cache (8 rows of 49,152 float32 are 1.5 MiB)."""

COMPILED_TILE_ROWS = 64


@dataclass(frozen=True)
class ChunkLogits:
    """Logits of n tokens as they come from the matrix product, padded with -inf to whole blocks.

    raw [n, V_padded] in any float dtype; bias [V_padded] or None; ``vocab_size`` is V*, and all
    columns from it on are -inf.
    """

    raw: Tensor
    bias: Tensor | None
    transform: LogitTransform
    vocab_size: int

    @classmethod
    def of(cls, projection: Projection, vocab_size: int) -> ChunkLogits:
        """Multiply hidden states [n, H] with the first ``vocab_size`` rows of the head."""
        weight = projection.weight[:vocab_size]
        assert weight.shape[0] == vocab_size
        padding = -vocab_size % BLOCK
        raw = projection.hidden @ weight.T
        bias = None if projection.bias is None else projection.bias[:vocab_size]
        if padding:
            raw = nn.functional.pad(raw, (0, padding), value=-torch.inf)
            bias = None if bias is None else nn.functional.pad(bias, (0, padding))
        return cls(raw, bias, LogitTransform(projection.scale, projection.softcap), vocab_size)

    def __len__(self) -> int:
        return len(self.raw)

    def at(self, ids: Tensor) -> Tensor:
        """Return the final logits [n, k] at ``ids`` int64 [n, k]."""
        bias = None if self.bias is None else self.bias[ids]
        return _final(self.raw.gather(1, ids), bias, self.transform)

    def blocks_at(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """Return the final logits [.., 64] of the blocks numbered ``blocks`` int64 of the rows ``rows``."""
        raw = self.raw.view(len(self), -1, BLOCK)[rows, blocks]
        bias = None if self.bias is None else self.bias.view(-1, BLOCK)[blocks]
        return _final(raw, bias, self.transform)


@dataclass(frozen=True)
class BlockSums:
    """One pass over the logits times ``factor`` (1/T, or tau/T).

    maxima [n, blocks] of the scaled logits; masses [n, blocks], the sum of exp(scaled - top) where
    top is the row's largest; log_total [n], the logsumexp; entropy [n] of the softmax, in nats.
    """

    factor: float
    maxima: Tensor
    masses: Tensor
    log_total: Tensor
    entropy: Tensor


def _final(raw: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Apply what the model does to its logits; -inf stays -inf under a soft-cap too."""
    z = transform.apply(raw, bias)
    return z if transform.softcap is None else torch.where(torch.isneginf(raw), -torch.inf, z)


def _tile_sums(
    transform: LogitTransform, raw: Tensor, bias: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per block, the largest scaled logit m, the sum of e = exp(scaled - m), and that of e * scaled.

    Each block has its own m, so that one visit to its 64 logits does everything.
    """
    z = _final(raw, bias, transform) * factor
    blocks = z.view(z.shape[0], -1, BLOCK)
    maxima = blocks.amax(-1)
    finite = torch.where(maxima == -torch.inf, 0.0, maxima)
    exponentials = (blocks - finite[..., None]).exp()
    products = torch.where(blocks == -torch.inf, 0.0, exponentials * blocks)
    return maxima, exponentials.sum(-1), products.sum(-1)


@cache
def _tile_function(transform: LogitTransform, compiled: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    bound = partial(_tile_sums, transform)
    return torch.compile(bound, dynamic=False, fullgraph=True) if compiled else bound


def block_sums(chunk: ChunkLogits, factor: float, *, compiled: bool = False) -> BlockSums:
    """Make the one pass, in float32 (float64 for float64 logits)."""
    device = chunk.raw.device
    use_compiler = compiled and compiler_or_warning(device.type)
    function = _tile_function(chunk.transform, use_compiler)
    size = (COMPILED_TILE_ROWS if use_compiler else EAGER_TILE_ROWS) if device.type == "cpu" else max(1, len(chunk))
    dtype = torch.float64 if chunk.raw.dtype == torch.float64 else torch.float32
    scale = torch.tensor(factor, dtype=dtype, device=device)
    tiles = []
    for row in range(0, len(chunk), size):
        raw = chunk.raw[row : row + size]
        if use_compiler and len(raw) < size:  # one shape, one compilation
            raw = nn.functional.pad(raw, (0, 0, 0, size - len(raw)))
        tiles.append(function(raw, chunk.bias, scale))
    maxima, sums, products = (torch.cat(parts)[: len(chunk)] for parts in zip(*tiles, strict=True))
    top = maxima.amax(-1, keepdim=True)
    shares = (maxima - top).exp()
    masses = sums * shares
    total = masses.sum(-1)
    log_total = top.squeeze(-1) + total.log()
    return BlockSums(factor, maxima, masses, log_total, log_total - (products * shares).sum(-1) / total)


def largest(chunk: ChunkLogits, maxima: Tensor, k: int) -> Tensor:
    """Return the ids int64 [n, k] of the k largest logits of each row, largest first; exact.

    ``maxima`` [n, blocks] as in BlockSums. A block outside the k with the largest maxima holds no
    logit above the k-th of those maxima, so it can be left out.
    """
    k = min(k, chunk.vocab_size)
    blocks = maxima.topk(min(k, maxima.shape[1]), dim=1).indices
    candidates = chunk.blocks_at(torch.arange(len(chunk), device=blocks.device)[:, None], blocks)
    ids = blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)
    # Padding columns must lose against real ids at -inf.
    candidates = torch.where(ids < chunk.vocab_size, candidates.nan_to_num(neginf=-3e38), -torch.inf)
    chosen = candidates.flatten(1).topk(k, dim=1).indices
    return ids.flatten(1).gather(1, chosen)


def inverse_cdf(chunk: ChunkLogits, sums: BlockSums, uniforms: Tensor) -> Tensor:
    """Return the ids int64 [n, N] at which the distribution function passes ``uniforms`` float64 [n, N].

    The distribution is softmax(factor * logits) in the order of the ids. Uniforms lie in [0, 1) and
    ascend in each row, and so do the ids. An id without mass is never returned.
    """
    running = sums.masses.double().cumsum(1)
    goal = uniforms * running[:, -1:]
    last = (running < running[:, -1:]).sum(1, keepdim=True)
    block = torch.minimum(torch.searchsorted(running, goal, right=True), last)
    mass = sums.masses.gather(1, block).double()
    inside = (goal - running.gather(1, block) + mass) / mass
    return block * BLOCK + _places(chunk, sums.factor, block, inside)


def _places(chunk: ChunkLogits, factor: float, block: Tensor, inside: Tensor) -> Tensor:
    """Return the place in its block [n, N] of each draw, which lies at the share ``inside`` of the block's mass.

    Draws of one block stand together, so each block is looked at once: all these blocks' running
    shares, the i-th raised by 2i, make one ascending sequence to search in.
    """
    is_first = torch.ones_like(block, dtype=torch.bool)
    is_first[:, 1:] = block[:, 1:] != block[:, :-1]
    rows, columns = is_first.nonzero(as_tuple=True)
    scaled = chunk.blocks_at(rows, block[rows, columns]) * factor
    running = scaled.softmax(-1).double().cumsum(-1)  # [M, 64]
    ends = running[:, -1:]
    number = is_first.flatten().cumsum(0) - 1
    raised = running / ends + 2.0 * torch.arange(len(rows), device=block.device, dtype=running.dtype)[:, None]
    goal = inside.flatten().clamp(0, 1) + 2.0 * number
    place = torch.searchsorted(raised.flatten(), goal, right=True) - BLOCK * number
    # Rounding may put the goal at the block's very end: then its last id with mass is meant.
    last = (running < ends).sum(-1)
    return torch.minimum(place, last[number]).view_as(block)


def part(projection: Projection, start: int, stop: int) -> Projection:
    """Return the projection of rows ``start`` to ``stop``."""
    return replace(projection, hidden=projection.hidden[start:stop])
