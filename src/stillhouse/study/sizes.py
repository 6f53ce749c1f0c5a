"""Parameters of the models that a recipe names, from their configurations alone."""

from __future__ import annotations

from pathlib import Path

from stillhouse.models.parameters import count_parameters
from stillhouse.preflight.check import planned_configuration
from stillhouse.recipe import PretrainedStudent, Recipe
from stillhouse.study.budget import Sizes
from stillhouse.training.models import model_configuration, parameters_of, student_source, teacher_parameters


def model_sizes(base_dir: Path) -> Sizes:
    """Return the function from a recipe to (student's, teacher's parameters); a trimmed vocabulary counts whole."""

    def sizes(recipe: Recipe) -> tuple[int, int | None]:
        teacher = teacher_parameters(recipe, base_dir)
        source = student_source(recipe)
        if isinstance(recipe.student, PretrainedStudent):
            return parameters_of(source, base_dir), teacher
        return count_parameters(planned_configuration(model_configuration(source, base_dir), recipe.student)), teacher

    return sizes
