"""Which chat format a run's rows use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.data.chat import ChatFormat
from stillhouse.data.prepare import read_template
from stillhouse.data.rows import Row
from stillhouse.recipe import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def chat_format_for(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, config: DataConfig, base_dir: Path
) -> ChatFormat | None:
    """Return the format of the conversations, or None for raw text and plain prompts.

    Raises DataError as :class:`ChatFormat` does.
    """
    template = read_template(config.chat_template, base_dir)
    if all(row.messages is None for row in rows) or not (template or tokenizer.chat_template):
        return None
    return ChatFormat(tokenizer, template)
