"""Fill a cache of teacher targets from a server: the k likeliest ids of each target and the rest as one bucket.

The cache, its shards and its manifest are those of a local capture. What a server cannot give is
left out or refused: it shows its likeliest ids alone (``topk_ghost``), at temperature 1, and no
entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillhouse.data.document import Document, DocumentSet, Int64Array
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureProgress, ShardFiller, pending
from stillhouse.targets.codec import Codec, TopKGhost
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.targets.shards import DocumentRecord
from stillhouse.teachers.server_client import Request, ServedModel, ServerClient
from stillhouse.teachers.server_logprobs import (
    TokenChoices,
    check_texts,
    label_nll,
    missing_choices,
    prompt_request,
    read_choices,
    score_document,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHECKED_DOCUMENTS = 4
"""So many documents are compared text by text before the rest is asked for."""

SAME_TEACHER_NATS = 0.1
"""Documents that were captured before must be answered alike: the mean difference of the labels' NLL. Another
batch or machine moves half-precision answers by a hundredth; other weights move them by tenths."""

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 60.0
"""A shard is written when it has so many bytes or is so old: what a kill can cost at most."""

ANSWER_TOKENS = 1
"""The server writes one token behind each document, for which its context must have room."""


def served_codec(codec: Codec) -> TopKGhost:
    """Return the codec as a server can fill it: without the entropy, which needs the whole distribution.

    Raises RecipeError for every codec but ``topk_ghost``.
    """
    if not isinstance(codec, TopKGhost):
        raise RecipeError(
            f"teacher.cache.codec.type={codec.name}: a server gives only its likeliest tokens; use "
            "{type: topk_ghost, k: 20}, with k up to the server's --max-logprobs (raise it for a larger k)"
        )
    return TopKGhost(statistics=codec.statistics, entropy=False, k=codec.k, value_bits=codec.value_bits)


def capture_from_server(
    client: ServerClient,
    served: ServedModel,
    documents: DocumentSet,
    cache: TargetCache,
    tokenizer: PreTrainedTokenizerFast,
    *,
    part: tuple[int, int] = (0, 1),
    shard_seconds: float = SHARD_SECONDS,
    progress: Callable[[CaptureProgress], None] | None = None,
) -> CaptureProgress:
    """Add to the cache what it lacks of ``documents``, by asking the server for them.

    ``tokenizer`` is the one that the documents were made with. Before anything is kept, a few documents
    are compared text by text, and some that the cache has already are asked for again. A capture that
    is killed loses the shard it was filling; an error or Ctrl-C writes that shard first.

    Raises RecipeError for a codec or temperature that a server cannot serve, DataError for documents
    that are too long for it, ModelError when its tokens are not ours or it is not the teacher of the
    cache, ServerError when it gives no answer, and OutputError for a disk that is too small.
    """
    identity = cache.identity
    codec = served_codec(identity.codec)
    if identity.temperature != 1.0:
        raise RecipeError(
            f"teacher.cache.temperature={identity.temperature}: a server gives its log-probabilities at temperature 1 alone"
        )
    assert codec == identity.codec, "the cache was begun with served_codec"
    indices = pending(cache, documents, part)
    refuse_too_long(documents, indices, served, client.field)
    check_same_teacher(client, documents, cache)
    filler = ShardFiller(documents, indices, cache, SHARD_BYTES, shard_seconds)
    with filler.keeping_what_is_done():
        for index, choices in _scored(client, documents, indices, filler, tokenizer, identity):
            here = np.array([index])
            filler.add(here, [encode_document(choices, documents[index], identity)] if len(filler.wanted(here)) else [])
            if progress is not None:
                progress(filler.progress())
    filler.flush()
    return filler.progress()


def refuse_too_long(documents: DocumentSet, indices: Int64Array, served: ServedModel, field: str) -> None:
    """Raise DataError naming the first document that does not fit the server's context, and how many there are."""
    if served.max_model_len is None:
        return
    room = served.max_model_len - ANSWER_TOKENS
    lengths = documents.lengths[indices]
    long = np.flatnonzero(lengths > room)
    if not len(long):
        return
    first = int(indices[long[0]])
    domain = documents.domains[int(documents.domain_ids[first])]
    raise DataError(
        f"{field}.url: {len(long)} of {len(indices)} documents are longer than the {room} tokens that the server takes "
        f"(its --max-model-len is {served.max_model_len}); the first comes from row {int(documents.rows[first])} of the "
        f"data (domain {domain!r}, {int(documents.lengths[first])} tokens). Set data.max_seq_len={room}, or start the "
        f"server with --max-model-len {int(lengths.max()) + ANSWER_TOKENS}"
    )


