"""The micro-batches of one optimizer step, shared out over the ranks."""

from __future__ import annotations

from stillhouse.data.batch import Batch
from stillhouse.data.batching import make_micro_batches
from stillhouse.data.document import DocumentSet, Int64Array
from stillhouse.recipe import OptimisationConfig
from stillhouse.training.distributed import World


def rank_share(
    documents: DocumentSet, indices: Int64Array, optimisation: OptimisationConfig, *, pad_id: int, world: World
) -> list[Batch]:
    """Return this rank's micro-batches; every rank gets equally many, the last perhaps of weight zero."""
    batches = make_micro_batches(
        documents,
        indices,
        micro_batch_tokens=optimisation.micro_batch_tokens,
        layout=optimisation.layout,
        pad_id=pad_id,
    )
    while len(batches) % world.size:
        batches.append(batches[0].without_targets())
    return batches[world.rank :: world.size]
