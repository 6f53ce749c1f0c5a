"""Codecs: what to keep of each distribution, and how many bits each part takes (methods.md section 4).

A record belongs to one document of t targets and is a run of planes (``bitpack``):

``top_k``    ids t*k, values t*k, with a ghost bucket one more value per target
``sampled``  listed ids per target t, ids m, then for tau = 1 one flag per id (drawn once or not) and
             the counts of those flagged, else a 16-bit weight per id

and then, with ``statistics``, the teacher's NLL of the label and (with ``entropy``) its entropy, 16 bits
each. Ids take ceil(log2 V*) bits. The most probable id comes first, so every codec knows the teacher's top-1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillhouse.errors import RecipeError, did_you_mean
from stillhouse.targets.bitpack import Bytes, IntArray, PlaneReader, PlaneWriter, bits_for, within
from stillhouse.targets.blocks import BlockSums, ChunkLogits, block_sums, inverse_cdf, largest
from stillhouse.targets.sparse import PADDING, SparseTargets, Tail

FLOAT16_BITS = 16
LOG_RANGE = 16.0
"""Log-probabilities below -16 (p < 1.2e-7) are kept as -16: their share of any loss is invisible."""

WEIGHT_SCALE = 1024.0
"""Puts importance weights from 6e-8 to 63 into float16's normal range."""


