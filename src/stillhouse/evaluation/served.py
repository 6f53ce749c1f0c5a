"""Measure a served model on the same rows as the others: it is asked for what a local one would compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stillhouse.data.batch import Batch
from stillhouse.data.document import Document
from stillhouse.evaluation.assess import Assessment, EvaluationSettings, joined_items
from stillhouse.evaluation.held_out import HeldOut, prompt_encoder, stop_ids
from stillhouse.evaluation.metrics.choices import ChoiceOutcome, choice_calibration, score_choices
from stillhouse.evaluation.nll import measure_nll
from stillhouse.evaluation.scores import item_scores
from stillhouse.evaluation.suite import Evaluation, Sample, summarised
from stillhouse.teachers.server_client import Request, ServerClient
from stillhouse.teachers.server_generation import continue_prompts
from stillhouse.teachers.server_logprobs import check_texts, label_nll, prompt_request, read_choices

if TYPE_CHECKING:
    from stillhouse.data.chat import ChatFormat


class ServedScorer:
    """The NLL of a padded batch's N targets, float32 [N], as a ``TokenScorer``; the whole batch is asked for at once.

    The texts of the first batch's tokens are compared with the tokenizer's. Raises as ``read_choices``
    and ``check_texts`` do.
    """

    def __init__(self, client: ServerClient, tokenizer: PreTrainedTokenizerFast) -> None:
        self._client, self._tokenizer = client, tokenizer
        self._checked = False

    def __call__(self, batch: Batch) -> Tensor:
        assert not batch.packed
        documents = [
            document_of(ids, mask)
            for ids, mask in zip(batch.input_ids.cpu(), batch.loss_mask.cpu(), strict=True)
            if mask.any()
        ]
        # One listed id where the texts are compared, the label alone else.
        k = 0 if self._checked else 1
        requests = ((i, Request("completions", prompt_request(d, k))) for i, d in enumerate(documents))
        found: dict[int, Tensor] = {}
        for index, answer in self._client.stream(requests):
            choices = read_choices(answer, documents[index], k, self._client.field)
            if not self._checked:
                check_texts(choices, self._tokenizer, self._client.field)
                self._checked = True
            found[index] = label_nll(choices, documents[index])
        return torch.cat([torch.zeros(0), *(found[i] for i in range(len(documents)))])


def document_of(ids: Tensor, mask: Tensor) -> Document:
    """Return one row of a padded batch without its padding and what follows the last target, ids [T], mask [T]."""
    length = int(mask.nonzero().max()) + 1
    return Document(ids[:length].to(torch.int32).numpy(), mask[:length].numpy(), 0, b"")


def evaluate_served(
    client: ServerClient,
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat | None,
    held_out: HeldOut,
    settings: EvaluationSettings,
) -> tuple[Evaluation, list[Sample]]:
    """Measure as :func:`stillhouse.evaluation.suite.evaluate_model` does, through requests.

    ``tokenizer`` made the documents and is the server's. Calibration by token (``token_ece``) is left out,
    since it needs whole distributions. Raises ServerError and ModelError as the requests do.
    """
    served = client.describe()
    score = ServedScorer(client, tokenizer)
    likelihood = measure_nll(
        score,
        held_out.documents,
        end_of_turn_ids=held_out.end_of_turn_ids,
        byte_counts=held_out.byte_counts,
        micro_batch_tokens=settings.micro_batch_tokens,
        device="cpu",
        process_group=settings.process_group,
    )
    outcomes: list[ChoiceOutcome] = []
    scores = {}
    if held_out.choices is not None and held_out.choices.questions:
        outcomes = score_choices(
            score,
            held_out.choices,
            micro_batch_tokens=settings.micro_batch_tokens,
            device="cpu",
            process_group=settings.process_group,
        )
        scores["multiple_choice_ece"] = choice_calibration(outcomes)
    encode, rows = prompt_encoder(tokenizer, chat_format), held_out.prompted
    texts = continue_prompts(
        client,
        served,
        [encode(row) for row in rows],
        max_new_tokens=settings.max_new_tokens,
        stop_ids=stop_ids(tokenizer, chat_format),
    )
    text_of = dict(zip(rows, texts, strict=True))
    items = joined_items(held_out, outcomes, text_of)
    return summarised(Assessment(likelihood, {**item_scores(items), **scores}, items, text_of), held_out)
