"""Chat templates: a conversation becomes token ids and a mask of what the assistant said.

Targets are the assistant's content and the end-of-turn token, and nothing after it: SmolLM2
writes a newline behind ``<|im_end|>``, and learning to predict it would only flatter the loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, cast

from jinja2 import TemplateError

from stillhouse.data.masking import Encoded, Span, SpanTokenizer, special_token_ids, special_token_pattern
from stillhouse.data.rows import Message
from stillhouse.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RejectionReason = Literal["bad_role_order", "special_token_in_content", "empty", "refused_by_template", "empty_targets"]

NEXT_ROLES = {
    "start": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.+?)\1\s*\)""")
TEMPLATE_DATE = date(2024, 7, 26)
"""Templates that print today's date (Llama 3.2) print this one, so that documents keep their ids tomorrow."""

PROBE = (Message("user", "question"), Message("assistant", "answer")) * 2


@dataclass(frozen=True)
class Rejection:
    """Why a conversation cannot be used; ``reason`` is counted, ``detail`` is for people."""

    reason: RejectionReason
    detail: str


def role_order_problem(messages: Sequence[Message]) -> str | None:
    """Return what is wrong with the order of roles, or None.

    A system turn may come first; then user and assistant alternate, tool results may stand
    between two assistant turns, and the last turn is the assistant's. (Templates accept anything.)
    """
    previous = "start"
    for number, message in enumerate(messages):
        if message.role not in NEXT_ROLES[previous]:
            allowed = " or ".join(sorted(NEXT_ROLES[previous]))
            return f"turn {number + 1} is {message.role!r} after {previous!r}; expected {allowed}"
        previous = message.role
    return None if previous == "assistant" else f"the last turn is {previous!r}; expected 'assistant'"


