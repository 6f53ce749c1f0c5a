"""Mixture policies: how much of each domain the next interval sees.

One small interface. The run measures the validation NLL at the start of every interval (the first
one before any training), hands it to ``update`` and draws the interval by ``weights``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from stillhouse.data.document import BoolArray, Int64Array
from stillhouse.errors import TrainingError
from stillhouse.mixture.discrepancy import DiscrepancyRatios
from stillhouse.mixture.weights import (
    FloatArray,
    active_domains,
    floats_from_json,
    floats_to_json,
    proportional_weights,
)

StaticType = Literal["proportional", "equal", "fixed", "doremi"]


class Policy(Protocol):
    """What decides the weights. All vectors are [D], in the order of ``domains``."""

    @property
    def domains(self) -> tuple[str, ...]: ...

    @property
    def needs_measurements(self) -> bool:
        """Whether ``weights`` depend on what ``update`` is told."""
        ...

    @property
    def ratios(self) -> FloatArray:
        """The newest measured discrepancy ratio of each domain, NaN where there is none; for reports."""
        ...

    def weights(self) -> FloatArray:
        """The weights of the interval that starts now, float64 [D] with sum 1."""
        ...

    def update(self, nll_student: FloatArray, nll_teacher: FloatArray, counts: Int64Array) -> None:
        """Take the measurement of an interval's start: NLL in nats per token, ``counts`` of validation tokens."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run, as JSON that restores every bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``; TrainingError when it belongs to another policy or other domains."""
        ...


class StaticPolicy:
    """Weights that never move; ratios are kept for the report where a run measures them anyway."""

    needs_measurements = False

    def __init__(self, type_: StaticType, domains: Sequence[str], weights: FloatArray) -> None:
        assert weights.shape == (len(domains),)
        self.domains = tuple(domains)
        self._type = type_
        self._weights = weights
        self._discrepancy = DiscrepancyRatios(domains)

    @property
    def ratios(self) -> FloatArray:
        return self._discrepancy.measured

    def weights(self) -> FloatArray:
        return self._weights.copy()

    def update(self, nll_student: FloatArray, nll_teacher: FloatArray, counts: Int64Array) -> None:
        self._discrepancy.observe(nll_student, nll_teacher, counts)

    def state_dict(self) -> dict[str, Any]:
        return {"type": self._type, "domains": list(self.domains), "ratios": floats_to_json(self.ratios)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, type_=self._type, domains=self.domains)
        self._discrepancy.measured = floats_from_json(state["ratios"])


class DDKPolicy:
    """Domain knowledge distillation's dynamic mixture (Algorithm 1 of arXiv 2407.16154).

    The first ``update`` gives r_0 by Eq. 1, but the first interval is a random sample of the data:
    its weights are proportional to ``tokens`` int64 [D]. Every later ``update`` moves the weights by
    Eq. 2. ``smoothed=False`` is the paper's ablation: Eq. 1 afresh each time, no memory, no floor.

    Raises DataError when no domain has training tokens.
    """

    needs_measurements = True

    def __init__(
        self, domains: Sequence[str], tokens: Int64Array, *, alpha: float = 0.5, smoothed: bool = True
    ) -> None:
        assert 0.0 <= alpha <= 1.0
        self.domains = tuple(domains)
        self.active = active_domains(domains, tokens)
        self._first_weights = proportional_weights(domains, tokens)
        self._alpha = alpha
        self._smoothed = smoothed
        self._type = "ddk" if smoothed else "ddk_unsmoothed"
        self._discrepancy = DiscrepancyRatios(domains)
        self._updates = 0
        self._log_weights: FloatArray = np.full(len(domains), np.nan)

    @property
    def ratios(self) -> FloatArray:
        return self._discrepancy.measured

    def weights(self) -> FloatArray:
        return self._first_weights.copy() if self._updates <= 1 else np.exp(self._log_weights)

    def update(self, nll_student: FloatArray, nll_teacher: FloatArray, counts: Int64Array) -> None:
        ratios = self._discrepancy.observe(nll_student, nll_teacher, counts)
        if self._smoothed and self._updates > 0:
            self._log_weights = ddk_update(self._log_weights, ratios, self._alpha, self.active)
        else:
            self._log_weights = ratio_softmax(ratios, self.active)
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "type": self._type,
            "domains": list(self.domains),
            "ratios": floats_to_json(self.ratios),
            "updates": self._updates,
            "log_weights": floats_to_json(self._log_weights),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, type_=self._type, domains=self.domains)
        self._discrepancy.measured = floats_from_json(state["ratios"])
        self._updates = state["updates"]
        self._log_weights = floats_from_json(state["log_weights"])


def ratio_softmax(ratios: FloatArray, active: BoolArray) -> FloatArray:
    """Eq. 1 in log space: log r_i = rho_i - log sum_j exp(rho_j) over the active domains, -inf elsewhere.

    ``ratios`` float64 [D], ``active`` bool [D]; returns float64 [D]. Raises TrainingError when no
    domain is active.
    """
    return _log_normalise(np.zeros_like(ratios), ratios, active)


def ddk_update(log_weights: FloatArray, ratios: FloatArray, alpha: float, active: BoolArray) -> FloatArray:
    """Eq. 2 in log space: psi_i = r_i * exp(rho_i), r'_i = alpha * psi_i / sum(psi) + (1 - alpha) / N.

    ``log_weights`` and ``ratios`` float64 [D], ``active`` bool [D] with N True; returns log r', float64
    [D], -inf where inactive. The carried weights are the smoothed ones. Nothing overflows, and with
    ``alpha`` 1 a vanishing weight keeps its logarithm.

    Raises TrainingError when no domain is active, or none of the active ones has a finite log weight.
    """
    log_psi = _log_normalise(log_weights, ratios, active)
    with np.errstate(divide="ignore"):  # log 0 = -inf drops the term at either end of alpha
        smooth = np.log(np.float64(alpha)) + log_psi
        floor = np.log((1.0 - np.float64(alpha)) / active.sum())
    return np.where(active, np.logaddexp(smooth, floor), -np.inf)


def _log_normalise(log_weights: FloatArray, ratios: FloatArray, active: BoolArray) -> FloatArray:
    """log softmax of ``log_weights + ratios`` over the active domains."""
    if not active.any():
        raise TrainingError("mixture: no domain is active, every one is without training documents; add rows")
    if not np.isfinite(log_weights[active]).any():
        raise TrainingError(
            "mixture: no active domain has a finite log weight, so the next weights are undefined; "
            "delete the newest checkpoint to go on from an earlier one"
        )
    scores = np.where(active, log_weights + ratios, -np.inf)
    scores = scores - scores.max()
    return np.asarray(scores - np.log(np.exp(scores).sum()))


def check_state(state: dict[str, Any], *, type_: str, domains: Sequence[str]) -> None:
    """Raise TrainingError unless ``state`` was saved by a policy of this type over these domains."""
    if state["type"] != type_:
        raise TrainingError(
            f"mixture: the checkpoint was made by {state['type']!r} and the recipe asks for {type_!r}; "
            "use another output.dir"
        )
    if state["domains"] != list(domains):
        raise TrainingError(
            f"mixture: the checkpoint has the domains {', '.join(state['domains'])} and the data has "
            f"{', '.join(domains)}; use another output.dir"
        )
