"""The fused objective on sparse teacher targets: cross-entropy and KD in one gradient, student matmuls only.

A row of logits is split into the *listed* ids (the teacher's k, and the label) and all others. The
listed ones are taken out by a gather, and -inf is put in their place, so one pass over the rest
gives its logsumexp exactly; everything about k + 1 buckets is then arithmetic on [n, k]. The
gradient at the others is a multiple of their softmax, and a scatter puts the listed ids back.

With f = kd_weight * T^2 / T, S = sum of a over the buckets, and r the bucket of all ids not kept:

    kept i      w_ce (q_i - [i = y]) + f (a_i - S q_i)
    other j     w_ce (q_j - [j = y]) + f (a_r / q_r - S) q_j

which is methods.md section 4 for every divergence on a ghost bucket. Renormalised top-k and random
sampling have a_i = -weight_i and a_r = 0, so the gradient is (sum weight) q - weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from stillhouse.divergence.base import Divergence
from stillhouse.divergence.head_gradients import (
    HeadGradients,
    add_head_gradients,
    attach_gradients,
    check_heads,
    fill_logits,
    forming_gradients,
    gradient_factors,
    make_sinks,
    real_rows,
)
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms, summarise
from stillhouse.divergence.rows import LogitTransform, Statistics, compiler_or_warning, tile_rows
from stillhouse.errors import RecipeError
from stillhouse.targets.sparse import SparseTargets, Tail
from stillhouse.teachers.protocol import Projection

CACHED_ROWS = 32
"""On CPU both dense passes go over so many rows in turn, while they are still in the cache (3 MiB at 49,152 ids in bfloat16)."""

LEAST_TAIL = 2.0**-24
"""Half the spacing of float32 below 1: a ghost of less than this cannot be told from rounding."""


def check_sparse_targets(tail: Tail, temperature: float, terms: ObjectiveTerms, *, stage: int = 0) -> None:
    """Refuse what methods.md section 4 does not allow on these targets.

    Renormalised and sampled targets serve forward KL only; a ghost bucket serves every divergence.
    The temperature is fixed at capture, since p^(1/T) of a mass that is not kept is unknown. Raises
    RecipeError naming both recipe fields.
    """
    if terms.divergence is None:
        return
    field = f"stages.{stage}.objective"
    if tail != "ghost" and terms.divergence.name != "forward_kl":
        codec = "topk" if tail == "renormalised" else "sampled"
        raise RecipeError(
            f"{field}.divergence={terms.divergence.name} cannot be used with teacher.cache.codec={codec}: such "
            f"targets say nothing about ids they do not list; use {field}.divergence.type: forward_kl, or capture "
            "with codec topk_ghost, which serves every divergence"
        )
    if terms.temperature != temperature:
        raise RecipeError(
            f"{field}.temperature={terms.temperature} differs from teacher.cache.temperature={temperature}, at which "
            "the targets were captured; make them equal, or capture again"
        )


def sparse_objective(
    student: Projection,
    labels: Tensor,
    targets: SparseTargets,
    terms: ObjectiveTerms,
    *,
    normaliser: float | Tensor,
    chunk: int,
    compiled: bool,
    weight_grad_accumulator: Tensor | None = None,
) -> ObjectiveOutput:
    """Evaluate the objective at N target tokens on sparse targets; the contract of ``fused_objective``.

    labels int64 [N]; ``targets`` has N rows on the same device. ``kd`` is the divergence itself,
    except for sampled targets, where it is -sum p_hat log q: KL(p_hat || q) would add a constant that
    only says how coarse the sample is. ``teacher_nll`` and ``teacher_entropy`` are what the capture kept
    (None if nothing); top-1 agreement compares with the teacher's most probable id.

    Raises RecipeError for a divergence or temperature that these targets cannot serve, and ModelError
    where the head has fewer rows than ``terms.vocab_size``.
    """
    assert targets.vocab_size == terms.vocab_size
    assert len(targets) == len(labels)
    check_sparse_targets(targets.tail, targets.temperature, terms)
    check_heads(student, labels, student, terms)
    sinks = make_sinks(student, weight_grad_accumulator)
    with forming_gradients(student.hidden.device.type):
        run = _Run(real_rows(student, terms.vocab_size), terms, normaliser, chunk, compiled, sinks)
        output = summarise(run.all(labels, targets), terms, normaliser)
        output = replace(output, teacher_nll=targets.teacher_nll, teacher_entropy=targets.teacher_entropy)
    if not sinks.wanted:
        return output
    weight_is_done = weight_grad_accumulator is not None and sinks.weight is not None
    return replace(output, loss=attach_gradients(output.loss, student, sinks, weight_is_done=weight_is_done))


# --- the unlisted ids: dense passes, compiled ------------------------------------------------


@dataclass(frozen=True)
class _Rest:
    """What one dense pass says about the unlisted ids of n rows, each [n].

    ``top``: their largest logit; ``log_total``: their logsumexp; ``square``: the sum of squares of
    their softmax among themselves (0 where there is no unlisted id). ``warm_*``: at 1/T.
    """

    top: Tensor
    log_total: Tensor
    square: Tensor
    warm_log_total: Tensor
    warm_square: Tensor


_StatisticsPass = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, ...]]
_GradientPass = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]


def _final(raw: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """The final logits; listed ids, -inf in ``raw``, stay so under a soft-cap."""
    z = transform.apply(raw, bias)
    return z if transform.softcap is None else torch.where(raw == -torch.inf, -torch.inf, z)


def _log_total(z: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return logsumexp [R] and the sum of squares of the softmax [R]; -inf and 0 for an empty row."""
    exponentials = (z - top).exp()
    total, squares = exponentials.sum(-1), exponentials.square().sum(-1)
    return top.squeeze(-1) + total.log(), torch.where(total > 0, squares / total.square(), 0.0)


