"""The teacher's targets on disk: which cache a recipe means, filling it, and reading from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stillhouse.data.document import DocumentSet, unite
from stillhouse.errors import RecipeError
from stillhouse.models.gguf import cache_root
from stillhouse.models.head import verify_head
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint, resolve_path
from stillhouse.models.placement import place_model
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.models.vocabulary_map import teacher_ids
from stillhouse.recipe import (
    CacheConfig,
    DistillationObjective,
    PrunedStudent,
    Recipe,
    StageConfig,
    TeacherConfig,
)
from stillhouse.run_directory import read_json, write_json_atomic
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.targets.capture import CaptureProgress, CaptureSettings, capture, estimate_bytes, pending
from stillhouse.targets.codec import codec_from
from stillhouse.targets.maintenance import require_whole
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.server_capture import capture_from_server, served_codec
from stillhouse.training.models import load_data, student_source, teacher_parameters
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.served import held_teacher, is_begun, open_server, refuse_trimmed

NOTHING_MISSING = CaptureProgress(0, 0, 0, 0, 0, 0, 0.0)
WHOLE = (0, 1)
"""All of one part."""


@dataclass(frozen=True)
class CapturePlan:
    """What a capture is about to do."""

    folder: Path
    documents: int
    """Documents that are not in the cache yet."""
    targets: int
    bytes: int
    """Estimate of what they will take on disk."""


def teacher_dtype(recipe: Recipe, config: TeacherConfig, device: torch.device) -> torch.dtype:
    """The teacher's own precision, or the stage's."""
    if config.dtype == "auto":
        return resolve_dtype(recipe.stages[0].optimisation.precision, device)
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def cache_identity(recipe: Recipe, documents: DocumentSet, vocab_size: int, base_dir: Path) -> CacheIdentity:
    """Everything that decides what a record of this recipe's cache means. Raises as loading does."""
    config, cache = _configs(recipe)
    codec = codec_from(cache.codec.model_dump())
    if config.source == "server":
        teacher, codec = held_teacher(config, base_dir / cache.dir), served_codec(codec)
    else:
        dtype = teacher_dtype(recipe, config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        teacher = teacher_fingerprint(config, dtype, base_dir)
    return CacheIdentity(
        teacher=teacher,
        tokenizer=documents.tokenizer_hash,
        codec=codec,
        temperature=cache.temperature,
        vocab_size=vocab_size,
        seed=recipe.seed,
        teacher_name=_name(config),
        teacher_parameters=teacher_parameters(recipe, base_dir) or 0,
    )


def _name(config: TeacherConfig) -> str:
    """The teacher's name for people; of a folder its last part alone."""
    if config.server is not None:
        return config.server.model
    return Path(config.path).name if "/" in config.path and Path(config.path).exists() else config.path


def cached_teacher(recipe: Recipe, documents: DocumentSet, vocab_size: int, base_dir: Path) -> CachedTeacher:
    """Open the recipe's cache for training on ``documents``.

    Raises, before training starts, a StillhouseError that names what is wrong: no cache, another
    teacher, tokenizer, codec or temperature, missing documents, or a shard whose bytes changed.
    """
    _, config = _configs(recipe)
    cache = TargetCache.open(base_dir / config.dir, cache_identity(recipe, documents, vocab_size, base_dir))
    require_whole(cache)
    return CachedTeacher(cache, documents)


def capture_recipe(
    recipe: Recipe,
    *,
    base_dir: Path,
    announce: Callable[[CapturePlan], None],
    progress: Callable[[CaptureProgress], None] | None = None,
    part: tuple[int, int] = WHOLE,
) -> CaptureProgress:
    """Score what the recipe's cache lacks of its training documents.

    ``announce`` is told the amount before the teacher is loaded; where nothing is missing it is neither
    loaded nor asked. ``part`` (i, n): only the i-th of n disjoint parts, for one of n processes. A capture
    that was killed is continued by the same call. Raises OutputError when the disk cannot hold it,
    RecipeError when the recipe names no cache, trims the vocabulary (whose tokenizer does not exist
    before the run), or would have a server asked for a part.
    """
    config, cache_config = _configs(recipe)
    refuse_parts_of_a_server(config, part)
    documents, vocab_size, mapping = _documents(recipe, base_dir)
    folder, identity = base_dir / cache_config.dir, cache_identity(recipe, documents, vocab_size, base_dir)
    if config.source == "server":
        refuse_trimmed(mapping)
        if is_begun(folder) and not len(pending(TargetCache.open(folder, identity), documents)):
            announce(_open(folder, identity, documents)[1])
            return NOTHING_MISSING
        with open_server(config) as client:
            served = client.describe()
            cache, plan = _open(folder, replace(identity, teacher=served.fingerprint), documents)
            announce(plan)
            tokenizer = load_tokenizer(student_source(recipe), base_dir=base_dir)
            return capture_from_server(client, served, documents, cache, tokenizer, progress=progress)
    cache, plan = _open(folder, identity, documents, part)
    announce(plan)
    if not plan.documents:
        return NOTHING_MISSING
    teacher, device = _captured_model(recipe, base_dir, vocab_size, mapping)
    optimisation = recipe.stages[0].optimisation
    settings = CaptureSettings(
        micro_batch_tokens=optimisation.micro_batch_tokens,
        chunk=optimisation.head_chunk,
        compiled=optimisation.compile_head,
        device=str(device),
        part=part,
    )
    return capture(teacher, documents, cache, settings, progress=progress)


def plan_capture(recipe: Recipe, base_dir: Path) -> CapturePlan:
    """Begin the recipe's cache if there is none, and say what it lacks; raises as ``capture_recipe`` for parts.

    For whoever hands the work to others: they then find the cache, and the teacher's fingerprint remembered.
    """
    config, cache_config = _configs(recipe)
    refuse_parts_of_a_server(config, (0, 2))
    documents, vocab_size, _ = _documents(recipe, base_dir)
    identity = cache_identity(recipe, documents, vocab_size, base_dir)
    return _open(base_dir / cache_config.dir, identity, documents)[1]


def refuse_parts_of_a_server(config: TeacherConfig, part: tuple[int, int]) -> None:
    """Raise RecipeError where several processes would ask one server."""
    if config.source == "server" and part != WHOLE:
        raise RecipeError(
            "teacher.source=server: one process keeps a server busy (teacher.server has its limits); leave out "
            "--workers and --ray"
        )


def _open(
    folder: Path, identity: CacheIdentity, documents: DocumentSet, part: tuple[int, int] = WHOLE
) -> tuple[TargetCache, CapturePlan]:
    cache = TargetCache.open_or_create(folder, identity)
    indices = pending(cache, documents, part)
    targets = int(documents.num_targets[indices].sum())
    size = estimate_bytes(identity.codec, identity.vocab_size, targets=targets, documents=len(indices))
    return cache, CapturePlan(cache.path, len(indices), targets, size)


def _captured_model(
    recipe: Recipe, base_dir: Path, vocab_size: int, mapping: torch.Tensor | None
) -> tuple[LiveTeacher, torch.device]:
    config, _ = _configs(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(config, dtype=teacher_dtype(recipe, config, device), base_dir=base_dir)
    verify_head(model)
    if config.quantization == "none":
        model = place_model(model, config.placement, device)
    return LiveTeacher(model, vocabulary_map=mapping, vocab_size=vocab_size), device


def teacher_fingerprint(config: TeacherConfig, dtype: torch.dtype, base_dir: Path) -> str:
    """The fingerprint of the teacher's weights as loaded in ``dtype``.

    For local weights it is remembered under the files' names, sizes and times, so that a large
    teacher is read once and a changed one is noticed.
    """
    source = Path(resolve_path(config, base_dir=base_dir))
    memo = None
    if source.is_dir():
        stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(source.glob("*.safetensors"))]
        key = json.dumps([str(source), stats, str(dtype), config.quantization])
        memo = cache_root() / "fingerprints" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"
        if memo.exists():
            return str(read_json(memo)["fingerprint"])
    fingerprint = model_fingerprint(load_model(config, dtype=dtype, base_dir=base_dir))
    if memo is not None:
        write_json_atomic(memo, {"fingerprint": fingerprint})
    return fingerprint


def cache_folder(recipe: Recipe, base_dir: Path) -> Path:
    """The folder of the recipe's cache. Raises RecipeError when it names none."""
    return base_dir / _configs(recipe)[1].dir


def training_documents(recipe: Recipe, base_dir: Path) -> DocumentSet:
    """The training documents of all stages of a recipe, as a capture sees them."""
    return _documents(recipe, base_dir)[0]


def _configs(recipe: Recipe) -> tuple[TeacherConfig, CacheConfig]:
    if recipe.teacher is None or recipe.teacher.cache is None:
        raise RecipeError("the recipe names no cache; add `source: cache` and `cache: {dir: ...}` to its teacher")
    return recipe.teacher, recipe.teacher.cache


def _documents(recipe: Recipe, base_dir: Path) -> tuple[DocumentSet, int, torch.Tensor | None]:
    if isinstance(recipe.student, PrunedStudent) and recipe.student.vocabulary is not None:
        raise RecipeError(
            "student.vocabulary: a trimmed vocabulary is made by the run, so its documents cannot be captured before; "
            "train once without the cache, then name that run's `initial` folder as student.path"
        )
    config, _ = _configs(recipe)
    tokenizer = load_tokenizer(student_source(recipe), base_dir=base_dir)
    dataset = load_data(recipe, tokenizer, base_dir)
    assert dataset.train.documents.tokenizer_hash == tokenizer_hash(tokenizer)
    mapping = teacher_ids(tokenizer, load_tokenizer(config, base_dir=base_dir))
    needed = [dataset.of_stage(stage.name).train.documents for stage in recipe.stages if _asks_cache(stage)]
    # A recipe without a KD stage is captured for a later one: its rows are what there is to score.
    return unite(needed or [dataset.train.documents]), vocabulary_size(tokenizer), mapping


def _asks_cache(stage: StageConfig) -> bool:
    return isinstance(stage.objective, DistillationObjective)


def uses_cache(recipe: Recipe) -> bool:
    """True when training reads its targets from a cache, whoever filled it."""
    return recipe.teacher is not None and recipe.teacher.source != "live"
