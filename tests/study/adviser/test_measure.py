from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.data.dataset import load_dataset
from stillhouse.models.head import split_model
from stillhouse.recipe import DataConfig, EvaluationConfig, SourceConfig
from stillhouse.study.adviser.evidence import Measurement
from stillhouse.study.adviser.measure import measure_pair, teacher_confidence
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Projection

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


def logits_of(rows: list[list[float]]) -> Projection:
    """A head of unit weights, so that the hidden states are the logits."""
    hidden = torch.tensor(rows)
    return Projection(hidden, torch.eye(hidden.shape[1]))


@pytest.mark.parametrize("chunk", [1, 5])
def test_accuracy_and_entropy_by_hand(chunk: int) -> None:
    # Uniform over two ids: ln 2. p = (3/4, 1/4): 2 ln 2 - 3/4 ln 3. Certain: 0.
    rows = [[0.0, 0.0, -1e4], [math.log(3), 0.0, -1e4], [0.0, 0.0, 100.0]]
    labels: Tensor = torch.tensor([1, 0, 0])
    correct, entropy = teacher_confidence(logits_of(rows), labels, chunk=chunk)
    assert correct.tolist() == [0.0, 1.0, 0.0]
    wanted = [math.log(2), 2 * math.log(2) - 0.75 * math.log(3), 0.0]
    assert entropy.tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_model_agrees_with_itself(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, chat_jsonl: Path
) -> None:
    config = DataConfig(train=(SourceConfig(path=str(chat_jsonl)),), validation_fraction=0.3)
    data = load_dataset(config, tiny_tokenizer, seed=0, base_dir=Path(), tokenizer_hash="x", test=EvaluationConfig())
    teacher = LiveTeacher(tiny_model, vocabulary_map=None, vocab_size=len(tiny_tokenizer))
    found = measure_pair(
        split_model(tiny_model),
        teacher,
        data.test.documents,
        end_of_turn_ids=frozenset(),
        micro_batch_tokens=512,
        device="cpu",
    )
    assert set(found.domains) == {"math", "greetings", "spelling"}
    for domain in found.domains.values():
        assert domain.teacher_nll == pytest.approx(domain.student_nll)
        assert (domain.agreement, domain.forward_kl) == (1.0, pytest.approx(0.0, abs=1e-6))
        assert 0 < domain.teacher_entropy <= math.log(len(tiny_tokenizer))
    assert Measurement.from_json(found.to_json()) == found
    assert found.macro("teacher_nll") == pytest.approx(sum(d.teacher_nll for d in found.domains.values()) / 3)