def _statistics_rows(
    transform: LogitTransform, unit: bool, raw: Tensor, bias: Tensor | None, inverse_temperature: Tensor
) -> tuple[Tensor, ...]:
    """The fields of ``_Rest`` for a tile, raw [R, V]."""
    z = _final(raw, bias, transform)
    top = z.amax(-1, keepdim=True)
    finite = torch.where(top == -torch.inf, 0.0, top)
    cold = _log_total(z, finite)
    warm = cold if unit else _log_total(z * inverse_temperature, finite * inverse_temperature)
    return top.squeeze(-1), *cold, *warm


def _gradient_rows(
    transform: LogitTransform,
    unit: bool,
    raw: Tensor,
    bias: Tensor | None,
    inverse_temperature: Tensor,
    log_totals: Tensor,
    shares: Tensor,
) -> Tensor:
    """Return the gradient at the raw logits [R, V]: 0 at listed ids, elsewhere the softmax times its share.

    log_totals, shares [R, 2]: logsumexp over the unlisted ids and the gradient that they have together,
    at temperature 1 and at T; with ``unit`` only the first column is read.
    """
    z = _final(raw, bias, transform)
    finite = torch.where(log_totals == -torch.inf, 0.0, log_totals)
    gradient = (z - finite[:, :1]).exp() * shares[:, :1]
    if not unit:
        gradient = gradient + (z * inverse_temperature - finite[:, 1:]).exp() * shares[:, 1:]
    full = transform.backward(gradient, z)
    if transform.softcap is not None:
        full = torch.where(z == -torch.inf, 0.0, full)  # 0 * inf
    return full.to(raw.dtype)


