"""A teacher that is not there: its targets come from a cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from stillhouse.data.batch import Batch
from stillhouse.data.document import DocumentSet
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.sparse import SparseTargets
from stillhouse.teachers.batch_order import documents_in_order


class CachedTeacher:
    """Gives each batch the sparse targets that were captured for its documents.

    ``documents`` is the set that the batches are cut from. Raises DataError when one of them is not in
    the cache, so that nothing is missing halfway through a run.
    """

    def __init__(self, cache: TargetCache, documents: DocumentSet) -> None:
        cache.require(documents)
        self._cache, self._documents = cache, documents

    @property
    def num_parameters(self) -> int:
        """Parameters of the model that was captured."""
        return self._cache.identity.teacher_parameters

    def targets(self, batch: Batch) -> SparseTargets:
        """Return the targets of ``batch``, N rows in its row-major order, on the CPU."""
        ids = batch.document_ids.cpu().numpy()
        return self._cache.read(self._documents.uids[documents_in_order(ids, self._documents.num_targets)])

    def stream(self, batches: Iterable[Batch], *, depth: int = 4) -> Iterator[tuple[Batch, SparseTargets]]:
        """Yield every batch with its targets, while a thread reads those of the next ``depth`` batches."""
        assert depth >= 1
        waiting: deque[tuple[Batch, Future[SparseTargets]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="teacher-targets") as reader:
            try:
                for batch in batches:
                    waiting.append((batch, reader.submit(self.targets, batch)))
                    if len(waiting) > depth:
                        ready, future = waiting.popleft()
                        yield ready, future.result()
                while waiting:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()
