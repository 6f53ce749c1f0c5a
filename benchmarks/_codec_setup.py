"""What the sections of the codec benchmark share: codecs, teacher, student, documents, caches."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stillhouse.data.batch import Batch
from stillhouse.data.batching import make_micro_batches
from stillhouse.data.dataset import load_dataset
from stillhouse.data.document import DocumentSet
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint
from stillhouse.models.shrink.build import build_student
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import DataConfig, DepthConfig, EvaluationConfig, ModelConfig, PrunedStudent, SourceConfig
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureSettings, encode
from stillhouse.targets.codec import Codec, Sampled, TopK, TopKGhost
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import DenseTargets, Teacher

CODECS: tuple[Codec, ...] = (
    TopK(k=8),
    TopK(k=12),
    TopK(k=64),
    TopKGhost(k=8),
    TopKGhost(k=12, value_bits=6),
    TopKGhost(k=12),
    TopKGhost(k=12, value_bits=12),
    TopKGhost(k=64),
    Sampled(draws=50, method="independent"),
    Sampled(draws=25),
    Sampled(draws=50),
    Sampled(draws=100),
)
DISTILLKIT = {"distillkit-recommended": (128, 16, 6), "distillkit-budget": (50, 1, 3)}
"""Its two published settings: k, exact values, polynomial terms."""


def distillkit_bytes(vocab_size: int, *, k: int, exact: int, terms: int) -> float:
    """Return bytes a token of DistillKit's layout: bit-packed ids, ``exact`` bf16 values, fp32 polynomial terms."""
    return math.ceil(k * math.ceil(math.log2(vocab_size)) / 8) + 2 * exact + 4 * terms


def describe(codec: Codec) -> str:
    """A short name with the fields that differ between rows."""
    if isinstance(codec, Sampled):
        return f"sampled-{codec.draws}-{codec.method}"
    assert isinstance(codec, TopK)
    return f"{codec.name}-{codec.k}-{codec.value_bits}bit"


@dataclass(frozen=True)
class Setup:
    """What all codecs share."""

    teacher: LiveTeacher
    fingerprint: str
    student: torch.nn.Module
    documents: DocumentSet
    batches: list[Batch]
    vocab_size: int
    chunk: int
    micro_batch_tokens: int


def prepare(arguments: argparse.Namespace) -> Setup:
    """Load teacher and rows, and make the student (or load one that was trained)."""
    base, config = Path.cwd(), ModelConfig(path=arguments.teacher)
    model, tokenizer = load_model(config, dtype=torch.bfloat16, base_dir=base), load_tokenizer(config, base_dir=base)
    sources = tuple(
        SourceConfig(path=str(file), limit=arguments.rows_per_domain)
        for file in sorted(Path(arguments.data).glob("*/validation.jsonl"))
    )
    if not sources:
        raise SystemExit(f"{arguments.data}: no DOMAIN/validation.jsonl there")
    data = DataConfig(train=sources, max_seq_len=512)
    name = tokenizer_hash(tokenizer)
    dataset = load_dataset(data, tokenizer, seed=0, base_dir=base, tokenizer_hash=name, test=EvaluationConfig())
    documents = dataset.train.documents
    if arguments.student is None:
        pruned = PrunedStudent(type="pruned", depth=DepthConfig(layers=arguments.layers, method="block_influence"))
        student = build_student(model, pruned, documents=documents, tokenizer=tokenizer, seed=0).model
    else:
        student = load_model(ModelConfig(path=arguments.student), dtype=torch.bfloat16, base_dir=base)
    vocab_size, fingerprint = vocabulary_size(tokenizer), model_fingerprint(model)
    batches = make_micro_batches(
        documents, range(len(documents)), micro_batch_tokens=arguments.micro_batch_tokens, layout="padded", pad_id=0
    )
    teacher = LiveTeacher(model, vocabulary_map=None, vocab_size=vocab_size)
    return Setup(
        teacher,
        fingerprint,
        student.requires_grad_(False),
        documents,
        batches,
        vocab_size,
        arguments.chunk,
        arguments.micro_batch_tokens,
    )


class Remembered:
    """Answers for the given batches without running the teacher again for every codec."""

    def __init__(self, teacher: LiveTeacher, batches: Sequence[Batch]) -> None:
        self.num_parameters = teacher.num_parameters
        self._answers = {id(batch.document_ids): teacher.targets(batch) for batch in batches}

    def targets(self, batch: Batch, layers: Sequence[int] = ()) -> DenseTargets:
        """Return what the teacher said about this very batch."""
        assert not layers
        return self._answers[id(batch.document_ids)]


def make_cache(setup: Setup, teacher: Teacher, codec: Codec, folder: Path) -> TargetCache:
    """Encode all batches into one shard."""
    identity = CacheIdentity(
        teacher=setup.fingerprint,
        tokenizer=setup.documents.tokenizer_hash,
        codec=codec,
        temperature=1.0,
        vocab_size=setup.vocab_size,
        seed=0,
    )
    cache = TargetCache.open_or_create(folder, identity)
    settings = CaptureSettings(micro_batch_tokens=setup.micro_batch_tokens, chunk=setup.chunk)
    cache.add([r for batch in setup.batches for r in encode(teacher, batch, setup.documents, identity, settings)])
    return cache