def check_same_teacher(client: ServerClient, documents: DocumentSet, cache: TargetCache) -> None:
    """Ask again for up to three documents that the cache has, and compare.

    Raises ModelError when the labels' NLL differs by more than ``SAME_TEACHER_NATS`` on average.
    """
    assert isinstance(cache.identity.codec, TopKGhost)
    held = np.flatnonzero(cache.targets_of(documents.uids) > 0)
    shortest = held[np.argsort(documents.lengths[held], kind="stable")][:3]
    if not len(shortest) or not cache.identity.codec.statistics:
        return
    requests = ((int(i), Request("completions", prompt_request(documents[int(i)], 0))) for i in shortest)
    differences = []
    for index, answer in client.stream(requests):
        document = documents[index]
        known = cache.read([document.uid]).teacher_nll
        assert known is not None
        differences.append((label_nll(read_choices(answer, document, 0, client.field), document) - known).abs())
    mean = float(torch.cat(differences).mean())
    if mean > SAME_TEACHER_NATS:
        raise ModelError(
            f"{client.field}.model={client.config.model}: the server answers otherwise than when the cache {cache.path} "
            f"was begun (the NLL of the same {len(torch.cat(differences))} tokens differs by {mean:.2f} nats on average), "
            "so another model is served under this name; serve that model, or capture into a new cache folder"
        )


def encode_document(choices: list[TokenChoices], document: Document, identity: CacheIdentity) -> DocumentRecord:
    """Return the record of one document, bit for bit as a local capture would pack these probabilities."""
    codec = identity.codec
    assert isinstance(codec, TopKGhost)
    scored = score_document(choices, document, codec.k, identity.vocab_size)
    nll = scored.nll if codec.statistics else None
    chosen = codec.of_likeliest(scored.ids, scored.log_p, identity.vocab_size, nll)
    buffer, _ = codec.pack(chosen, np.array([document.num_targets]), identity.vocab_size)
    return DocumentRecord(document.uid, document.num_targets, buffer.tobytes())


def _scored(
    client: ServerClient,
    documents: DocumentSet,
    indices: Int64Array,
    filler: ShardFiller,
    tokenizer: PreTrainedTokenizerFast,
    identity: CacheIdentity,
) -> Iterator[tuple[int, list[TokenChoices]]]:
    """Yield each document's answer as it comes; the first few are compared with the tokenizer before the rest is sent."""
    codec = identity.codec
    assert isinstance(codec, TopKGhost)
    k = min(codec.k, identity.vocab_size)
    first, rest = indices[:CHECKED_DOCUMENTS], indices[CHECKED_DOCUMENTS:]
    checked = list(_answers(client, documents, first, k, identity.vocab_size, filler))
    if checked:
        check_texts([choice for _, choices in checked for choice in choices], tokenizer, client.field)
    yield from checked
    yield from _answers(client, documents, rest, k, identity.vocab_size, filler)


def _answers(
    client: ServerClient, documents: DocumentSet, indices: Int64Array, k: int, vocab_size: int, filler: ShardFiller
) -> Iterator[tuple[int, list[TokenChoices]]]:
    def requests() -> Iterator[tuple[int, Request]]:
        for index in indices.tolist():
            here = np.array([index])
            if len(filler.wanted(here)):
                yield index, Request("completions", prompt_request(documents[index], k))
            else:  # another capture was faster
                filler.add(here, [])

    for index, answer in client.stream(requests()):
        document, asked = documents[index], k
        choices = read_choices(answer, document, asked, client.field)
        while more := missing_choices(choices, document, num_logprobs=asked, k=k, vocab_size=vocab_size):
            asked += more
            again = client.ask(Request("completions", prompt_request(document, asked)))
            choices = read_choices(again, document, asked, client.field)
        yield index, choices
