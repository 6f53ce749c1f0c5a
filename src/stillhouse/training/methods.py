"""What TED and DoReMi's proxy add to a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stillhouse.data.document import DocumentSet
from stillhouse.evaluation.nll import TokenScorer
from stillhouse.recipe import DoReMiProxyObjective, FollowingMixture, StageConfig, TEDObjective
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.context import StageContext
from stillhouse.training.doremi import ProxyWeights, reference_scorer, target_shares
from stillhouse.training.mixing import constant_weights
from stillhouse.training.models import model_configuration
from stillhouse.training.precision import resolve_dtype
from stillhouse.training.ted import FilterTraining, HiddenAlignment, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def alignment(context: StageContext, stage: StageConfig, model: PreTrainedModel) -> HiddenAlignment | None:
    """TED's filters of the student, before they are trained."""
    if not isinstance(stage.objective, TEDObjective):
        return None
    student, teacher = Shape.of(model.config), teacher_shape(context)
    return HiddenAlignment(stage.objective, student, teacher, seed=context.recipe.seed)


def teacher_shape(context: StageContext) -> Shape:
    assert context.recipe.teacher is not None, "the recipe's validation asks for one"
    return Shape.of(model_configuration(context.recipe.teacher, context.base_dir))


def filter_training(
    context: StageContext, stage: StageConfig, documents: DocumentSet, checkpoints: Checkpoints
) -> FilterTraining | None:
    """TED's stage I, where the objective has one."""
    if not isinstance(stage.objective, TEDObjective):
        return None
    return FilterTraining(
        stage.objective,
        stage.optimisation,
        documents,
        context.student.vocab_size,
        checkpoints.folder,
        context.recipe.seed,
        context.student.pad_id,
        context.world,
    )


def proxy(context: StageContext, stage: StageConfig, documents: DocumentSet, score: TokenScorer) -> ProxyWeights | None:
    """The domain weights that a DoReMi proxy moves."""
    objective, mixture, device = stage.objective, stage.mixture, context.world.device
    if not isinstance(objective, DoReMiProxyObjective):
        return None
    assert not isinstance(mixture, FollowingMixture), "the recipe's validation refuses it"
    tokens = np.bincount(documents.domain_ids, weights=documents.lengths, minlength=len(documents.domains))
    shares = constant_weights(mixture, documents.domains, tokens.astype(np.int64), context.base_dir)
    return ProxyWeights(
        objective,
        documents.domains,
        target_shares(documents, shares),
        score=score,
        reference=reference_scorer(
            objective,
            context.student.tokenizer,
            base_dir=context.base_dir,
            dtype=resolve_dtype(stage.optimisation.precision, device),
            device=device,
            chunk=stage.optimisation.head_chunk,
        ),
        vocab_size=context.student.vocab_size,
        world=context.world,
    )
