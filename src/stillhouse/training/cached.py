"""The teacher's targets on disk: which cache a recipe means, filling it, and reading from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stillhouse.data.dataset import Dataset
from stillhouse.data.document import DocumentSet, unite
from stillhouse.data.prepare import read_template
from stillhouse.errors import ModelError, RecipeError
from stillhouse.models.fingerprint import weight_files, weights_fingerprint
from stillhouse.models.head import verify_head
from stillhouse.models.load import load_model, load_tokenizer, resolve_path
from stillhouse.models.placement import place_model
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.models.vocabulary_map import teacher_ids
from stillhouse.recipe import (
    CacheConfig,
    DistillationObjective,
    FollowingMixture,
    PrunedStudent,
    Recipe,
    StageConfig,
    TeacherConfig,
)
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import (
    CaptureProgress,
    CaptureSettings,
    capture,
    estimate_bytes,
    pending,
    require_space,
)
from stillhouse.targets.codec import codec_from
from stillhouse.targets.maintenance import require_whole
from stillhouse.targets.manifest import CacheIdentity, read_manifest
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.server_capture import capture_from_server, served_codec
from stillhouse.training.models import load_data, student_source, teacher_parameters
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.served import held_teacher, is_begun, open_server, refuse_trimmed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def held_identity(recipe: Recipe, base_dir: Path) -> CacheIdentity | None:
    """What the recipe's cache says that it is of; None without a cache. Raises DataError for one of another format."""
    if recipe.teacher is None or recipe.teacher.cache is None:
        return None
    folder = base_dir / recipe.teacher.cache.dir
    return read_manifest(folder) if is_begun(folder) else None


def known_dtype(recipe: Recipe, config: TeacherConfig, base_dir: Path, device: torch.device) -> torch.dtype:
    """The precision of the teacher that a run learns from: the recipe's, else its cache's, else the stage's."""
    held = held_identity(recipe, base_dir)
    if config.dtype != "auto" or held is None or not held.teacher_dtype:
        return teacher_dtype(recipe, config, device)
    return teacher_dtype(recipe, config.model_copy(update={"dtype": held.teacher_dtype}), device)


def weights_are_here(config: TeacherConfig, base_dir: Path) -> bool:
    """Whether the teacher can run on this machine; that of a cache need not, and is then not fetched for less."""
    return config.source == "live" or bool(weight_files(config, base_dir=base_dir))


def known_fingerprint(recipe: Recipe, config: TeacherConfig, base_dir: Path) -> str | None:
    """The teacher's fingerprint without running it; None where neither weights nor cache know it.

    Weights that are here are read, so that a cache of other ones is noticed; else the cache is believed.
    """
    if weights_are_here(config, base_dir):
        return weights_fingerprint(config, base_dir=base_dir)
    held = held_identity(recipe, base_dir)
    return None if held is None else held.teacher


def cache_identity(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, base_dir: Path, *, believed: bool = True
) -> CacheIdentity:
    """Everything that decides what a record of this recipe's cache means. Raises as loading does.

    ``tokenizer``: the student's. ``believed``: a cache whose teacher is not on this machine is taken at
    its word; whoever adds to it must not, and fetches the weights.
    """
    config, cache = _configs(recipe)
    codec = codec_from(cache.codec.model_dump())
    dtype: str = "" if config.dtype == "auto" else config.dtype
    if config.source == "server":
        teacher, codec, dtype = held_teacher(config, base_dir / cache.dir), served_codec(codec), ""
    else:
        known = known_fingerprint(recipe, config, base_dir) if believed else None
        teacher = known or weights_fingerprint(config, base_dir=base_dir)
        if held_identity(recipe, base_dir) is None:  # it begins here, in some precision
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            dtype = str(teacher_dtype(recipe, config, device)).removeprefix("torch.")
    return CacheIdentity(
        teacher=teacher,
        tokenizer=tokenizer_hash(tokenizer),
        codec=codec,
        temperature=cache.temperature,
        vocab_size=vocabulary_size(tokenizer),
        seed=recipe.seed,
        teacher_name=_name(config),
        teacher_parameters=teacher_parameters(recipe, base_dir) or 0,
        chat_template=template_digest(recipe, tokenizer, base_dir),
        teacher_dtype=dtype,
    )


def template_digest(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, base_dir: Path) -> str:
    """A digest of the chat template in use, the recipe's or the tokenizer's own; empty where there is none."""
    template = read_template(recipe.data.chat_template, base_dir) or tokenizer.chat_template
    if not template:
        return ""
    # A tokenizer may have several templates under names.
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _name(config: TeacherConfig) -> str:
    """The teacher's name for people; of a folder its last part alone."""
    if config.server is not None:
        return config.server.model
    return Path(config.path).name if "/" in config.path and Path(config.path).exists() else config.path


def open_cache(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, base_dir: Path) -> TargetCache:
    """Open the recipe's cache for reading.

    Raises a StillhouseError that names what is wrong: no cache, a cut shard, another teacher, tokenizer,
    codec, temperature or precision.
    """
    folder = cache_folder(recipe, base_dir)
    read_manifest(folder)  # no weights are read where there is no cache
    return TargetCache.open(folder, cache_identity(recipe, tokenizer, base_dir))


