"""A teacher with another tokenizer, made ready for a stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stillhouse.data.prepare import Prepared
from stillhouse.errors import DataError
from stillhouse.models.head import verify_head
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.placement import place_model
from stillhouse.recipe import Recipe
from stillhouse.teachers.aligned import AlignedTeacher, vocabulary_match
from stillhouse.teachers.aligned_documents import align_documents
from stillhouse.training.cached import teacher_dtype
from stillhouse.training.distributed import World
from stillhouse.training.models import Student

LONGEST = 1 << 20
"""Where a model names no longest context."""


def aligned_teacher(
    recipe: Recipe, base_dir: Path, student: Student, prepared: Prepared, world: World, say: Callable[[str], None]
) -> AlignedTeacher:
    """Load the recipe's teacher and align its tokens with those of the stage's documents.

    Raises DataError when too few documents can be aligned, or no text at all; ModelError as loading does.
    """
    config = recipe.teacher
    assert config is not None, "the recipe's validation asks for one"
    tokenizer = load_tokenizer(config, base_dir=base_dir)
    match = vocabulary_match(student.tokenizer, tokenizer)
    model = load_model(config, dtype=teacher_dtype(recipe, config, world.device), base_dir=base_dir)
    documents = align_documents(
        prepared,
        student.tokenizer,
        tokenizer,
        max_teacher_len=getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST,
        max_unaligned_fraction=recipe.data.max_rejected_fraction,
    )
    report = documents.report
    if not report.groups:
        raise DataError(
            "objective cross_tokenizer: no token of teacher and student covers the same text in any document; "
            "raise data.max_seq_len, or use another teacher"
        )
    say(
        f"teacher with another tokenizer: {report.groups} groups of tokens cover {report.coverage:.1%} of the targets; "
        f"{report.unaligned} of {report.documents} documents are not aligned; {len(match.student_ids)} tokens of the "
        f"two vocabularies write the same text ({match.share_of_teacher:.1%} of the teacher's)"
    )
    verify_head(model)
    if config.quantization == "none":  # 4-bit weights were loaded into their place
        model = place_model(model, config.placement, world.device)
    return AlignedTeacher(model, documents, match)
