"""What a stage minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.recipe.base import Config, PositiveFloat


class ForwardKL(Config):
    type: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Config):
    type: Literal["reverse_kl"]


class JSD(Config):
    type: Literal["jsd"]
    beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher in the mixture; 0 means exact forward KL and 1 exact reverse KL (as TRL)."""


class SkewedKL(Config):
    type: Literal["skewed_kl"]
    alpha: float = Field(default=0.1, gt=0, lt=1)


class SkewedReverseKL(Config):
    type: Literal["skewed_reverse_kl"]
    alpha: float = Field(default=0.1, gt=0, lt=1)


class TotalVariation(Config):
    type: Literal["tvd"]


class AdaptiveKL(Config):
    type: Literal["adaptive_kl"]
    mu: float = Field(default=0.5, gt=0, lt=1)


class AlphaBeta(Config):
    type: Literal["alpha_beta"]
    alpha: float = 0.2
    beta: float = 0.7


DivergenceConfig = Annotated[
    ForwardKL | ReverseKL | JSD | SkewedKL | SkewedReverseKL | TotalVariation | AdaptiveKL | AlphaBeta,
    Field(discriminator="type"),
]


class AdditiveMixing(Config):
    """CE + gamma * D."""

    type: Literal["additive"]
    gamma: float = Field(default=0.2, ge=0)


class ConvexMixing(Config):
    """(1 - kd_weight) * CE + kd_weight * D."""

    type: Literal["convex"] = "convex"
    kd_weight: float = Field(default=0.5, ge=0, le=1)


MixingConfig = Annotated[AdditiveMixing | ConvexMixing, Field(discriminator="type")]


class RolloutConfig(Config):
    """How a model continues the prompts of the data."""

    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy decoding."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch_tokens: int = Field(default=8192, ge=1)
    """Rows * (prompt + answer) that are generated at one time."""


class SFTObjective(Config):
    """Cross-entropy on the targets of the data: supervised fine-tuning, or continual pre-training on text."""

    type: Literal["sft"]

    @property
    def weights(self) -> tuple[float, float]:
        """(weight of CE, weight of the divergence)."""
        return 1.0, 0.0


class DistillationObjective(Config):
    """Cross-entropy and a divergence from the teacher's next-token distributions."""

    divergence: DivergenceConfig = ForwardKL()
    mixing: MixingConfig = ConvexMixing()
    temperature: PositiveFloat = 1.0
    scale_t2: bool = True
    """Multiply the divergence by temperature squared, so that its balance with CE does not move."""

    @property
    def weights(self) -> tuple[float, float]:
        """(weight of CE, weight of the divergence), before temperature squared."""
        if isinstance(self.mixing, AdditiveMixing):
            return 1.0, self.mixing.gamma
        return 1.0 - self.mixing.kd_weight, self.mixing.kd_weight


class KDObjective(DistillationObjective):
    """Supervised KD: teacher and student are compared on the sequences of the data."""

    type: Literal["kd"]


