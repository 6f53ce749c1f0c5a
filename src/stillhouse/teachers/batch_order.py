"""Which documents a batch holds, in the order of its targets."""

from __future__ import annotations

import numpy as np

from stillhouse.data.document import Int64Array


def documents_in_order(document_ids: Int64Array, num_targets: Int64Array) -> Int64Array:
    """Return the documents of a batch in order, from the document of each of its targets [N].

    ``num_targets`` int64 [D]: the targets of each document of the set that the batch was cut from. A
    document that stands in a batch twice in a row makes one run of twice its targets.
    """
    if not len(document_ids):
        return document_ids
    starts = np.flatnonzero(np.concatenate([[True], document_ids[1:] != document_ids[:-1]]))
    runs = np.diff(np.append(starts, len(document_ids)))
    documents = document_ids[starts]
    times, rest = np.divmod(runs, num_targets[documents])
    assert not rest.any(), "the batch was cut from another document set"
    repeated: Int64Array = np.repeat(documents, times)
    return repeated
