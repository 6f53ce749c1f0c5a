"""What a recipe names, before anything runs: the sizes of its models, and how many steps its data gives."""

from __future__ import annotations

from pathlib import Path

from stillhouse.models.load import load_tokenizer
from stillhouse.models.parameters import count_parameters
from stillhouse.preflight.check import planned_configuration
from stillhouse.recipe import PretrainedStudent, Recipe
from stillhouse.study.budget import Sizes
from stillhouse.training.mixing import num_interval_steps
from stillhouse.training.models import (
    load_data,
    model_configuration,
    parameters_of,
    student_source,
    teacher_parameters,
)


def model_sizes(base_dir: Path) -> Sizes:
    """Return the function from a recipe to (student's, teacher's parameters); a trimmed vocabulary counts whole."""

    def sizes(recipe: Recipe) -> tuple[int, int | None]:
        teacher = teacher_parameters(recipe, base_dir)
        source = student_source(recipe)
        if isinstance(recipe.student, PretrainedStudent):
            return parameters_of(source, base_dir), teacher
        return count_parameters(planned_configuration(model_configuration(source, base_dir), recipe.student)), teacher

    return sizes


def training_steps(recipe: Recipe, base_dir: Path) -> int:
    """Optimizer steps of the shortest stage that has data, when its plan is drawn by intervals.

    Reads and tokenizes the training data with the tokenizer that the student starts from. Raises as loading does.
    """
    dataset = load_data(recipe, load_tokenizer(student_source(recipe), base_dir=base_dir), base_dir)
    documents = [(stage, dataset.of_stage(stage.name).train.documents) for stage in recipe.stages]
    return min(num_interval_steps(stage, found) for stage, found in documents if len(found))
