"""DoReMi's proxy inside the training loop: the weights move before each step, which is then taken on the loss they weigh.

Xie et al. 2023 (arXiv 2305.10429), Algorithm 1: reference and proxy score the documents of the step,
each domain's mean clipped excess loss moves its weight, and the step minimises the loss weighted by
the new weights. The result is the mean of the weights over the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError, RecipeError
from stillhouse.evaluation.nll import TokenScorer
from stillhouse.evaluation.token_nll import token_nll
from stillhouse.mixture.doremi import GroupDRO, excess_loss, importance_weights, step_normaliser
from stillhouse.mixture.weights import FloatArray
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.placement import place_model
from stillhouse.models.tokenizers import shared_vocabulary_size, vocabulary_size
from stillhouse.recipe import DoReMiProxyObjective, ReferenceConfig
from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.teachers.live import LiveTeacher
from stillhouse.training.distributed import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS_NAME = "doremi_weights.json"
_FORMAT = 1


@dataclass(frozen=True)
class Weighting:
    """What a token of each domain counts in one step, float64 [D], and the sum over the step's targets."""

    token_weights: FloatArray
    normaliser: float


class ProxyWeights:
    """The weights of a run whose documents are drawn with constant shares.

    ``sampling`` float64 [D]: the share of each domain in the targets of a step (:func:`target_shares`).
    ``score`` and ``reference`` map a batch on the device to the NLL of its targets, for the proxy as it
    is now and for the frozen reference. ``vocab_size`` is V*.
    """

    def __init__(
        self,
        config: DoReMiProxyObjective,
        domains: Sequence[str],
        sampling: FloatArray,
        *,
        score: TokenScorer,
        reference: TokenScorer,
        vocab_size: int,
        world: World,
    ) -> None:
        self._config, self._domains, self._sampling = config, tuple(domains), sampling
        self._score, self._reference, self._world = score, reference, world
        self._as_repository = config.convention == "repository"
        self._dro = GroupDRO(
            domains,
            (sampling > 0).astype(np.int64),  # a domain that is never drawn takes no part
            eta=config.eta,
            smoothing=config.smoothing,
            initial_excess=log(vocab_size) if self._as_repository else None,
        )
        self._steps = 0
        self._excess: dict[str, float] = {}

    @torch.no_grad()
    def move(self, micro_batches: Sequence[Batch]) -> Weighting:
        """Score this rank's share of a step, move the weights by all ranks' sums, and return what tokens count.

        Raises TrainingError that names the domain whose loss is not finite.
        """
        device, num_domains = self._world.device, len(self._domains)
        totals = torch.zeros(2, num_domains, dtype=torch.float64, device=device)
        for batch in (b.to(device) for b in micro_batches):
            sums, counts = excess_loss(self._score(batch), self._reference(batch), batch.domain_ids, num_domains)
            totals += torch.stack([sums, counts])
        excess, targets = self._world.sum_(totals).cpu().numpy()
        self._dro.update(excess, targets)
        self._steps += 1
        self._excess = {name: float(excess[i] / targets[i]) for i, name in enumerate(self._domains) if targets[i] > 0}
        token_weights = importance_weights(self._dro.weights(), self._sampling)
        return Weighting(token_weights, step_normaliser(token_weights, targets.astype(np.int64)))

    def metrics(self) -> dict[str, Any]:
        """The step just prepared, for ``metrics.jsonl``: weights after it, their mean so far, excess loss in nats."""
        return {
            "doremi": {
                "weights": self._named(self._dro.weights()),
                "average": self._named(self._average()),
                "excess": self._excess,
            }
        }

    def result(self) -> dict[str, Any]:
        """What ``doremi_weights.json`` holds."""
        return {
            "format": _FORMAT,
            "weights": self._named(self._average()),
            "last_weights": self._named(self._dro.weights()),
            "sampling": self._named(self._sampling),
            "steps": self._steps,
            "eta": self._config.eta,
            "smoothing": self._config.smoothing,
            "convention": self._config.convention,
        }

    def state_dict(self) -> dict[str, Any]:
        """JSON for a checkpoint; exact."""
        return {"dro": self._dro.state_dict(), "steps": self._steps, "sampling": self._named(self._sampling)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``; TrainingError when it belongs to other domains."""
        self._dro.load_state_dict(state["dro"])
        self._steps = state["steps"]

    def _average(self) -> FloatArray:
        return self._dro.average(include_initial=self._as_repository)

    def _named(self, values: FloatArray) -> dict[str, float]:
        return dict(zip(self._domains, values.tolist(), strict=True))


def reference_scorer(
    config: DoReMiProxyObjective,
    tokenizer: PreTrainedTokenizerFast,
    *,
    base_dir: Path,
    dtype: torch.dtype,
    device: torch.device,
    chunk: int,
) -> TokenScorer:
    """Load the reference and return its NLL of a batch's targets. It must have the proxy's ``tokenizer``.

    Raises ModelError that names ``objective.reference`` when it cannot be loaded or has another tokenizer.
    """
    folder = base_dir / Path(config.reference).expanduser()
    if (folder / "recipe.yaml").is_file() and not (folder / "model").is_dir():
        raise ModelError(
            f"objective.reference={config.reference}: the run in {folder} is not finished, it has no model; finish it"
        )
    path = str(folder / "model") if (folder / "model").is_dir() else config.reference
    model_config = ReferenceConfig(path=path)
    model = load_model(model_config, dtype=dtype, base_dir=base_dir)
    try:
        shared_vocabulary_size(tokenizer, load_tokenizer(model_config, base_dir=base_dir))
    except ModelError as error:
        raise ModelError(
            f"objective.reference={config.reference}: losses are compared token by token, so reference and proxy need "
            f"one tokenizer: {error}"
        ) from error
    place_model(model, "whole", device)
    teacher = LiveTeacher(model, vocabulary_map=None, vocab_size=vocabulary_size(tokenizer))

    def score(batch: Batch) -> Tensor:
        return token_nll(teacher.targets(batch).projection, batch.labels, vocab_size=None, chunk=chunk)

    return score


def target_shares(documents: DocumentSet, token_shares: FloatArray) -> FloatArray:
    """Each domain's share of the target tokens when its documents make ``token_shares`` of all tokens, float64 [D].

    The two differ where domains have prompts of different lengths.
    """
    size = len(documents.domains)
    tokens = np.bincount(documents.domain_ids, weights=documents.lengths, minlength=size)
    targets = np.bincount(documents.domain_ids, weights=documents.num_targets, minlength=size)
    density = np.divide(targets, tokens, out=np.zeros(size), where=tokens > 0)
    shares = token_shares * density
    return np.asarray(shares / shares.sum())


def write_weights(folder: Path, result: dict[str, Any]) -> None:
    """Write ``doremi_weights.json`` into a run directory, atomically."""
    write_json_atomic(folder / WEIGHTS_NAME, result)


def read_weights(path: str, base_dir: Path) -> dict[str, float]:
    """Weights by domain from a proxy's run directory or from its file; relative paths start at ``base_dir``.

    Raises RecipeError that names ``mixture.weights_from`` when there is none or it is not such a file.
    """
    found = base_dir / Path(path).expanduser()
    file = found / WEIGHTS_NAME if found.is_dir() else found
    where = f"mixture.weights_from={path}"
    if not file.is_file():
        raise RecipeError(
            f"{where}: there is no {file}; a run with objective.type=doremi_proxy writes it when it has finished"
        )
    saved = read_json(file)
    weights = saved.get("weights") if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or saved.get("format") != _FORMAT:
        raise RecipeError(f"{where}: {file} is no file of domain weights; train the proxy again")
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecipeError(f"{where}: {file}: the weight of {name!r} is {value!r}, not a number")
    return weights
