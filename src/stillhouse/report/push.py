"""Upload a model folder to the Hugging Face hub, or say what would be uploaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from stillhouse.errors import ModelError, OutputError

ALLOWED = (".safetensors", ".json", ".txt", ".jinja", ".md")
"""What a model folder of ours holds: weights, configuration, tokenizer, card. Nothing here is a pickle."""


@dataclass(frozen=True)
class Push:
    """What was uploaded, or would be."""

    repo_id: str
    private: bool
    files: dict[str, int]
    """Path in the repository -> bytes."""
    url: str | None
    """Where the model is now; None after a dry run."""

    def lines(self) -> list[str]:
        """Return the report for a terminal."""
        visibility = "private" if self.private else "public"
        total = sum(self.files.values())
        first = (
            f"dry run: nothing was sent. It would upload to {self.repo_id} ({visibility}):"
            if self.url is None
            else f"uploaded to {self.url} ({visibility}):"
        )
        listing = [f"  {name}  {_size(size)}" for name, size in self.files.items()]
        return [first, *listing, f"{len(self.files)} files, {_size(total)}"]


def push(
    model_dir: Path,
    repo_id: str,
    *,
    private: bool,
    dry_run: bool,
    token_env: str = "HF_TOKEN",  # noqa: S107
    endpoint: str | None = None,
) -> Push:
    """Create the repository if it is not there and upload every file of ``model_dir`` in one commit.

    The token is read from the environment variable ``token_env`` alone and never shown.
    ``endpoint`` None means the hub that huggingface_hub is set to.

    Raises:
        ModelError: the folder is no model, or holds a file of a kind that is not uploaded.
        OutputError: no token, or the hub refuses.
    """
    files = uploadable_files(model_dir)
    if dry_run:
        return Push(repo_id, private, files, None)
    token = os.environ.get(token_env)
    if not token:
        raise OutputError(
            f"{token_env} is not set; create a write token in the hub's settings and export it as {token_env}"
        )
    api = HfApi(endpoint=endpoint, token=token, library_name="stillhouse")
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=model_dir,
            allow_patterns=list(files),
            commit_message="Upload a model distilled with stillhouse",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).replace(token, "***")
        raise OutputError(
            f"{repo_id}: the hub refused or was not reached ({reason}); "
            "check the name, the token's rights and the network"
        ) from None
    return Push(url.repo_id, private, files, str(url))


def uploadable_files(model_dir: Path) -> dict[str, int]:
    """Return the files of a model folder with their bytes, sorted by name.

    Raises ModelError when it is no model folder, or when it holds anything but safetensors, JSON,
    text, templates and Markdown: a pickle runs code on whoever loads it.
    """
    if not (model_dir / "config.json").is_file():
        raise ModelError(
            f"{model_dir}: no model is here (config.json is missing); give a model folder or a finished run directory"
        )
    paths = sorted(path for path in model_dir.rglob("*") if path.is_file() and ".cache" not in path.parts)
    refused = [path.relative_to(model_dir).as_posix() for path in paths if path.suffix not in ALLOWED]
    if refused:
        raise ModelError(
            f"{model_dir}: {', '.join(refused[:5])} is of a kind that is not uploaded "
            f"(only {', '.join(ALLOWED)}); remove it or move it elsewhere"
        )
    files = {path.relative_to(model_dir).as_posix(): path.stat().st_size for path in paths}
    if not any(name.endswith(".safetensors") for name in files):
        raise ModelError(
            f"{model_dir}: no weights are here (*.safetensors); give a model folder or a finished run directory"
        )
    return files


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