def check_cache(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, dataset: Dataset, base_dir: Path, stages: Sequence[StageConfig]
) -> TargetCache | None:
    """Open the cache for the stages that are to be trained, None where none of them asks it.

    Raises, before time is spent, as ``open_cache``, and a StillhouseError for documents that are missing, a
    shard whose bytes changed, and a mixture that would run a teacher whose weights are not here.
    """
    _refuse_absent_weights(recipe, base_dir)
    if not uses_cache(recipe) or not any(_asks_cache(stage) for stage in stages):
        return None
    cache = open_cache(recipe, tokenizer, base_dir)
    require_whole(cache)  # a damaged index would look like documents that are missing
    for stage in stages:
        if _asks_cache(stage):
            cache.require(dataset.of_stage(stage.name).train.documents)
    return cache


def cache_lack(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, dataset: Dataset, base_dir: Path) -> str | None:
    """Say what a capture has to add before the recipe can be trained; None where nothing is to be said.

    Raises as ``check_cache``, but does not read the shards' bytes.
    """
    _refuse_absent_weights(recipe, base_dir)
    if not uses_cache(recipe) or not any(_asks_cache(stage) for stage in recipe.stages):
        return None
    if held_identity(recipe, base_dir) is None:
        return f"teacher.cache.dir={_configs(recipe)[1].dir}: no targets are there yet; run `stillhouse capture` first"
    cache, documents = open_cache(recipe, tokenizer, base_dir), _asked(recipe, dataset)
    missing = len(cache.missing(documents))
    if not missing:
        return None
    template = cache.identity.other_template(cache_identity(recipe, tokenizer, base_dir))
    return (
        f"teacher.cache.dir={_configs(recipe)[1].dir}: {missing} of {len(documents)} documents have no targets yet. "
        f"{template}Run `stillhouse capture` first"
    )


def _refuse_absent_weights(recipe: Recipe, base_dir: Path) -> None:
    config = recipe.teacher
    if config is None or config.source != "cache" or weights_are_here(config, base_dir):
        return
    if not Path(resolve_path(config, base_dir=base_dir)).is_absolute():
        return  # a hub name: the weights are fetched
    for i, stage in enumerate(recipe.stages):
        if isinstance(stage.mixture, FollowingMixture):
            raise ModelError(
                f"stages.{i}.mixture.type={stage.mixture.type} measures the teacher while it trains, and "
                f"teacher.path={config.path} holds no weights; bring them here, or use another mixture"
            )


def believed_note(recipe: Recipe, base_dir: Path) -> str | None:
    """Say that the cache is taken at its word about the teacher, where that is so."""
    config, held = recipe.teacher, held_identity(recipe, base_dir)
    if config is None or held is None or config.source != "cache" or weights_are_here(config, base_dir):
        return None
    named = f" {held.teacher_name}" if held.teacher_name else ""
    return (
        f"the teacher's weights are not here: its cache is believed that it is of{named} (fingerprint {held.teacher}, "
        f"computed in {held.teacher_dtype})"
    )


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
    documents, tokenizer, mapping = _documents(recipe, base_dir)
    folder, identity = base_dir / cache_config.dir, cache_identity(recipe, tokenizer, base_dir)
    if config.source == "server":
        refuse_trimmed(mapping)
        if is_begun(folder) and not len(pending(TargetCache.open(folder, identity), documents)):
            announce(_open(folder, identity, documents)[1])
            return NOTHING_MISSING
        with open_server(config) as client:
            served = client.describe()
            cache, plan = _open(folder, replace(identity, teacher=served.fingerprint), documents)
            announce(plan)
            require_space(cache.path, plan.bytes)
            return capture_from_server(client, served, documents, cache, tokenizer, progress=progress)
    cache, plan = _open(folder, identity, documents, part)
    announce(plan)
    if not plan.documents:
        return NOTHING_MISSING
    require_space(cache.path, plan.bytes)
    if not weights_are_here(config, base_dir):
        TargetCache.open(folder, cache_identity(recipe, tokenizer, base_dir, believed=False))
    teacher, device = _captured_model(recipe, base_dir, identity.vocab_size, mapping)
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
    Raises OutputError when the disk cannot hold what all of them will write.
    """
    config, cache_config = _configs(recipe)
    refuse_parts_of_a_server(config, (0, 2))
    documents, tokenizer, _ = _documents(recipe, base_dir)
    cache, plan = _open(base_dir / cache_config.dir, cache_identity(recipe, tokenizer, base_dir), documents)
    require_space(cache.path, plan.bytes)
    return plan


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
    model = load_model(config, dtype=known_dtype(recipe, config, base_dir, device), base_dir=base_dir)
    verify_head(model)
    if config.quantization == "none":
        model = place_model(model, config.placement, device)
    return LiveTeacher(model, vocabulary_map=mapping, vocab_size=vocab_size), device


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


def _documents(recipe: Recipe, base_dir: Path) -> tuple[DocumentSet, PreTrainedTokenizerFast, torch.Tensor | None]:
    """What there is to score, the student's tokenizer, and the map to the teacher's ids."""
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
    return _asked(recipe, dataset), tokenizer, mapping


def _asked(recipe: Recipe, dataset: Dataset) -> DocumentSet:
    """The training documents of the stages that read targets."""
    needed = [dataset.of_stage(stage.name).train.documents for stage in recipe.stages if _asks_cache(stage)]
    # A recipe without a KD stage is captured for a later one: its rows are what there is to score.
    return unite(needed or [dataset.train.documents])


def _asks_cache(stage: StageConfig) -> bool:
    return isinstance(stage.objective, DistillationObjective)


def uses_cache(recipe: Recipe) -> bool:
    """True when training reads its targets from a cache, whoever filled it."""
    return recipe.teacher is not None and recipe.teacher.source != "live"
