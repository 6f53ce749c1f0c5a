"""Find ids in rows of logits without sorting or summing whole rows more than once.

A row of V logits is seen as blocks of 64. One pass over the row gives every block's largest
logit and its sum of exponentials; what follows looks only at blocks that matter. The k largest
logits lie in the k blocks with the largest maxima, and a draw by inverse distribution function
falls into one block that the running sum of block sums names. With SmolLM2's 49,152 ids that is
one pass over 49,152 numbers and then k or N times 64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stillhouse.divergence.rows import LogitTransform
from stillhouse.teachers.protocol import Projection

BLOCK = 64
CPU_TILE_ROWS = 16
"""On CPU a tile's temporaries should stay in the cache (16 rows of 49,152 float32 are 3 MiB)."""


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

    def blocks_at(self, blocks: Tensor) -> Tensor:
        """Return the final logits [n, b, 64] of the blocks numbered ``blocks`` int64 [n, b]."""
        rows = torch.arange(len(self), device=blocks.device)[:, None]
        raw = self.raw.view(len(self), -1, BLOCK)[rows, blocks]
        bias = None if self.bias is None else self.bias.view(-1, BLOCK)[blocks]
        return _final(raw, bias, self.transform)


@dataclass(frozen=True)
class BlockSums:
    """One pass over the logits times ``factor`` (1/T, or tau/T).

    maxima [n, blocks] of the scaled logits; sums [n, blocks] of exp(scaled - top); top [n], the
    largest; log_total [n], their logsumexp; entropy [n] of the softmax, in nats.
    """

    factor: float
    maxima: Tensor
    sums: Tensor
    top: Tensor
    log_total: Tensor
    entropy: Tensor


def _final(raw: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Apply what the model does to its logits; -inf stays -inf under a soft-cap too."""
    z = transform.apply(raw, bias)
    return z if transform.softcap is None else torch.where(torch.isneginf(raw), -torch.inf, z)


def _tile_sums(raw: Tensor, bias: Tensor | None, transform: LogitTransform, factor: float) -> tuple[Tensor, ...]:
    z = _final(raw, bias, transform)
    if factor != 1.0:
        z = z * factor
    blocks = z.view(len(z), -1, BLOCK)
    maxima = blocks.amax(-1)
    top = maxima.amax(-1)
    exponentials = (blocks - top[:, None, None]).exp_()
    sums = exponentials.sum(-1)
    total = sums.sum(-1)
    # bmm is the fastest row-wise dot product there is on CPU.
    dot = torch.bmm(exponentials.view(len(z), 1, -1), z.view(len(z), -1, 1)).view(-1)
    masked = ~torch.isfinite(dot)  # 0 * -inf of masked ids
    if bool(masked.any()):
        dot[masked] = torch.where(exponentials[masked] > 0, exponentials[masked] * blocks[masked], 0.0).sum((-1, -2))
    log_total = top + total.log()
    return maxima, sums, top, log_total, log_total - dot / total


def block_sums(chunk: ChunkLogits, factor: float) -> BlockSums:
    """Make the one pass, in float32 (float64 for float64 logits)."""
    rows = CPU_TILE_ROWS if chunk.raw.device.type == "cpu" else max(1, len(chunk))
    tiles = [
        _tile_sums(chunk.raw[row : row + rows], chunk.bias, chunk.transform, factor)
        for row in range(0, len(chunk), rows)
    ]
    return BlockSums(factor, *(torch.cat(parts) for parts in zip(*tiles, strict=True)))


def largest(chunk: ChunkLogits, maxima: Tensor, k: int) -> Tensor:
    """Return the ids int64 [n, k] of the k largest logits of each row, largest first; exact.

    ``maxima`` [n, blocks] as in BlockSums. A block outside the k with the largest maxima holds no
    logit above the k-th of those maxima, so it can be left out.
    """
    k = min(k, chunk.vocab_size)
    blocks = maxima.topk(min(k, maxima.shape[1]), dim=1).indices
    candidates = chunk.blocks_at(blocks)
    ids = blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)
    # Padding columns must lose against real ids at -inf.
    candidates = torch.where(ids < chunk.vocab_size, candidates.nan_to_num(neginf=-3e38), -torch.inf)
    chosen = candidates.flatten(1).topk(k, dim=1).indices
    return ids.flatten(1).gather(1, chosen)


def inverse_cdf(chunk: ChunkLogits, sums: BlockSums, uniforms: Tensor) -> Tensor:
    """Return the ids int64 [n, N] at which the distribution function passes ``uniforms`` float64 [n, N].

    The distribution is softmax(factor * logits) in the order of the ids. Sorted uniforms in [0, 1)
    give sorted ids. An id without mass is never returned.
    """
    running = sums.sums.double().cumsum(1)
    goal = uniforms * running[:, -1:]
    block = _passed(running, goal)
    before = (running - sums.sums.double()).gather(1, block)
    scaled = chunk.blocks_at(block)
    scaled = scaled * sums.factor if sums.factor != 1.0 else scaled
    inside = (scaled - sums.top[:, None, None]).exp_().cumsum(-1)
    rest = (goal - before).to(inside.dtype)[:, :, None]
    # Rounding may leave the goal at the block's very end: then its last id with mass is meant.
    place = torch.minimum((inside <= rest).sum(-1), (inside < inside[:, :, -1:]).sum(-1))
    return block * BLOCK + place


def _passed(running: Tensor, goal: Tensor) -> Tensor:
    """Return the first column at which ``running`` [n, b] exceeds ``goal`` [n, N], never one without mass."""
    last = (running < running[:, -1:]).sum(1, keepdim=True)
    return torch.minimum(torch.searchsorted(running, goal, right=True), last)


def part(projection: Projection, start: int, stop: int) -> Projection:
    """Return the projection of rows ``start`` to ``stop``."""
    return replace(projection, hidden=projection.hidden[start:stop])
