"""A smaller vocabulary for a byte-pair tokenizer, with the model's embedding and head cut to match.

Kept are special and added tokens, base tokens (bytes, and whatever no merge makes), tokens that the
corpus uses often enough, and every intermediate token on the way to a kept one. So a text whose
tokens are all kept is cut exactly as before, and any other text still has its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.document import DocumentSet
from stillhouse.errors import ModelError
from stillhouse.models.head import split_model
from stillhouse.models.shrink.rebuild import own_weights, rebuild

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROBE_TEXTS = (
    "Straße, naïve, 東京, Здравствуй, 🙂\u200d🔥, ½ ≠ ∑",
    "def f(x):\n\treturn x ** 2  # two  spaces\r\n\n\n",
    " 3.14159 1,000,000 zxqvj!?\u00a0",
)
"""Texts that hardly any training set covers: they must survive a round trip too."""

CHECKED_DOCUMENTS = 64
TOKEN_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def prune_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: DocumentSet, *, min_count: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Tensor]:
    """Return the model and tokenizer with fewer tokens, and the map int64 [V_new] from new id to old id.

    ``documents`` (tokenized by ``tokenizer``) give the counts. Raises ModelError for a tokenizer
    that is no BPE, or when a text does not survive the round trip.
    """
    special = _token_ids(model.config.to_dict()) | _token_ids(model.generation_config.to_dict())
    kept = tokens_to_keep(tokenizer, documents, min_count=min_count, special=special)
    trimmed = _rebuild_tokenizer(tokenizer, trimmed_state(_state(tokenizer), kept))
    _check_round_trip(tokenizer, trimmed, kept, documents)
    id_map = torch.tensor(kept, dtype=torch.int64)
    return _cut_rows(model, id_map), trimmed, id_map


def tokens_to_keep(
    tokenizer: PreTrainedTokenizerFast, documents: DocumentSet, *, min_count: int, special: Iterable[int] = ()
) -> list[int]:
    """Return the sorted ids that trimming keeps; ``special`` are kept whatever their counts.

    Raises ModelError for a tokenizer that is no BPE.
    """
    state = _state(tokenizer)
    if state["model"]["type"] != "BPE":
        raise ModelError(
            f"student.vocabulary: the tokenizer is a {state['model']['type']}; only BPE vocabularies can be trimmed"
        )
    real = max(tokenizer.get_vocab().values()) + 1
    counts = np.bincount(documents.tokens, minlength=real)
    frequent = np.flatnonzero(counts >= min_count).tolist()
    return kept_ids(state, {*frequent, *special, *tokenizer.all_special_ids})


def _state(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer as its ``tokenizer.json`` has it."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def kept_ids(state: dict[str, Any], wanted: Iterable[int]) -> list[int]:
    """Return the sorted ids to keep: ``wanted``, base and added tokens, and the parts of merges.

    ``state`` is a parsed ``tokenizer.json``.
    """
    vocab: dict[str, int] = state["model"]["vocab"]
    ranks = {pair: rank for rank, pair in enumerate(_merge_pairs(state))}
    made = {left + right for left, right in ranks}
    added = {token["id"] for token in state["added_tokens"]}
    kept = set(wanted) | added | {index for token, index in vocab.items() if token not in made}
    if state["model"].get("unk_token") is not None:
        kept.add(vocab[state["model"]["unk_token"]])
    tokens = {index: token for token, index in vocab.items()}
    for index in sorted(kept - added):
        if index in tokens:
            kept.update(vocab[part] for part in merge_path(tokens[index], ranks) if part in vocab)
    return sorted(kept & (tokens.keys() | added))


def merge_path(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Return every piece that byte-pair merging goes through from the characters of ``token`` to the token.

    The pieces inside a token are merged in the same order wherever the token occurs, because no
    merge that crosses its border ever happens there. So they are all that cutting it again needs.
    """
    pieces = list(token)
    path = list(pieces)
    while len(pieces) > 1:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            break
        _, at = min(pairs)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        path.append(pieces[at])
    return path


