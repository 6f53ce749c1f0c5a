"""Load a model and its tokenizer from wherever the recipe says.

A hub name, a folder, a ``.gguf`` file, or ``package:NAME`` for an installed package that ships a
GGUF. Weights are safetensors only; code that comes with a model runs only if the recipe says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import MissingDependencyError, ModelError
from stillhouse.models.gguf import converted_folder, find_package_gguf
from stillhouse.models.quiet import quiet_transformers
from stillhouse.recipe import ModelConfig, PretrainedStudent, ReferenceConfig, TeacherConfig

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PACKAGE_PREFIX = "package:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})


def recipe_field(config: ModelConfig) -> str:
    """Return the dotted recipe field whose value is ``config.path``."""
    if isinstance(config, TeacherConfig):
        return "teacher.path"
    if isinstance(config, ReferenceConfig):
        return "objective.reference"
    return "student.path" if isinstance(config, PretrainedStudent) else "student.source.path"


def resolve_path(config: ModelConfig, *, base_dir: Path) -> str:
    """Return a folder (absolute) or a hub name that transformers can load; converts GGUF files.

    Relative paths start at ``base_dir``. An existing folder wins over a hub name. Raises ModelError
    for a path that does not exist and cannot be a hub name.
    """
    field, path = recipe_field(config), config.path
    if path.startswith(PACKAGE_PREFIX):
        return str(converted_folder(find_package_gguf(path.removeprefix(PACKAGE_PREFIX), field), field))
    local = (base_dir / Path(path).expanduser()).absolute()
    if path.endswith(".gguf"):
        if not local.is_file():
            raise ModelError(f"{field}={path}: no such file ({local}); relative paths start at {base_dir}")
        return str(converted_folder(local, field))
    if local.is_dir():
        if isinstance(config, TeacherConfig) and _may_lack_weights(config, local):
            _check_tokenizer(local, field, config)
        else:
            _check_folder(local, field, path)
        return str(local)
    if HUB_NAME.fullmatch(path):
        return path
    raise ModelError(
        f"{field}={path}: no such folder ({local}), and not a hub name such as org/name; "
        f"relative paths start at {base_dir}"
    )


def _may_lack_weights(config: TeacherConfig, folder: Path) -> bool:
    """Of a served teacher only the tokenizer is here; of a cached one where it was captured elsewhere."""
    return config.source == "server" or (config.source == "cache" and not any(folder.glob("*.safetensors")))


def _check_tokenizer(folder: Path, field: str, config: TeacherConfig) -> None:
    if not (folder / "tokenizer.json").is_file():
        kind = "served" if config.source == "server" else "cached"
        raise ModelError(
            f"{field}={config.path}: {folder} holds no tokenizer.json; a {kind} teacher needs its tokenizer here "
            "(no weights)"
        )


def _check_folder(folder: Path, field: str, path: str) -> None:
    """Refuse a folder without a configuration or without safetensors, before transformers tries."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{field}={path}: {folder} holds no config.json, so it is not a Hugging Face model folder")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise ModelError(
            f"{field}={path}: {folder} holds only pickled weights ({pickled[0]}), which can run code when read; "
            "convert them to safetensors (save_pretrained of transformers does) and point to the new folder"
        )
    raise ModelError(f"{field}={path}: {folder} holds no weights (*.safetensors)")


def load_model(config: ModelConfig, *, dtype: torch.dtype, base_dir: Path) -> PreTrainedModel:
    """Load a causal language model on the CPU in ``dtype``, in evaluation mode.

    4-bit teachers load onto the accelerator and compute in ``dtype``. Raises ModelError naming the
    recipe field when the model is missing, unreadable or of an unknown kind, and
    MissingDependencyError when an optional package is needed.
    """
    from transformers import AutoModelForCausalLM

    source, field = resolve_path(config, base_dir=base_dir), recipe_field(config)
    if Path(source).is_absolute():  # of a cached or served teacher the tokenizer alone may be there
        _check_folder(Path(source), field, config.path)
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "revision": config.revision}
    # Shapes that do not fit are reported by us, by name.
    arguments |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    if config.attention != "auto":
        arguments["attn_implementation"] = config.attention
    if isinstance(config, TeacherConfig) and config.quantization == "4bit":
        arguments |= _four_bit(dtype)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=config.trust_remote_code, **arguments
            )
    except ImportError as error:
        raise MissingDependencyError(f"{field}={config.path}: {error}") from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_cannot_load(field, config, source, error)) from error
    model, info = loaded
    wrong = sorted(misfits(info))
    if wrong:
        raise ModelError(
            f"{field}={config.path}: its weights do not fit its config.json ({', '.join(wrong[:3])}); "
            "the folder or download is incomplete"
        )
    result: PreTrainedModel = model.eval()
    return result


def misfits(info: dict[str, Any]) -> set[str]:
    """Return what transformers' loading report has against the weights: missing names and other shapes."""
    missing = {f"{name} is missing" for name in info["missing_keys"]}
    reshaped = {f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in info["mismatched_keys"]}
    return missing | reshaped


def load_tokenizer(config: ModelConfig, *, base_dir: Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer that comes with a model.

    Raises ModelError when there is none, or only a slow one (offsets are needed for loss masks).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source, field = resolve_path(config, base_dir=base_dir), recipe_field(config)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                source, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
    except ImportError as error:
        raise MissingDependencyError(f"{field}={config.path}: {error}") from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_cannot_load(field, config, source, error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{field}={config.path}: its tokenizer ({type(tokenizer).__name__}) has no fast version (tokenizer.json), "
            "and loss masks need character offsets; choose a model that ships one"
        )
    return tokenizer


def _cannot_load(field: str, config: ModelConfig, source: str, error: Exception) -> str:
    reason = str(error).strip().split("\n\n")[0]
    if not Path(source).is_absolute():  # a hub name
        way_out = "check the name and revision, your network and access rights, or give a local folder"
    else:
        way_out = "check that the folder is complete"
    return f"{field}={config.path}: cannot be loaded: {reason} -- {way_out}"


def _four_bit(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that load NF4 weights through bitsandbytes onto the accelerator."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "teacher.quantization=4bit needs bitsandbytes; run `pip install 'stillhouse[quantization]'`"
        )
    if not torch.accelerator.is_available():
        raise ModelError("teacher.quantization=4bit needs an accelerator, and there is none; use quantization: none")
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": quantization, "device_map": {"": torch.accelerator.current_device_index()}}


def model_fingerprint(model: nn.Module) -> str:
    """Return a hex digest of every weight: names, shapes, dtypes and bytes (not of any file's name)."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