@cache
def _passes(transform: LogitTransform, unit: bool, compiled: bool) -> tuple[_StatisticsPass, _GradientPass]:
    """Bind both passes, compiled once each for a transform, a kind of temperature and a dtype."""

    def statistics(raw: Tensor, bias: Tensor | None, inverse_temperature: Tensor) -> tuple[Tensor, ...]:
        return _statistics_rows(transform, unit, raw, bias, inverse_temperature)

    def gradient(
        raw: Tensor, bias: Tensor | None, inverse_temperature: Tensor, log_totals: Tensor, shares: Tensor
    ) -> Tensor:
        return _gradient_rows(transform, unit, raw, bias, inverse_temperature, log_totals, shares)

    if not compiled:
        return statistics, gradient
    return torch.compile(statistics, dynamic=False, fullgraph=True), torch.compile(
        gradient, dynamic=False, fullgraph=True
    )


# --- the listed ids: k columns, eager ----------------------------------------------------------


@dataclass(frozen=True)
class _Listed:
    """The teacher's ids and the label of n rows, and their logits.

    columns int64 [n, k+1], the label last; unused slots repeat column 0. ``kept`` bool [n, k]: slots
    in use. ``label_apart`` bool [n]: the label is none of them. ``is_label`` bool [n, k]. z [n, k+1]
    final logits.
    """

    columns: Tensor
    kept: Tensor
    label_apart: Tensor
    is_label: Tensor
    z: Tensor

    @classmethod
    def take_out(cls, raw: Tensor, ids: Tensor, labels: Tensor, head: Projection) -> _Listed:
        """Gather the listed logits from raw [n, V] and leave -inf in their places."""
        kept = ids >= 0
        is_label = ids == labels[:, None]
        columns = torch.cat([torch.where(kept, ids, ids[:, :1]), labels[:, None]], dim=1)
        bias = None if head.bias is None else head.bias[columns]
        z = LogitTransform(head.scale, head.softcap).apply(raw.gather(1, columns), bias)
        raw.scatter_(1, columns, -torch.inf)
        return cls(columns, kept, ~is_label.any(1), is_label, z)

    @property
    def counted(self) -> Tensor:
        """bool [n, k+1]: columns that stand for an id of their own."""
        return torch.cat([self.kept, self.label_apart[:, None]], dim=1)


@dataclass(frozen=True)
class _Softmax:
    """The student's distribution at one temperature: listed log q [n, k+1], and the rest.

    rest [n]: log of the unlisted ids' mass. apart [n]: log q of the label where it is not kept, else
    -inf. tail [n]: log mass of all ids not kept.
    """

    log_q: Tensor
    rest: Tensor
    apart: Tensor
    tail: Tensor

    @classmethod
    def of(cls, listed: _Listed, scale: Tensor | float, log_rest: Tensor) -> _Softmax:
        scaled = listed.z * scale
        own = torch.where(listed.counted, scaled, -torch.inf)
        total = torch.logaddexp(torch.logsumexp(own, 1), log_rest)
        apart = own[:, -1] - total
        rest = log_rest - total
        return cls(scaled - total[:, None], rest, apart, torch.logaddexp(apart, rest))


@dataclass(frozen=True)
class _Buckets:
    """The divergence and its gradient on the kept ids: value [n], a [n, k] and a_r [n]."""

    value: Tensor
    a: Tensor
    a_tail: Tensor

    @property
    def total(self) -> Tensor:
        """S [n]."""
        return self.a.sum(1) + self.a_tail


def _listed_buckets(weight: Tensor, log_q: Tensor, *, entropy: bool) -> _Buckets:
    """Forward KL on the listed ids only; without ``entropy`` the cross-entropy -sum weight log q."""
    inner = weight.log() - log_q if entropy else -log_q
    value = torch.where(weight > 0, weight * inner, 0.0).sum(1)
    return _Buckets(value, -weight, torch.zeros_like(value))