class GKDObjective(DistillationObjective):
    """Generalized KD (Agarwal 2024, arXiv 2306.13649): part of the steps on the student's own answers.

    A step on the student's answers has no cross-entropy, since nobody wrote them.
    """

    type: Literal["gkd"]
    divergence: DivergenceConfig = JSD(type="jsd")
    mixing: MixingConfig = ConvexMixing(kd_weight=1.0)
    on_policy_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps on answers that the student writes (lambda); 0 is supervised KD, 1 on-policy KD."""
    rollout: RolloutConfig = RolloutConfig(temperature=0.9)
    buffer_steps: int = Field(default=1, ge=1)
    """On-policy steps whose answers are written in one go: faster, and up to so many steps old."""


class SequenceKDObjective(Config):
    """Sequence-level KD (Kim and Rush 2016, arXiv 1606.07947): cross-entropy on answers that the teacher writes."""

    type: Literal["sequence_kd"]
    rollout: RolloutConfig = RolloutConfig(max_new_tokens=256)

    @property
    def weights(self) -> tuple[float, float]:
        """(weight of CE, weight of the divergence)."""
        return 1.0, 0.0


class TEDObjective(DistillationObjective):
    """TED (Liang et al. 2023, arXiv 2210.01351): besides CE and KL, layers of the student follow layers of the teacher.

    Filters are first trained on the task alone, then the student's filtered layers are pulled towards the
    teacher's by MSE. Filters are no part of the saved model.
    """

    type: Literal["ted"]
    mixing: MixingConfig = AdditiveMixing(type="additive", gamma=1.0)
    temperature: PositiveFloat = 2.0
    mse_weight: float = Field(default=1.0, gt=0)
    """Weight of the MSE, a mean over tokens and features of layer outputs that are scaled to a root mean square of 1.
    Tune it: its authors did for each task, from 10 to 7,500."""
    filters: int | None = Field(default=None, ge=1)
    """Layers that are aligned, evenly spaced in both models; None: as many as the smaller one has, at most 12."""
    filter_steps: int = Field(default=100, ge=1)
    """Steps on the task loss that each side's filters get beforehand, with frozen models (stage I)."""
    filter_learning_rate: PositiveFloat = 1e-3
    """Peak rate of the filters in both stages."""
    mlp_features: int | None = Field(default=None, ge=1)
    """Width of a hidden layer in each filter; None: filters are linear."""


class DoReMiProxyObjective(Config):
    """DoReMi's second step (Xie et al. 2023, arXiv 2305.10429): a proxy trained by group DRO, which finds domain weights.

    The weights go to `doremi_weights.json` of the run, for `mixture: {type: doremi}` of another run.
    """

    type: Literal["doremi_proxy"]
    reference: str = Field(min_length=1)
    """The reference, trained by `sft` on the same domains: its run directory, or a model as in `student.path`."""
    eta: PositiveFloat = 1.0
    """Step size of the weights."""
    smoothing: float = Field(default=1e-3, ge=0, le=1)
    """Share of the weights that is uniform."""
    convention: Literal["paper", "repository"] = "paper"
    """`repository`: the average includes the initial weights, and a domain before its first appearance counts with ln V."""

    @property
    def weights(self) -> tuple[float, float]:
        """(weight of CE, weight of the divergence)."""
        return 1.0, 0.0


class UldMethod(Config):
    """ULD (Boizard 2024, arXiv 2402.12030): the sorted probabilities of both models are compared."""

    type: Literal["uld"]
    ce_weight: float = Field(default=1.0, ge=0)
    kd_weight: PositiveFloat = 1.5


class GoldMethod(Config):
    """GOLD's hybrid (TRL): JSD on tokens that write the same text, sorted probabilities on the others."""

    type: Literal["gold"] = "gold"
    ce_weight: float = Field(default=0.0, ge=0)
    """0 is GOLD's own; the end of a turn is then learned from nothing."""
    kd_weight: PositiveFloat = 1.0
    beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher in the JSD's mixture; 0 means exact forward KL and 1 exact reverse KL."""
    matched_weight: float | None = Field(default=None, ge=0, le=1)
    """Weight of the JSD against the rest; None: the share of the teacher's tokens that the student has."""


class CrossTokenizerObjective(Config):
    """Cross-entropy and a divergence from a live teacher that has another tokenizer."""

    type: Literal["cross_tokenizer"]
    method: Annotated[UldMethod | GoldMethod, Field(discriminator="type")] = GoldMethod()
    merge: Literal["bayesian", "observed"] = "bayesian"
    """One distribution from several tokens of the same text: the last one's times the probability of those before
    (`bayesian`), or the first one's times that of those behind (`observed`)."""

    @property
    def weights(self) -> tuple[float, float]:
        """(weight of CE, weight of the divergence)."""
        return self.method.ce_weight, self.method.kd_weight


ObjectiveConfig = Annotated[
    SFTObjective
    | KDObjective
    | GKDObjective
    | SequenceKDObjective
    | TEDObjective
    | DoReMiProxyObjective
    | CrossTokenizerObjective,
    Field(discriminator="type"),
]
