"""Where rows come from, and how they are read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.recipe.base import Config


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
    domain_map: dict[str, str] = Field(default_factory=dict)
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