def _ghost_buckets(divergence: Divergence, weight: Tensor, kept: Tensor, softmax: _Softmax, has_tail: bool) -> _Buckets:
    """Any divergence between the kept ids with one bucket for all others, [n, k+1] each."""
    log_q = torch.cat([torch.where(kept, softmax.log_q[:, :-1], -torch.inf), softmax.tail[:, None]], dim=1)
    tail = (1 - weight.sum(1)).clamp_min(LEAST_TAIL if divergence.teacher_must_cover else 0.0)
    if not has_tail:
        tail = torch.zeros_like(tail)
        log_q[:, -1] = -torch.inf
    log_p = torch.cat([torch.where(kept, weight, 0.0), tail[:, None]], dim=1).log()
    value, a = divergence.row_terms(log_p, log_q)
    return _Buckets(value, a[:, :-1], a[:, -1])


# --- chunk by chunk ------------------------------------------------------------------------------


class _Run:
    """One evaluation: the student's head over chunks of tokens, gradients into ``sinks``."""

    def __init__(
        self,
        head: Projection,
        terms: ObjectiveTerms,
        normaliser: float | Tensor,
        chunk: int,
        compiled: bool,
        sinks: HeadGradients,
    ) -> None:
        self._head, self._terms, self._chunk, self._sinks = head, terms, chunk, sinks
        device = head.hidden.device
        self._inverse, self._ce_factor, self._kd_factor = gradient_factors(terms, normaliser, head.hidden).unbind()
        self._unit = terms.temperature == 1.0
        self._transform = LogitTransform(head.scale, head.softcap)
        self._tile = tile_rows(chunk, device)
        use_compiler = compiled and compiler_or_warning(device.type)
        self._statistics_pass, self._gradient_pass = _passes(self._transform, self._unit, use_compiler)

    def all(self, labels: Tensor, targets: SparseTargets) -> Statistics:
        """Return the statistics of all tokens, each [N]."""
        num_tokens, tile = len(labels), self._tile
        group = tile * max(1, CACHED_ROWS // tile)
        buffer = self._head.hidden.new_empty(-(-min(self._chunk, num_tokens) // tile) * tile, self._terms.vocab_size)
        parts: list[Statistics] = []
        for start in range(0, num_tokens, self._chunk):
            stop = min(start + self._chunk, num_tokens)
            filled = fill_logits(self._head, start, stop, buffer)
            for row in range(0, stop - start, group):
                tokens = slice(start + row, min(start + row + group, stop))
                rows = buffer[row : row + group]
                parts.append(self._one(rows, filled[row : row + group], labels[tokens], targets, tokens))
            add_head_gradients(filled, self._head, start, stop, self._sinks)
        if not parts:
            empty = self._inverse.new_zeros(0)
            return dict.fromkeys(("ce", "kd", "top1_agreement", "ce_square", "kd_square"), empty)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _one(self, buffer: Tensor, filled: Tensor, labels: Tensor, targets: SparseTargets, tokens: slice) -> Statistics:
        """Statistics of ``tokens``; their raw logits, ``filled``, become the gradient.

        ``buffer`` holds the same rows and as many more as make whole tiles.
        """
        listed = _Listed.take_out(filled, targets.ids[tokens], labels, self._head)
        rest = self._pass_over_rest(buffer, len(filled))
        cold = _Softmax.of(listed, 1.0, rest.log_total)
        warm = cold if self._unit else _Softmax.of(listed, self._inverse, rest.warm_log_total)
        weight = targets.weight[tokens].to(cold.log_q.dtype)
        buckets = self._buckets(weight, listed, warm, targets)
        ce = -torch.where(listed.label_apart, cold.apart, cold.log_q[:, -1])
        top = torch.maximum(rest.top, listed.z.amax(1))
        ce_listed, ce_rest = _ce_gradient(listed, cold)
        kd_listed, kd_rest = _kd_gradient(listed, warm, buckets)
        if self._sinks.wanted:
            gradient = self._ce_factor * ce_listed + self._kd_factor * kd_listed
            self._scatter_gradient(buffer, filled, listed, gradient, rest, ce_rest, kd_rest)
        return {
            "ce": ce,
            "kd": buckets.value,
            "top1_agreement": (listed.z[:, 0] == top).to(ce.dtype),
            "ce_square": ce_listed.square().sum(1) + ce_rest.square() * rest.square,
            "kd_square": kd_listed.square().sum(1) + kd_rest.square() * rest.warm_square,
        }

    def _pass_over_rest(self, buffer: Tensor, rows: int) -> _Rest:
        tiles = [self._statistics_pass(tile, self._head.bias, self._inverse) for tile in self._tiles(buffer, rows)]
        return _Rest(*(torch.cat(column)[:rows] for column in zip(*tiles, strict=True)))

    def _tiles(self, buffer: Tensor, rows: int) -> list[Tensor]:
        """Whole tiles that hold the first ``rows`` rows."""
        return [buffer[row : row + self._tile] for row in range(0, rows, self._tile)]

    def _buckets(self, weight: Tensor, listed: _Listed, warm: _Softmax, targets: SparseTargets) -> _Buckets:
        if targets.tail == "ghost" and self._terms.divergence is not None:
            has_tail = weight.shape[1] < self._terms.vocab_size
            return _ghost_buckets(self._terms.divergence, weight, listed.kept, warm, has_tail)
        return _listed_buckets(weight, warm.log_q[:, :-1], entropy=targets.kind == "top_k")

    def _scatter_gradient(
        self,
        buffer: Tensor,
        filled: Tensor,
        listed: _Listed,
        gradient: Tensor,
        rest: _Rest,
        ce_rest: Tensor,
        kd_rest: Tensor,
    ) -> None:
        """Turn raw logits into gradients: the unlisted ids tile by tile, then the listed ones [n, k+1]."""
        ce_share, kd_share = self._ce_factor * ce_rest, self._kd_factor * kd_rest
        if self._unit:
            ce_share, kd_share = ce_share + kd_share, torch.zeros_like(kd_share)
        padding = (0, 0, 0, -len(filled) % self._tile)
        shares = torch.nn.functional.pad(torch.stack([ce_share, kd_share], dim=1), padding)
        log_totals = torch.nn.functional.pad(torch.stack([rest.log_total, rest.warm_log_total], dim=1), padding)
        for number, tile in enumerate(self._tiles(buffer, len(filled))):
            rows = slice(number * self._tile, (number + 1) * self._tile)
            tile.copy_(self._gradient_pass(tile, self._head.bias, self._inverse, log_totals[rows], shares[rows]))
        explicit = torch.where(listed.counted, self._transform.backward(gradient, listed.z), 0.0)
        filled.scatter_add_(1, listed.columns, explicit.to(filled.dtype))


def _ce_gradient(listed: _Listed, cold: _Softmax) -> tuple[Tensor, Tensor]:
    """q - onehot(label) at the listed ids [n, k+1], and its sum over the unlisted ones [n]."""
    is_label = torch.cat([listed.is_label, listed.label_apart[:, None]], dim=1)
    return torch.where(listed.counted, cold.log_q.exp() - is_label.to(cold.log_q.dtype), 0.0), cold.rest.exp()


def _kd_gradient(listed: _Listed, warm: _Softmax, buckets: _Buckets) -> tuple[Tensor, Tensor]:
    """T * dD/dz at the listed ids [n, k+1], and its sum over the unlisted ones [n]."""
    total = buckets.total
    kept = buckets.a - total[:, None] * warm.log_q[:, :-1].exp()
    # Shares of the tail's a_r: q_j / q_r, in logarithms, for q_r may be tiny.
    finite_tail = torch.where(warm.tail == -torch.inf, 0.0, warm.tail)
    apart = buckets.a_tail * (warm.apart - finite_tail).exp() - total * warm.apart.exp()
    rest = buckets.a_tail * (warm.rest - finite_tail).exp() - total * warm.rest.exp()
    gradient = torch.cat([kept, apart[:, None]], dim=1)
    return torch.where(listed.counted, gradient, 0.0), rest
