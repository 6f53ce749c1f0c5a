"""DoReMi (Xie et al. 2023, arXiv 2305.10429): domain weights from a small proxy model.

A reference is trained on prior weights; a proxy of the same size is then trained by group DRO,
which raises the weight of domains where it lags behind the reference; the mean of its weights is
the fixed mixture of the real run. Before each optimizer step the proxy's losses are measured, the
weights move, and the step is taken on the loss weighted by the new ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.document import Int64Array
from stillhouse.errors import TrainingError
from stillhouse.mixture.policy import check_state
from stillhouse.mixture.weights import FloatArray, active_domains, equal_weights, floats_from_json, floats_to_json


@torch.no_grad()
def excess_loss(
    loss_tokens: Tensor, reference_tokens: Tensor, domain_ids: Tensor, num_domains: int
) -> tuple[Tensor, Tensor]:
    """Sum of max(loss - reference, 0) per domain, clipped token by token, and the tokens behind it.

    loss_tokens, reference_tokens [N] in nats; domain_ids int64 [N]. Returns (sums, counts), both
    float64 [D] on the same device: add them up over micro-batches and ranks before dividing.
    """
    excess = (loss_tokens.double() - reference_tokens.double()).clamp_min(0.0)
    sums = torch.zeros(num_domains, dtype=torch.float64, device=excess.device).index_add_(0, domain_ids, excess)
    return sums, torch.bincount(domain_ids, minlength=num_domains).double()


class GroupDRO:
    """The proxy's domain weights: w'_i ~ w_i exp(eta * lambda_i), w = (1 - c) w' + c / N, in log space.

    lambda_i is the mean clipped excess loss of domain i in the step. A domain that a step does not
    contain reuses its last lambda. Before its first appearance it takes the mean lambda of the
    domains present, which leaves its weight where it is relative to theirs. The authors' repository
    takes ln V instead, which all but hands the mixture to a domain that small batches missed; give
    ``initial_excess=math.log(V)`` to follow it.

    ``tokens`` int64 [D]: training tokens; domains without any stay at weight 0. w_0 is uniform.
    """

    def __init__(
        self,
        domains: Sequence[str],
        tokens: Int64Array,
        *,
        eta: float = 1.0,
        smoothing: float = 1e-3,
        initial_excess: float | None = None,
    ) -> None:
        assert eta > 0
        assert 0.0 <= smoothing <= 1.0
        self.domains = tuple(domains)
        self.active = active_domains(domains, tokens)
        self._eta, self._smoothing = eta, smoothing
        self._initial = equal_weights(domains, tokens)
        self._log_weights = self._log(self._initial)
        self._excess: FloatArray = np.full(len(domains), math.nan if initial_excess is None else initial_excess)
        self._weight_sum: FloatArray = np.zeros(len(domains))
        self._updates = 0

    def weights(self) -> FloatArray:
        """The current weights w_t, float64 [D]."""
        return np.exp(self._log_weights)

    def update(self, excess_sums: FloatArray, counts: FloatArray) -> None:
        """Move the weights by one step's sums of :func:`excess_loss` over all ranks, float64 [D] each.

        Raises TrainingError naming the domain whose loss is not finite, or when no active domain is
        in the step.
        """
        present = self.active & (counts > 0)
        for i in np.flatnonzero(present & ~np.isfinite(excess_sums)):
            raise TrainingError(
                f"the proxy's excess loss in domain {self.domains[i]!r} is {excess_sums[i]}; lower its learning rate, "
                "or look for extreme rows in this domain"
            )
        if not present.any():
            raise TrainingError(
                "doremi: the step has no target token of an active domain; raise optimisation.batch_tokens"
            )
        self._excess[present] = excess_sums[present] / counts[present]
        excess = np.where(np.isnan(self._excess), self._excess[present].mean(), self._excess)
        scores = np.where(self.active, self._log_weights + self._eta * excess, -np.inf)
        scores = scores - scores.max()
        log_normalised = scores - np.log(np.exp(scores).sum())
        floor = self._log(np.float64(self._smoothing) / self.active.sum())
        mixed = np.logaddexp(self._log(np.float64(1.0 - self._smoothing)) + log_normalised, floor)
        self._log_weights = np.where(self.active, mixed, -np.inf)
        self._weight_sum += self.weights()
        self._updates += 1

    def average(self, *, include_initial: bool) -> FloatArray:
        """The result: the mean of w_1 .. w_t, and of w_0 as well with ``include_initial`` (as the repository).

        float64 [D] with sum 1; w_0 before the first update.
        """
        if self._updates == 0:
            return self._initial.copy()
        total = self._weight_sum + self._initial if include_initial else self._weight_sum
        return np.asarray(total / total.sum())

    def state_dict(self) -> dict[str, Any]:
        """JSON that restores every bit."""
        return {
            "type": "doremi_proxy",
            "domains": list(self.domains),
            "updates": self._updates,
            "log_weights": floats_to_json(self._log_weights),
            "excess": floats_to_json(self._excess),
            "weight_sum": floats_to_json(self._weight_sum),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``; TrainingError when it belongs to something else or other domains."""
        check_state(state, type_="doremi_proxy", domains=self.domains)
        self._updates = state["updates"]
        self._log_weights = floats_from_json(state["log_weights"])
        self._excess = floats_from_json(state["excess"])
        self._weight_sum = floats_from_json(state["weight_sum"])

    @staticmethod
    def _log(values: FloatArray | np.float64) -> FloatArray:
        with np.errstate(divide="ignore"):  # log 0 = -inf is what an absent term is
            return np.asarray(np.log(values))


def importance_weights(weights: FloatArray, sampling: FloatArray) -> FloatArray:
    """w_i / p_i, float64 [D]: what a token of domain i counts when batches hold domains in shares ``sampling``.

    0 where a domain is never sampled. With uniform sampling this is w times a constant, which cancels.
    """
    return np.divide(weights, sampling, out=np.zeros_like(weights), where=sampling > 0)


def step_normaliser(token_weights: FloatArray, target_counts: Int64Array) -> float:
    """Sum of the token weights of a whole optimizer step (all micro-batches and ranks).

    ``token_weights`` float64 [D] of :func:`importance_weights`; ``target_counts`` int64 [D].
    """
    return float(token_weights @ target_counts)


def proxy_loss(loss_tokens: Tensor, domain_ids: Tensor, token_weights: FloatArray, normaliser: float) -> Tensor:
    """Sum over tokens of weight * loss, divided by ``normaliser``: this micro-batch's part of the step's mean.

    loss_tokens [N] with a graph; domain_ids int64 [N]; ``token_weights`` float64 [D]; accumulates in
    float32. A micro-batch without targets gives zero with a graph.
    """
    weights = torch.as_tensor(token_weights, dtype=torch.float32).to(loss_tokens.device)
    return (loss_tokens.float() * weights[domain_ids]).sum() / normaliser
