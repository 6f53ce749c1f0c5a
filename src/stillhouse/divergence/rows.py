"""The pointwise half of the fused objective: from a few rows of logits to statistics and gradients.

One function serves both ways of running it. It is compiled once for each ``RowSpec`` and
dtype (C++ on CPU, Triton on an accelerator), with weights and temperature as a tensor and a
fixed number of rows, since every change of a shape or a Python float would compile again. The
eager path runs the very same function.

On CPU a tile is a few rows, so that all passes over a tile find it in the cache; measured
with SmolLM2's head that halves the compiled time, and it keeps eager temporaries small.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from stillhouse.divergence.base import Distribution, Divergence, logit_gradient, weighted

CPU_ROWS_PER_THREAD = 8

Statistics = dict[str, Tensor]
RowFunction = Callable[
    [Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Statistics, Tensor | None]
]


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to ``hidden @ weight.T``: bias, scale, soft-cap, in this order."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, raw: Tensor, bias: Tensor | None) -> Tensor:
        """Return the final logits [R, V] in float32 (float64 stays), from raw ones [R, V]."""
        z = raw if raw.dtype == torch.float64 else raw.float()
        if bias is not None:
            z = z + bias.to(z.dtype)
        if self.scale != 1.0:
            z = z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def backward(self, gradient: Tensor, z: Tensor) -> Tensor:
        """Return the gradient at ``raw + bias`` from the one at the final logits ``z``, all [R, V]."""
        if self.softcap is not None:
            gradient = gradient * (1 - (z / self.softcap).square())
        return gradient if self.scale == 1.0 else gradient * self.scale


@dataclass(frozen=True)
class RowSpec:
    """Everything that shapes the computation, and so the key of a compilation."""

    student: LogitTransform
    teacher: LogitTransform | None
    divergence: Divergence | None
    unit_temperature: bool
    """The divergence may reuse the log-probabilities at temperature 1."""
    ce_gradient: bool
    kd_gradient: bool

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that ``objective_rows`` gives for every row."""
        names = ["ce"]
        if self.ce_gradient:
            names.append("ce_square")
        if self.teacher is not None:
            names += ["teacher_nll", "teacher_entropy", "top1_agreement"]
            if self.divergence is not None:
                names += ["kd", "kd_square"] if self.kd_gradient else ["kd"]
        return tuple(names)


def softmax_of_shifted(shifted: Tensor) -> Distribution:
    """Return the softmax of rows [R, V] whose largest entry is already 0, with its logarithm.

    One exponential an entry serves both. The maximum is a statistic of its own here, and
    subtracting it before the logarithm of the sum keeps the digits of logits all near 1e4.
    """
    exponentials = shifted.exp()
    total = exponentials.sum(-1, keepdim=True)
    return Distribution(exponentials * total.reciprocal(), shifted - total.log())


def objective_rows(
    spec: RowSpec,
    student_raw: Tensor,
    teacher_raw: Tensor | None,
    labels: Tensor,
    factors: Tensor,
    student_bias: Tensor | None,
    teacher_bias: Tensor | None,
) -> tuple[Statistics, Tensor | None]:
    """Return statistics per row, each [R], and the gradient at the student's raw logits [R, V].

    student_raw, teacher_raw [R, V] in any float dtype; labels int32 [R]; factors [3] = (1/T, weight
    of the CE gradient, weight of the divergence's ``a - q sum(a)``). Everything is computed in
    float32 (float64 for float64) and the gradient rounded to the dtype of ``student_raw``.
    """
    z = spec.student.apply(student_raw, student_bias)
    top = z.amax(-1, keepdim=True)
    q = softmax_of_shifted(z - top)
    index = labels.long()[:, None]
    stats = {"ce": -q.log.gather(1, index).squeeze(1)}
    gradients = []
    if spec.ce_gradient:
        is_label = torch.arange(z.shape[1], device=z.device, dtype=labels.dtype) == labels[:, None]
        ce_gradient = torch.where(is_label, q.prob - 1, q.prob)
        stats["ce_square"] = ce_gradient.square().sum(-1)
        gradients.append(ce_gradient * factors[1])
    if spec.teacher is not None:
        assert teacher_raw is not None
        y = spec.teacher.apply(teacher_raw, teacher_bias)
        teacher_top = y.amax(-1, keepdim=True)
        p = softmax_of_shifted(y - teacher_top)
        stats["teacher_nll"] = -p.log.gather(1, index).squeeze(1)
        stats["teacher_entropy"] = -weighted(p.prob, p.log).sum(-1)
        both_top = (z == top) & (y == teacher_top)
        stats["top1_agreement"] = torch.where(both_top, 1.0, 0.0).amax(-1)  # any(-1) does not vectorise
        if spec.divergence is not None:
            if not spec.unit_temperature:
                q = softmax_of_shifted((z - top) * factors[0])
                p = softmax_of_shifted((y - teacher_top) * factors[0])
            stats["kd"], a = spec.divergence.terms(p, q)
            if spec.kd_gradient:
                kd_gradient = logit_gradient(a, q.prob)
                stats["kd_square"] = kd_gradient.square().sum(-1)
                gradients.append(kd_gradient * factors[2])
    if not gradients:
        return stats, None
    return stats, spec.student.backward(sum(gradients[1:], gradients[0]), z).to(student_raw.dtype)


def compiler_available(device: torch.device | str = "cpu") -> bool:
    """Can ``torch.compile`` build code for ``device``?

    On CPU that takes a C++ compiler (``$CXX``, else g++) and Python's headers; elsewhere Triton.
    """
    if torch.device(device).type != "cpu":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.is_file()


@cache
def compiler_or_warning(device_type: str) -> bool:
    """``compiler_available``, with one warning in a process where there is none."""
    available = compiler_available(device_type)
    if not available:
        warnings.warn(
            f"no compiler for {device_type}: the objective's pointwise part runs uncompiled, about 5 times slower. "
            "Install g++ and Python's headers (or Triton on an accelerator), or set compile_head: false.",
            RuntimeWarning,
            stacklevel=4,
        )
    return available


@cache
def _bind(spec: RowSpec, compiled: bool) -> RowFunction:
    def rows(
        student_raw: Tensor,
        teacher_raw: Tensor | None,
        labels: Tensor,
        factors: Tensor,
        student_bias: Tensor | None,
        teacher_bias: Tensor | None,
    ) -> tuple[Statistics, Tensor | None]:
        return objective_rows(spec, student_raw, teacher_raw, labels, factors, student_bias, teacher_bias)

    return torch.compile(rows, dynamic=False, fullgraph=True) if compiled else rows


def row_function(spec: RowSpec, *, compiled: bool, device: torch.device) -> RowFunction:
    """Return ``objective_rows`` with ``spec`` bound, compiled where asked for and possible.

    Warns once (RuntimeWarning) and stays eager where there is no compiler.
    """
    return _bind(spec, compiled and compiler_or_warning(device.type))


def tile_rows(chunk: int, device: torch.device) -> int:
    """Rows per call of a row function: a few per thread on CPU, the whole chunk elsewhere."""
    return CPU_ROWS_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else chunk
