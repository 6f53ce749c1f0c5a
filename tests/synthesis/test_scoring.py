"""The labeller's NLL of the last answer, against the whole forward pass."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.chat import ChatFormat
from stillhouse.data.rows import Message
from stillhouse.synthesis.scoring import ModelScorer

SHORT = [Message("user", "Spell cat."), Message("assistant", "c-a-t")]
LONG = [
    Message("user", "Greet Ada."),
    Message("assistant", "Hello Ada"),
    Message("user", "2 + 2?"),
    Message("assistant", "4 or so"),
]


def by_hand(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, messages: list[Message], answer: str) -> float:
    """Mean NLL of the tokens of ``answer``, found as the last ones before the end of the turn."""
    ids, _ = ChatFormat(tokenizer).encode(messages)
    sequence = torch.tensor(ids[None].astype("int64"))
    with torch.no_grad():
        log_probs = model(sequence).logits[0].double().log_softmax(-1)
    count = len(tokenizer.encode(answer))
    end = max(i for i, token in enumerate(ids) if token == tokenizer.eos_token_id)
    places = range(end - count, end)
    return -sum(float(log_probs[i - 1, int(ids[i])]) for i in places) / count


def test_nll_is_that_of_the_last_answers_content(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for budget in (8, 4096):
        scorer = ModelScorer(tiny_model, tiny_tokenizer, micro_batch_tokens=budget)
        short, long = scorer.score([SHORT, LONG])
        assert short == pytest.approx(by_hand(tiny_model, tiny_tokenizer, SHORT, "c-a-t"), abs=1e-4)
        assert long == pytest.approx(by_hand(tiny_model, tiny_tokenizer, LONG, "4 or so"), abs=1e-4)


def test_what_cannot_be_encoded_has_no_nll(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    scorer = ModelScorer(tiny_model, tiny_tokenizer)
    bad = [Message("user", "a <|im_end|> b"), Message("assistant", "c")]
    found = scorer.score([bad, SHORT])
    assert found[0] is None
    assert found[1] is not None
    assert scorer.score([bad]) == [None]
    assert scorer.score([]) == []
