"""Do student and teacher read the same tokens, and does the recipe allow that they do not?"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.vocabulary_map import teacher_ids
from stillhouse.recipe import DistillationObjective, FollowingMixture, PrunedStudent, Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_SAMPLED = 200
"""Documents that tell how the rows are cut into tokens."""
_ALIKE = 1.02
"""So few more tokens are rare words, which even the teacher's own vocabulary spells out."""


def relate_tokenizers(
    recipe: Recipe, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast
) -> tuple[Tensor | None, str | None]:
    """Return the map of ``teacher_ids``, and where the vocabularies first differ if the teacher's is another one.

    Raises ModelError where the recipe asks for something that needs one vocabulary.
    """
    try:
        return teacher_ids(student, teacher), None
    except ModelError as error:
        refuse_other_tokenizer(recipe, str(error))
        return None, str(error)


def refuse_other_tokenizer(recipe: Recipe, difference: str) -> None:
    """Raise ModelError naming the first field that wants one tokenizer, where there are two.

    ``difference`` says which token differs first.
    """
    assert recipe.teacher is not None
    for i, stage in enumerate(recipe.stages):
        if isinstance(stage.objective, DistillationObjective):
            raise ModelError(
                f"stages.{i}.objective.type={stage.objective.type}: {difference}, or use `objective: "
                "{type: cross_tokenizer}` with a live teacher"
            )
        if isinstance(stage.mixture, FollowingMixture):
            raise ModelError(
                f"stages.{i}.mixture.type={stage.mixture.type} compares NLL per token, and {difference}, or use another "
                "mixture"
            )
    if isinstance(recipe.student, PrunedStudent) and recipe.student.vocabulary is not None:
        raise ModelError(
            f"student.vocabulary: a trimmed vocabulary keeps tokens of its teacher, and {difference}, or leave the "
            "vocabulary whole"
        )
    if recipe.teacher.source != "live":
        raise ModelError(
            f"teacher.source={recipe.teacher.source}: targets name the student's tokens, and {difference}, or use "
            "teacher.source: live with `objective: {type: cross_tokenizer}`"
        )


def finer_pieces(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, documents: DocumentSet
) -> str | None:
    """Say in words that a trimmed vocabulary cuts the rows into more tokens than the teacher's own does; else None.

    Teacher and student must read the same pieces, and a teacher that reads words in pieces that it did not
    meet in its own training predicts much worse. A vocabulary that was trimmed on such rows leaves them alike.
    """
    texts = [student.decode(document.input_ids.tolist()) for document in islice(documents, _SAMPLED)]
    ours = sum(document.num_tokens for document in islice(documents, _SAMPLED))
    theirs = sum(len(teacher.encode(text, add_special_tokens=False)) for text in texts)
    if ours <= _ALIKE * theirs:
        return None
    return (
        f"the student's trimmed vocabulary cuts the training rows into {ours / theirs - 1:.0%} more tokens than its"
        " teacher's own would: the teacher reads those pieces as well, did not learn them so, and its targets are worse"
        " for it; trim the vocabulary on rows like these (student.vocabulary.min_count: 1), or leave it whole"
    )
