"""New rows from human ones."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config
from stillhouse.recipe.data import SourceConfig
from stillhouse.recipe.models import TeacherConfig
from stillhouse.recipe.objectives import RolloutConfig


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