@dataclass(frozen=True)
class Selection:
    """What a codec keeps of n targets, as integers; ``slots`` [n] says how many of the flat [M] are whose.

    ids int64 [M]; codes int64 [M] (quantised values, counts, or float16 bits); tail int64 [n] or
    None; nll, entropy: float16 bits, int64 [n], or None.
    """

    slots: IntArray
    ids: IntArray
    codes: IntArray
    tail: IntArray | None = None
    nll: IntArray | None = None
    entropy: IntArray | None = None

    @classmethod
    def joined(cls, parts: list[Selection]) -> Selection:
        """Return several selections one after the other."""

        def column(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            return None if arrays[0] is None else np.concatenate(arrays)

        return cls(*(column(name) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Codec(ABC):
    """One way to keep distributions. Its fields are its whole configuration."""

    name: ClassVar[str]
    tail: ClassVar[Tail]

    statistics: bool = True
    """Keep the teacher's NLL of the label and its entropy, both at temperature 1: 4 bytes per target."""
    entropy: bool = True
    """False: of the statistics only the NLL. Whoever sees no whole distribution (a server) has no entropy."""

    @property
    def uniforms_per_target(self) -> int:
        """Random numbers that ``select`` needs for each target."""
        return 0

    @property
    def num_statistics(self) -> int:
        """How many numbers stand beside the distribution: none, the NLL, or the NLL and the entropy."""
        return (1 + self.entropy) * self.statistics

    @property
    def source_power(self) -> float:
        """Draws come from p to this power."""
        return 1.0

    @abstractmethod
    def typical_bits(self, vocab_size: int) -> float:
        """Bits per target, statistics included: exact for top-k, what chat data takes for sampled."""

    @abstractmethod
    def _choose(self, chunk: ChunkLogits, sums: BlockSums, source: BlockSums, uniforms: Tensor | None) -> Selection: ...

    @abstractmethod
    def _write(self, writer: PlaneWriter, chosen: Selection, targets: IntArray, vocab_size: int) -> None: ...

    @abstractmethod
    def _read(self, reader: PlaneReader, targets: IntArray, vocab_size: int) -> tuple[IntArray, IntArray, Tensor]:
        """Return slots [n], ids [M] and weights float32 [M]."""

    def describe(self) -> dict[str, Any]:
        """Return the configuration as JSON; ``codec_from`` reads it."""
        return {"type": self.name, **asdict(self)}

    def select(
        self,
        chunk: ChunkLogits,
        labels: Tensor,
        temperature: float,
        uniforms: Tensor | None,
        *,
        compiled: bool = False,
    ) -> Selection:
        """Keep what this codec keeps of n rows of logits; labels int64 [n].

        uniforms float64 [n, uniforms_per_target] in [0, 1), on the logits' device, or None where
        the codec draws nothing.
        """
        sums = partial(block_sums, chunk, compiled=compiled)
        plain = sums(1.0) if self.statistics or temperature == 1.0 else None
        warm = plain if plain is not None and temperature == 1.0 else sums(1.0 / temperature)
        source = sums(self.source_power / temperature) if self.source_power != 1.0 else warm
        chosen = self._choose(chunk, warm, source, uniforms)
        if not self.statistics:
            return chosen
        assert plain is not None
        nll = plain.log_total - chunk.at(labels[:, None]).squeeze(1)
        entropy = _float16_bits(plain.entropy) if self.entropy else None
        return replace(chosen, nll=_float16_bits(nll), entropy=entropy)

    def pack(self, chosen: Selection, targets: IntArray, vocab_size: int) -> tuple[Bytes, IntArray]:
        """Return the records of D documents with ``targets`` [D] targets each, and their offsets [D+1]."""
        writer = PlaneWriter(len(targets))
        self._write(writer, chosen, targets, vocab_size)
        for plane in (chosen.nll, chosen.entropy):
            if plane is not None:
                writer.add(FLOAT16_BITS, plane, targets)
        return writer.finish()

    def unpack(
        self, buffer: Bytes, starts: IntArray, targets: IntArray, *, vocab_size: int, temperature: float
    ) -> SparseTargets:
        """Read the records that begin at bytes ``starts`` [D]; the rows follow each other document by document."""
        reader = PlaneReader(buffer, starts)
        slots, ids, weight = self._read(reader, targets, vocab_size)
        statistics = [_from_float16_bits(reader.read(FLOAT16_BITS, targets)) for _ in range(self.num_statistics)]
        width = int(slots.max()) if len(slots) else 1
        row, column = torch.from_numpy(np.repeat(np.arange(len(slots)), slots)), torch.from_numpy(within(slots))
        padded_ids = torch.full((len(slots), width), PADDING, dtype=torch.int64)
        padded_ids[row, column] = torch.from_numpy(ids)
        padded_weight = torch.zeros(len(slots), width)
        padded_weight[row, column] = weight
        return SparseTargets(
            padded_ids,
            padded_weight,
            tail=self.tail,
            kind="sampled" if self.tail == "none" else "top_k",
            temperature=temperature,
            vocab_size=vocab_size,
            teacher_nll=statistics[0] if statistics else None,
            teacher_entropy=statistics[1] if len(statistics) > 1 else None,
        )


@dataclass(frozen=True)
class TopK(Codec):
    """The k most probable ids, renormalised; the rest is forgotten (biased, forward KL only).

    A log-probability l in [-16, 0] is kept as round(L * sqrt(-l / 16)) with L = 2^value_bits - 1: fine
    steps near certainty, coarse ones where the probability is small.
    """

    name: ClassVar[str] = "topk"
    tail: ClassVar[Tail] = "renormalised"

    k: int = 12
    value_bits: int = 8

    def __post_init__(self) -> None:
        if self.k < 1 or not 4 <= self.value_bits <= 16:
            raise RecipeError(
                f"teacher.cache.codec: k={self.k} must be at least 1 and value_bits={self.value_bits} between 4 and 16"
            )

    def _has_tail(self, vocab_size: int) -> bool:
        return self.tail == "ghost" and self.k < vocab_size

    def typical_bits(self, vocab_size: int) -> float:
        kept = min(self.k, vocab_size)
        values = kept + self._has_tail(vocab_size)
        return kept * bits_for(vocab_size - 1) + values * self.value_bits + FLOAT16_BITS * self.num_statistics

    def _choose(self, chunk: ChunkLogits, sums: BlockSums, source: BlockSums, uniforms: Tensor | None) -> Selection:
        assert source is sums
        assert uniforms is None
        ids = largest(chunk, sums.maxima, self.k)
        log_p = chunk.at(ids) * sums.factor - sums.log_total[:, None]
        return self.of_likeliest(ids, log_p, chunk.vocab_size)

    def of_likeliest(self, ids: Tensor, log_p: Tensor, vocab_size: int, nll: Tensor | None = None) -> Selection:
        """Keep n targets whose likeliest ids are known already.

        ids int64 and log_p float [n, min(k, V*)], the likeliest first; nll float [n] of the labels, or None.
        """
        assert ids.shape[1] == min(self.k, vocab_size)
        tail = None
        if self._has_tail(vocab_size):
            rest = (1 - log_p.double().exp().sum(1)).clamp_min(math.exp(-LOG_RANGE))
            tail = _quantised(rest.log(), self.value_bits)
        return Selection(
            slots=np.full(len(ids), ids.shape[1], np.int64),
            ids=_numpy(ids).reshape(-1),
            codes=_quantised(log_p, self.value_bits).reshape(-1),
            tail=tail,
            nll=None if nll is None else _float16_bits(nll),
        )

    def _write(self, writer: PlaneWriter, chosen: Selection, targets: IntArray, vocab_size: int) -> None:
        kept = targets * min(self.k, vocab_size)
        writer.add(bits_for(vocab_size - 1), chosen.ids, kept)
        writer.add(self.value_bits, chosen.codes, kept)
        if chosen.tail is not None:
            writer.add(self.value_bits, chosen.tail, targets)

    def _read(self, reader: PlaneReader, targets: IntArray, vocab_size: int) -> tuple[IntArray, IntArray, Tensor]:
        k, n = min(self.k, vocab_size), int(targets.sum())
        ids = reader.read(bits_for(vocab_size - 1), targets * k)
        mass = _dequantised(reader.read(self.value_bits, targets * k), self.value_bits).view(n, k)
        total = mass.sum(1, keepdim=True)
        if self._has_tail(vocab_size):
            total = total + _dequantised(reader.read(self.value_bits, targets), self.value_bits)[:, None]
        # Dividing makes the buckets a distribution again after rounding.
        return np.full(n, k, np.int64), ids, (mass / total).view(-1)


@dataclass(frozen=True)
class TopKGhost(TopK):
    """The k most probable ids, and the mass of all others as one bucket (any divergence)."""

    name: ClassVar[str] = "topk_ghost"
    tail: ClassVar[Tail] = "ghost"


@dataclass(frozen=True)
class Sampled(Codec):
    """Random-sampling KD (Anshumann et al. 2025, arXiv 2503.16870): N draws from p^tau, reweighted.

    The weights p_hat_i = (1/N) sum_n 1[x_n = i] p_i / s_i are unbiased: E[p_hat] = p, so the expected
    gradient of forward KL is the dense one. ``independent`` draws are the paper's: at tau = 1 the
    variance is p_i (1 - p_i) / N. ``systematic`` draws take the quantiles (n + u) / N of one random u
    per target. Each id is then drawn floor or ceil of N s_i times, so at tau = 1 p_hat is p rounded
    at random, without bias, to multiples of 1/N, with variance f (1 - f) / N^2 where f is the fraction
    of N p_i: the estimate is as unbiased, and likely ids have hardly any noise.
    """

    name: ClassVar[str] = "sampled"
    tail: ClassVar[Tail] = "none"

    draws: int = 50
    tau: float = 1.0
    method: Literal["systematic", "independent"] = "systematic"

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 65535 or not self.tau > 0:
            raise RecipeError(
                f"teacher.cache.codec: draws={self.draws} must be between 1 and 65535 and tau={self.tau} above 0"
            )

    @property
    def uniforms_per_target(self) -> int:
        return 1 if self.method == "systematic" else self.draws

    def typical_bits(self, vocab_size: int) -> float:
        listed = 1 + 0.25 * self.draws
        value = FLOAT16_BITS if self.tau != 1 else 1 + 0.4 * bits_for(self.draws)
        per_target = bits_for(self.draws) + FLOAT16_BITS * self.num_statistics
        return per_target + listed * (bits_for(vocab_size - 1) + value)

    @property
    def source_power(self) -> float:
        return self.tau

    def _choose(self, chunk: ChunkLogits, sums: BlockSums, source: BlockSums, uniforms: Tensor | None) -> Selection:
        assert uniforms is not None
        n = len(chunk)
        drawn = inverse_cdf(chunk, source, self._quantiles(uniforms))
        is_first = torch.ones_like(drawn, dtype=torch.bool)
        is_first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        starts = is_first.flatten().nonzero().squeeze(1)
        codes = starts.new_tensor(n * self.draws).view(1)
        codes = torch.diff(starts, append=codes)  # equal ids stand together, so gaps are counts
        if self.tau != 1:
            scaled = chunk.at(drawn).flatten()[starts]
            row = starts // self.draws
            log_ratio = scaled * (sums.factor - source.factor) - (sums.log_total - source.log_total)[row]
            codes = torch.from_numpy(_float16_bits(log_ratio.exp() * codes * (WEIGHT_SCALE / self.draws)))
        top = largest(chunk, sums.maxima, 1).squeeze(1)
        return _top_first(_numpy(top), _numpy(starts) // self.draws, _numpy(drawn.flatten()[starts]), _numpy(codes))

    def _quantiles(self, uniforms: Tensor) -> Tensor:
        """Return sorted numbers in [0, 1), [n, draws]."""
        if self.method == "independent":
            return uniforms.sort(dim=1).values
        return (torch.arange(self.draws, device=uniforms.device, dtype=uniforms.dtype) + uniforms) / self.draws

    def _write(self, writer: PlaneWriter, chosen: Selection, targets: IntArray, vocab_size: int) -> None:
        listed = _sums_per_document(chosen.slots, targets)
        writer.add(bits_for(self.draws), chosen.slots - 1, targets)
        writer.add(bits_for(vocab_size - 1), chosen.ids, listed)
        if self.tau != 1:
            writer.add(FLOAT16_BITS, chosen.codes, listed)
            return
        flagged = (chosen.codes != 1).astype(np.int64)
        writer.add(1, flagged, listed)
        writer.add(bits_for(self.draws), chosen.codes[flagged == 1], _sums_per_document(flagged, listed))

    def _read(self, reader: PlaneReader, targets: IntArray, vocab_size: int) -> tuple[IntArray, IntArray, Tensor]:
        slots = reader.read(bits_for(self.draws), targets) + 1
        listed = _sums_per_document(slots, targets)
        ids = reader.read(bits_for(vocab_size - 1), listed)
        if self.tau != 1:
            return slots, ids, _from_float16_bits(reader.read(FLOAT16_BITS, listed)) / WEIGHT_SCALE
        flagged = reader.read(1, listed)
        counts = np.ones(len(ids), np.int64)
        counts[flagged == 1] = reader.read(bits_for(self.draws), _sums_per_document(flagged, listed))
        return slots, ids, torch.from_numpy(counts).float() / self.draws


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (TopK, TopKGhost, Sampled)}


def codec_from(description: dict[str, Any]) -> Codec:
    """Return the codec that ``describe`` described. Raises RecipeError for an unknown type or field."""
    fields = dict(description)
    name = str(fields.pop("type", None))
    if name not in CODECS:
        raise RecipeError(
            f"teacher.cache.codec.type={name}: must be one of {', '.join(CODECS)}.{did_you_mean(name, CODECS)}"
        )
    unknown = fields.keys() - CODECS[name].__dataclass_fields__.keys()
    if unknown:
        raise RecipeError(f"teacher.cache.codec.{sorted(unknown)[0]}: the codec {name} has no such field")
    return CODECS[name](**fields)


def _top_first(top: IntArray, row: IntArray, ids: IntArray, codes: IntArray) -> Selection:
    """Order drawn ids so that ``top`` [n] opens each row, with code 0 where it was not drawn.

    row, ids, codes [M] list the distinct draws, rows ascending.
    """
    is_top = ids == top[row]
    others = np.flatnonzero(~is_top)
    place = np.arange(len(others)) + row[others] + 1  # every row so far opens with one more entry
    slots = 1 + np.bincount(row[others], minlength=len(top))
    first = np.cumsum(slots) - slots
    all_ids, all_codes = np.empty(int(slots.sum()), np.int64), np.zeros(int(slots.sum()), np.int64)
    all_ids[first], all_ids[place] = top, ids[others]
    all_codes[first[row[is_top]]], all_codes[place] = codes[is_top], codes[others]
    return Selection(slots.astype(np.int64), all_ids, all_codes)


def _sums_per_document(values: IntArray, counts: IntArray) -> IntArray:
    """Sum ``values`` over consecutive groups of ``counts`` [D] elements; empty groups give 0."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    ends = np.cumsum(counts)
    sums: IntArray = running[ends] - running[ends - counts]
    return sums


def _numpy(values: Tensor) -> IntArray:
    return values.to("cpu", torch.int64).numpy()


def _quantised(log_p: Tensor, bits: int) -> IntArray:
    share = (-log_p).clamp(0, LOG_RANGE) / LOG_RANGE
    return _numpy((share.sqrt() * ((1 << bits) - 1)).round())


def _dequantised(codes: IntArray, bits: int) -> Tensor:
    """Return probabilities, float32."""
    return (torch.from_numpy(codes).float() / ((1 << bits) - 1)).square().mul(-LOG_RANGE).exp()


def _float16_bits(values: Tensor) -> IntArray:
    halves: npt.NDArray[np.uint16] = values.to("cpu", torch.float16).numpy().view(np.uint16)
    return halves.astype(np.int64)


def _from_float16_bits(codes: IntArray) -> Tensor:
    return torch.from_numpy(codes.astype(np.uint16).view(np.float16)).float()
