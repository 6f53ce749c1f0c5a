"""The student before training, and the data that its tokenizer reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.data.dataset import Dataset, load_dataset
from stillhouse.errors import ModelError
from stillhouse.models.load import load_model, load_tokenizer, recipe_field, resolve_path
from stillhouse.models.lora import add_lora
from stillhouse.models.parameters import count_parameters
from stillhouse.models.save import save_model
from stillhouse.models.shrink.build import build_student
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import ModelConfig, PretrainedStudent, Recipe
from stillhouse.run_directory import RunDirectory, read_json, write_json_atomic
from stillhouse.targets.manifest import read_manifest
from stillhouse.training.distributed import World
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.served import is_begun
from stillhouse.training.tokenizer_relation import finer_pieces, relate_tokenizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    Check = Callable[[PreTrainedTokenizerFast, Dataset], None]


@dataclass(frozen=True)
class Student:
    """Where the student's first weights are, and how its ids relate to the teacher's.

    ``vocabulary_map`` int64 [V*] gives the teacher's id of every student id; None: they are equal, or
    the teacher has another tokenizer, and then ``other_tokenizer`` says where the two first differ.
    ``finer_pieces`` says where a trimmed vocabulary makes the teacher read pieces that are not its own.
    """

    recipe: Recipe
    config: ModelConfig
    base_dir: Path
    tokenizer: PreTrainedTokenizerFast
    vocab_size: int
    vocabulary_map: Tensor | None
    parameters: int
    teacher_parameters: int | None
    other_tokenizer: str | None = None
    finer_pieces: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def pad_id(self) -> int:
        """Padding is never a target and never seen, so any id serves where the tokenizer has none."""
        return int(self.tokenizer.pad_token_id or 0)

    def load(self, dtype: torch.dtype, *, lora: bool = True) -> PreTrainedModel:
        """Load the untrained student; with fresh LoRA layers where the recipe asks for them."""
        model = load_model(self.config, dtype=dtype, base_dir=self.base_dir)
        if lora and self.recipe.student.lora is not None:
            model = add_lora(model, self.recipe.student.lora, seed=self.recipe.seed)
        return model


def prepare_student(
    recipe: Recipe,
    base_dir: Path,
    directory: RunDirectory,
    world: World,
    say: Callable[[str], None],
    check: Check | None = None,
) -> tuple[Student, Dataset]:
    """Load the data and make the student (pruned ones are kept in ``initial/``).

    Every process calls this; rank 0 prunes and writes. ``say`` tells a person what takes time. ``check`` is
    handed tokenizer and data as soon as they are those of the training, before a student is pruned that
    leaves the vocabulary whole.
    """
    say("loading tokenizer and data")
    source = student_source(recipe)
    tokenizer = load_tokenizer(source, base_dir=base_dir)
    dataset = load_data(recipe, tokenizer, base_dir)
    config, notes = source, {}
    trimmed = not isinstance(recipe.student, PretrainedStudent) and recipe.student.vocabulary is not None
    if not trimmed:
        _relate(
            recipe, tokenizer, base_dir
        )  # another tokenizer is the better reason to stop than a cache that lacks it
        if check is not None:
            check(tokenizer, dataset)
    if not isinstance(recipe.student, PretrainedStudent):
        initial = directory / "initial"
        if world.is_main and not (initial / "config.json").exists():
            say("pruning the student from its source")
            _prune(recipe, source, tokenizer, dataset, base_dir, directory, world)
        world.barrier()
        config = ModelConfig(path=str(initial.absolute()), attention=source.attention)
        notes = read_json(directory / "evaluation" / "pruning.json")
        if recipe.student.vocabulary is not None:
            tokenizer = load_tokenizer(config, base_dir=base_dir)
            dataset = load_data(recipe, tokenizer, base_dir)
            if check is not None:
                check(tokenizer, dataset)
    vocab_size = vocabulary_size(tokenizer)
    mapping, difference = _relate(recipe, tokenizer, base_dir)
    student = Student(
        recipe=recipe,
        config=config,
        base_dir=base_dir,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        vocabulary_map=mapping,
        parameters=parameters_of(config, base_dir),
        teacher_parameters=teacher_parameters(recipe, base_dir),
        other_tokenizer=difference,
        finer_pieces=_finer_pieces(recipe, tokenizer, dataset, base_dir) if mapping is not None else None,
        notes=notes,
    )
    return student, dataset


def _relate(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, base_dir: Path
) -> tuple[torch.Tensor | None, str | None]:
    """The student's ids in the teacher's vocabulary, or where the two first differ; neither without a teacher."""
    if recipe.teacher is None:
        return None, None
    return relate_tokenizers(recipe, tokenizer, load_tokenizer(recipe.teacher, base_dir=base_dir))


def _finer_pieces(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, dataset: Dataset, base_dir: Path) -> str | None:
    assert recipe.teacher is not None, "there are two vocabularies"
    return finer_pieces(tokenizer, load_tokenizer(recipe.teacher, base_dir=base_dir), dataset.train.documents)


def student_source(recipe: Recipe) -> ModelConfig:
    """The model that the student starts from or is pruned from."""
    if isinstance(recipe.student, PretrainedStudent):
        return recipe.student
    if recipe.student.source is not None:
        return recipe.student.source
    assert recipe.teacher is not None, "the recipe's validation asks for one"
    # A student is cut from whole weights, however the teacher itself is held.
    return recipe.teacher.model_copy(update={"quantization": "none"})


def parameters_of(config: ModelConfig, base_dir: Path) -> int:
    """Parameters of the model that a recipe names, from its configuration alone; tied ones count once."""
    return count_parameters(model_configuration(config, base_dir))


def teacher_parameters(recipe: Recipe, base_dir: Path) -> int | None:
    """Parameters of the teacher; None without one, and where only its tokenizer is here and no cache knows more."""
    config = recipe.teacher
    if config is None:
        return None
    if config.source == "cache" and config.cache is not None and is_begun(base_dir / config.cache.dir):
        held = read_manifest(base_dir / config.cache.dir).teacher_parameters
        if held:
            return held
    folder = Path(resolve_path(config, base_dir=base_dir))
    if config.source != "live" and folder.is_dir() and not (folder / "config.json").exists():
        return None
    return parameters_of(config, base_dir)


def model_configuration(config: ModelConfig, base_dir: Path) -> PreTrainedConfig:
    """Read the transformers configuration of the model that a recipe names.

    Raises ModelError when it is missing or of an unknown kind.
    """
    from transformers import AutoConfig

    source = resolve_path(config, base_dir=base_dir)
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{recipe_field(config)}={config.path}: its config.json cannot be read: {error}") from error
    return found


def load_data(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, base_dir: Path) -> Dataset:
    return load_dataset(
        recipe.data,
        tokenizer,
        seed=recipe.seed,
        base_dir=base_dir,
        tokenizer_hash=tokenizer_hash(tokenizer),
        test=recipe.evaluation,
        stages={stage.name: stage.data for stage in recipe.stages if stage.data is not None},
    )


def _prune(
    recipe: Recipe,
    source: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    dataset: Dataset,
    base_dir: Path,
    directory: RunDirectory,
    world: World,
) -> None:
    assert not isinstance(recipe.student, PretrainedStudent)
    model = load_model(source, dtype=torch.float32, base_dir=base_dir)
    dtype = resolve_dtype(recipe.stages[0].optimisation.precision, world.device)
    shrunk = build_student(
        model.to(world.device),  # type: ignore[arg-type]
        recipe.student,
        documents=dataset.train.documents,
        tokenizer=tokenizer,
        seed=recipe.seed,
        measure_dtype=dtype,
    )
    write_json_atomic(directory / "evaluation" / "pruning.json", shrunk.notes)
    save_model(shrunk.model, shrunk.tokenizer, directory / "initial")
