"""vLLM's ``prompt_logprobs``: what a server says about the tokens of a document, checked and put in order.

The answer lists, for every token but the first, the likeliest ids at its place and the id that
stands there, each with its log-probability, rank and text. Ids are the contract between server and
student, so that they mean the same on both sides is looked at and not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillhouse.data.document import Document
from stillhouse.errors import ModelError, ServerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUM_TOLERANCE = 1e-2
"""Probabilities that sum to more than 1 by this are none; rounding of a half-precision server stays far below."""

_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TokenChoices:
    """What the server lists at one place: id to (log-probability, text or None)."""

    listed: dict[int, tuple[float, str | None]]

    @property
    def likeliest(self) -> list[int]:
        """The listed ids, the likeliest first; ties by id, so that equal answers give equal records."""
        return sorted(self.listed, key=lambda token: (-self.listed[token][0], token))


@dataclass(frozen=True)
class ScoredDocument:
    """The targets of one document, as ``TopKGhost.of_likeliest`` wants them.

    ids int64 [n, k] and log_p float64 [n, k], the likeliest first; nll float32 [n] of the labels.
    """

    ids: Tensor
    log_p: Tensor
    nll: Tensor


def prompt_request(document: Document, num_logprobs: int) -> dict[str, Any]:
    """The body of a request that scores a document: its ids, one token of answer, which nobody wants."""
    return {
        "prompt": document.input_ids.tolist(),
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": num_logprobs,
    }


def read_choices(answer: dict[str, Any], document: Document, num_logprobs: int, field: str) -> list[TokenChoices]:
    """Return what the server lists for tokens 1 to T-1 of the document, T-1 entries of at least ``num_logprobs`` ids.

    Raises ServerError when the answer has no ``prompt_logprobs``, too few, or they are no
    log-probabilities, and ModelError naming the first token that the server read otherwise than it was sent.
    """
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    listed = first.get("prompt_logprobs") if isinstance(first, dict) else None
    if not isinstance(listed, list):
        raise ServerError(
            f"{field}.url: the server gives no prompt_logprobs, which capture and scoring need; use vLLM's "
            "OpenAI-compatible server (other servers can still write answers)"
        )
    tokens = document.input_ids.tolist()
    if len(listed) != len(tokens):
        raise ModelError(
            f"{field}: the server read {len(listed)} tokens where {len(tokens)} were sent; it changes its prompts, so "
            "its log-probabilities belong to another text"
        )
    found = []
    for place, (token, entry) in enumerate(zip(tokens[1:], listed[1:], strict=True), start=1):
        choice = _choices(entry, place, field)
        if token not in choice.listed:
            raise ModelError(
                f"{field}: token {place} was sent as id {token}, and the server scores other ids there "
                f"({', '.join(map(str, choice.likeliest[:3]))}): it reads the document otherwise"
            )
        if len(choice.listed) < num_logprobs:
            raise ServerError(
                f"teacher.cache.codec.k: asked for {num_logprobs} ids, the server lists {len(choice.listed)} for token "
                f"{place}; lower k, or raise the server's limit (vLLM: --max-logprobs)"
            )
        found.append(choice)
    return found


def _choices(entry: Any, place: int, field: str) -> TokenChoices:
    problem = f"{field}.url: the prompt_logprobs of token {place} are"
    if not isinstance(entry, dict) or not entry:
        raise ServerError(f"{problem} no table of ids; is this a vLLM server?")
    listed: dict[int, tuple[float, str | None]] = {}
    for token, values in entry.items():
        log_p = values.get("logprob") if isinstance(values, dict) else None
        if not token.isdecimal() or not isinstance(log_p, int | float) or not math.isfinite(log_p):
            raise ServerError(f"{problem} no log-probabilities by id; is this a vLLM server?")
        text = values.get("decoded_token")
        listed[int(token)] = (float(log_p), text if isinstance(text, str) else None)
    if math.fsum(math.exp(min(log_p, 1.0)) for log_p, _ in listed.values()) > 1 + SUM_TOLERANCE:
        raise ServerError(
            f"{problem} no log-probabilities (they sum to more than 1); start the server with --logprobs-mode raw_logprobs"
        )
    return TokenChoices(listed)


def check_texts(choices: Sequence[TokenChoices], tokenizer: PreTrainedTokenizerFast, field: str) -> int:
    """Compare the server's text of every listed id with the tokenizer's own; return how many were compared.

    Parts of a character have no text of their own and are passed over, as is white space around a
    token, which servers strip or keep. Raises ModelError naming the first id whose texts differ, or
    when the server tells no texts.
    """
    seen: dict[int, str] = {}
    for choice in choices:
        for token, (_, text) in choice.listed.items():
            if text is not None and _UNDECODABLE not in text:
                seen.setdefault(token, text)
    known = {token: text for token, text in seen.items() if token < len(tokenizer)}
    compared = 0
    for token, text in sorted(known.items()):
        ours = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert isinstance(ours, str)
        if _UNDECODABLE in ours:
            continue
        compared += 1
        if ours.strip() != text.strip():
            raise ModelError(
                f"{field}: id {token} is {text!r} for the server and {ours!r} for the tokenizer of teacher.path; they are "
                "not of one vocabulary. Name the tokenizer of the served model as teacher.path"
            )
    if not compared:
        raise ModelError(
            f"{field}: the server tells no text of its tokens, so whether its ids are ours cannot be checked; start it "
            "with its tokenizer (without --skip-tokenizer-init)"
        )
    return compared


def missing_choices(
    choices: Sequence[TokenChoices], document: Document, *, num_logprobs: int, k: int, vocab_size: int
) -> int:
    """Return how many more than ``num_logprobs`` ids to ask for, so that each target has k below ``vocab_size``.

    A head may have rows beyond the tokenizer's ids, and a server may list them. The id that stands in
    the document is listed besides, whatever its rank, and says nothing about those between.
    """
    wanted = min(k, vocab_size)
    tops = (choice.likeliest[:num_logprobs] for choice in _at_targets(choices, document))
    return max((wanted - sum(token < vocab_size for token in top) for top in tops), default=0)


def score_document(choices: Sequence[TokenChoices], document: Document, k: int, vocab_size: int) -> ScoredDocument:
    """Keep the min(k, V*) likeliest ids below V* of each target, and the label's NLL.

    Mass on ids at or above V* is shared among all others in proportion (methods.md section 4), the label included.
    ``missing_choices`` must be 0.
    """
    kept = min(k, vocab_size)
    ids, log_p, nll = [], [], []
    labels = document.input_ids[document.loss_mask].tolist()
    for choice, label in zip(_at_targets(choices, document), labels, strict=True):
        foreign = math.fsum(math.exp(p) for token, (p, _) in choice.listed.items() if token >= vocab_size)
        shift = math.log1p(-foreign) if foreign < 1 else 0.0
        chosen = [token for token in choice.likeliest if token < vocab_size][:kept]
        ids.append(chosen)
        log_p.append([choice.listed[token][0] - shift for token in chosen])
        nll.append(shift - choice.listed[label][0])
    return ScoredDocument(
        torch.tensor(ids, dtype=torch.int64).view(len(labels), kept),
        torch.tensor(log_p, dtype=torch.float64).view(len(labels), kept),
        torch.tensor(nll, dtype=torch.float32),
    )


def label_nll(choices: Sequence[TokenChoices], document: Document) -> Tensor:
    """Return the NLL of a document's targets in nats, float32 [n]."""
    labels = document.input_ids[document.loss_mask].tolist()
    found = [-c.listed[label][0] for c, label in zip(_at_targets(choices, document), labels, strict=True)]
    return torch.tensor(found, dtype=torch.float32)


def _at_targets(choices: Sequence[TokenChoices], document: Document) -> list[TokenChoices]:
    """The entries of the document's targets; ``choices`` begins at token 1, and token 0 is no target."""
    return [choice for choice, is_target in zip(choices, document.loss_mask[1:].tolist(), strict=True) if is_target]