def _merge_pairs(state: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs: old files write them as one string with a blank between."""
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in state["model"]["merges"]]
    return [(left, right) for left, right in merges]


def trimmed_state(state: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return a ``tokenizer.json`` state with only the ids ``kept``, renumbered in their order."""
    new_id = {old: new for new, old in enumerate(kept)}
    vocab = {token: new_id[index] for token, index in state["model"]["vocab"].items() if index in new_id}
    pairs = [pair for pair in _merge_pairs(state) if {*pair, "".join(pair)} <= vocab.keys()]
    added = [token | {"id": new_id[token["id"]]} for token in state["added_tokens"]]
    return state | {
        "padding": None,
        "truncation": None,
        "added_tokens": added,
        "model": state["model"] | {"vocab": vocab, "merges": [list(pair) for pair in pairs]},
        "post_processor": _renumbered_post_processor(state["post_processor"], new_id),
    }


def _renumbered_post_processor(processor: dict[str, Any] | None, new_id: dict[int, int]) -> dict[str, Any] | None:
    """Post-processors that add special tokens name their ids."""
    if processor is None or processor["type"] == "ByteLevel":
        return processor
    if processor["type"] == "Sequence":
        return processor | {"processors": [_renumbered_post_processor(p, new_id) for p in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        special = {
            name: token | {"ids": [new_id[i] for i in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return processor | {"special_tokens": special}
    if processor["type"] in {"BertProcessing", "RobertaProcessing"}:
        return processor | {side: [processor[side][0], new_id[processor[side][1]]] for side in ("sep", "cls")}
    raise ModelError(f"student.vocabulary: the tokenizer's post-processor {processor['type']} is not known")


def _rebuild_tokenizer(tokenizer: PreTrainedTokenizerFast, state: dict[str, Any]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **tokenizer.special_tokens_map,
    )


def _check_round_trip(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, kept: Sequence[int], documents: DocumentSet
) -> None:
    """Texts must come back as they do from the old tokenizer, and keep their ids where all are kept."""
    count = min(CHECKED_DOCUMENTS, len(documents))
    texts = [old.decode(documents[i].input_ids.tolist()) for i in range(count)]
    keep = set(kept)
    for text in [*texts, *PROBE_TEXTS]:
        before = old.encode(text, add_special_tokens=False)
        after = [kept[i] for i in new.encode(text, add_special_tokens=False)]
        if old.decode(after) != old.decode(before) or (keep.issuperset(before) and after != before):
            raise ModelError(
                f"student.vocabulary: the trimmed tokenizer does not reproduce {text[:60]!r}; this tokenizer cannot "
                "be trimmed, so leave student.vocabulary out"
            )


def _is_token_id(name: str) -> bool:
    return name.endswith(("_token_id", "_token_ids")) or name in TOKEN_ID_LISTS


def _token_ids(config: dict[str, Any]) -> set[int]:
    """Every token id that a configuration names."""
    ids: set[int] = set()
    for name, value in config.items():
        if _is_token_id(name) and value is not None:
            ids.update(i for i in (value if isinstance(value, list) else [value]) if i >= 0)
    return ids


def _renumbered(config: dict[str, Any], new_id: dict[int, int]) -> dict[str, Any]:
    """The entries of a configuration that name token ids, with the new ids."""
    return {
        name: [new_id[i] for i in value] if isinstance(value, list) else new_id.get(value, value)
        for name, value in config.items()
        if _is_token_id(name) and value is not None
    }


def _cut_rows(model: PreTrainedModel, id_map: Tensor) -> PreTrainedModel:
    """Return a new model with the rows ``id_map`` of embedding and head, and renumbered special ids."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    head = split_model(model).head
    tables = {t.data_ptr() for t in (embeddings.weight, head.weight, head.bias) if t is not None}
    rows = id_map.to(embeddings.weight.device)
    weights = {
        name: tensor.index_select(0, rows) if tensor.data_ptr() in tables else tensor.clone()
        for name, tensor in own_weights(model).items()
    }
    new_id = {old: new for new, old in enumerate(id_map.tolist())}
    changes = {"vocab_size": len(id_map), **_renumbered(model.config.to_dict(), new_id)}
    student = rebuild(model, changes, weights)
    for name, value in _renumbered(model.generation_config.to_dict(), new_id).items():
        setattr(student.generation_config, name, value)
    return student
