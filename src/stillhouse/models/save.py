"""Write a model as a plain Hugging Face folder that transformers loads without us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from stillhouse.errors import OutputError
from stillhouse.models.folder import appearing_folder
from stillhouse.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write weights (safetensors), config, generation config, tokenizer and chat template to ``folder``.

    The folder appears by one rename. ``dtype`` is what floating-point weights are stored in (None:
    as they are); ``card`` becomes README.md. Raises OutputError when the folder exists already and
    ``overwrite`` is off, or when it cannot be written.
    """
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder}: exists already; choose another folder or pass --overwrite")
    try:
        with appearing_folder(folder) as temporary:
            with quiet_transformers():
                model.save_pretrained(temporary, state_dict=_stored_weights(model, dtype))
                tokenizer.save_pretrained(temporary)
            if dtype is not None:
                _record_dtype(temporary / "config.json", dtype)
            if card is not None:
                (temporary / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: the model cannot be written ({error}); free some space or choose another"
        ) from error


def _stored_weights(model: PreTrainedModel, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state dict in the stored dtype; tensors that shared memory share it still."""
    casts: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def stored(tensor: Tensor) -> Tensor:
        if dtype is None or not tensor.is_floating_point():
            return tensor
        return casts.setdefault((tensor.data_ptr(), tuple(tensor.shape)), tensor.to(dtype))

    return {name: stored(tensor.detach()) for name, tensor in model.state_dict().items()}


def _record_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """transformers writes the dtype of the model in memory; the file must name the stored one."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