class ChatFormat:
    """Encodes conversations with one tokenizer and one chat template.

    Assistant spans come from ``{% generation %}`` markers where the template has them. Otherwise
    the template is rendered with a marker in place of every content, which shows the text that it
    puts around each turn; the real rendering must then be that text and the contents (perhaps
    trimmed), or the conversation is rejected.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str | None = None) -> None:
        """Use ``template`` (Jinja text), or the tokenizer's own.

        Raises:
            DataError: there is no template, it does not render, or it ends no assistant turn with
                a special token.
        """
        chosen = template if template is not None else tokenizer.chat_template
        if isinstance(chosen, dict):
            chosen = chosen.get("default")
        if not chosen:
            raise DataError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template; give one as data.chat_template (a Jinja"
                " file), or use prompt and completion columns, or raw text"
            )
        self._template: str = TODAY.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), chosen)
        self._name = "data.chat_template" if template is not None else f"the template of {tokenizer.name_or_path!r}"
        self._has_markers = GENERATION_MARKER.search(chosen) is not None
        self._special_tokens: dict[str, str] = tokenizer.special_tokens_map
        self._specials = special_token_pattern(tokenizer)
        self._spans = SpanTokenizer(tokenizer)
        self._surroundings: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.end_of_turn_ids: frozenset[int] = self._probe(frozenset(special_token_ids(tokenizer).values()))

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Return ids int32 [T] and loss mask bool [T] of one conversation.

        Raises:
            DataError: the conversation cannot be used.
        """
        (outcome,) = self.encode_batch([messages])
        if isinstance(outcome, Rejection):
            raise DataError(f"{outcome.reason}: {outcome.detail}")
        return outcome

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | Rejection]:
        """Return ids and mask of each conversation, or why it cannot be used; tokenizes all at once."""
        rendered = [self._render_checked(messages) for messages in conversations]
        usable = [r for r in rendered if not isinstance(r, Rejection)]
        encoded = iter(self._spans.encode([text for text, _ in usable], [spans for _, spans in usable]))
        return [r if isinstance(r, Rejection) else next(encoded) for r in rendered]

    def render_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids that stand before the last assistant turn's first target.

        These are exactly the tokens that training conditions on. A conversation that ends with
        another role gets the header of an assistant turn.

        Raises:
            DataError: the conversation cannot be used.
        """
        turns = messages[:-1] if messages and messages[-1].role == "assistant" else messages
        ids, mask = self.encode([*turns, Message("assistant", "answer")])
        last_target = len(mask) - 1 - int(mask[::-1].argmax())
        before = mask[: last_target + 1]
        start = len(before) - int((~before[::-1]).argmax())
        return [int(i) for i in ids[:start]]

    def _probe(self, special_ids: frozenset[int]) -> frozenset[int]:
        """Encode two turns to learn the end-of-turn ids, and to refuse a broken template before any row."""
        outcome = self.encode_batch([PROBE])[0]
        if isinstance(outcome, Rejection):
            raise DataError(f"{self._name} cannot be used: {outcome.detail}")
        ids, mask = outcome
        run_ends = mask.copy()
        run_ends[:-1] &= ~mask[1:]
        found = frozenset(int(i) for i in ids[run_ends]) & special_ids
        if not mask.any() or int(ids[mask][-1]) not in special_ids:
            raise DataError(
                f"{self._name} ends an assistant turn with no special token, so a model could never learn to stop;"
                " write one (for instance {{ eos_token }}) after the assistant's content"
            )
        return found

    def _render_checked(self, messages: Sequence[Message]) -> tuple[str, list[Span]] | Rejection:
        problem = role_order_problem(messages)
        if problem is not None:
            return Rejection("bad_role_order", problem)
        if not any(m.content.strip() for m in messages if m.role == "assistant"):
            return Rejection("empty", "no assistant turn has any content")
        for number, message in enumerate(messages):
            special = self._specials.search(message.content)
            if special:
                detail = f"turn {number + 1} ({message.role}) contains {special.group()!r}"
                return Rejection("special_token_in_content", detail)
        try:
            text, marked = self._render(messages)
            return text, self._marked_spans(text, marked) if self._has_markers else self._spans_between(messages, text)
        except (TemplateError, TypeError, _RenderingError) as error:  # TypeError: "a" + None in the template
            return Rejection("refused_by_template", f"{self._name}: {error}")

    def _render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        variables: dict[str, Any] = {**self._special_tokens}
        rendered = render_jinja_template(
            conversations=[[{"role": m.role, "content": m.content} for m in messages]],
            chat_template=self._template,
            return_assistant_tokens_mask=self._has_markers,
            **variables,
        )
        # Its hints are those of one conversation; it returns a list for each.
        texts, spans = cast("tuple[list[str], list[list[Span]]]", rendered)
        return texts[0], spans[0] if self._has_markers else []

    def _marked_spans(self, text: str, marked: Sequence[Span]) -> list[Span]:
        """Make each marked span end with its end-of-turn token: markers may stop before it or run past it."""
        nexts = [start for start, _ in marked[1:]] + [len(text)]
        spans = []
        for (start, end), following in zip(marked, nexts, strict=True):
            inside = [m.end() for m in self._specials.finditer(text, start, end)]
            if inside and not text[inside[-1] : end].strip():
                spans.append((start, inside[-1]))
            else:
                after = self._specials.search(text, end, following)
                spans.append((start, after.end() if after else end))
        return spans

    def _spans_between(self, messages: Sequence[Message], text: str) -> list[Span]:
        """Find each assistant content, and the first special token behind it, in the rendering."""
        around = self._learn_surroundings(messages)
        spans: list[Span] = []
        if not text.startswith(around[0]):
            raise _RenderingError("it writes another beginning for other contents")
        position = len(around[0])
        for number, (message, behind) in enumerate(zip(messages, around[1:], strict=True)):
            written = _as_written(message.content, behind, text, position)
            if written is None:
                raise _RenderingError(f"it changes the content of turn {number + 1} ({message.role!r})")
            end = position + len(written)
            if message.role == "assistant":
                stop = self._specials.search(behind)
                spans.append((position, end + stop.end() if stop else end))
            position = end + len(behind)
        if position != len(text):
            raise _RenderingError("it writes another end for other contents")
        return spans

    def _learn_surroundings(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Return the text before the first content, between contents, and behind the last, for these roles."""
        roles = tuple(m.role for m in messages)
        if roles not in self._surroundings:
            stand_ins = [f"Qx{number}xQ" for number in range(len(roles))]
            text, _ = self._render([Message(role, name) for role, name in zip(roles, stand_ins, strict=True)])
            around = re.split("|".join(stand_ins), text)
            if re.findall("|".join(stand_ins), text) != stand_ins:
                raise _RenderingError(
                    f"it does not write each content once and in order for the roles {', '.join(roles)}"
                )
            self._surroundings[roles] = tuple(around)
        return self._surroundings[roles]


class _RenderingError(Exception):
    """A rendering is not the template's surroundings and the contents."""


def _as_written(content: str, behind: str, text: str, position: int) -> str | None:
    """Return the form of ``content`` that stands at ``position`` with ``behind`` after it: as it is, or trimmed."""
    for form in (
        content,
        content.strip(),
        content.rstrip(),
        content.lstrip(),
        content.strip("\n"),
        content.rstrip("\n"),
        content.lstrip("\n"),
    ):
        if text.startswith(form + behind, position):
            return form
    return None
