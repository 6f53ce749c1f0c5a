"""Stillhouse as a contestant: the models and rows that every contestant reads, and our training step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _floor import head_products
from _measure import (
    STUDENT_FOLDER,
    TEACHER_FOLDER,
    Job,
    RowBatch,
    StepClock,
    TokenRow,
    num_tokens,
    peak_rss_bytes,
    read_batches,
    write_batches,
)
from _models import as_batch, folder_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stillhouse.data.batching import group_by_length
from stillhouse.data.chat import ChatFormat
from stillhouse.data.document import UID_BYTES, Document, DocumentSet, document_uid
from stillhouse.data.rows import Message
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.models.head import split_model
from stillhouse.models.load import load_model, load_tokenizer
from stillhouse.models.save import save_model
from stillhouse.models.shrink.build import build_student
from stillhouse.models.tokenizers import tokenizer_hash
from stillhouse.randomness import numpy_generator
from stillhouse.recipe import (
    ConvexMixing,
    DepthConfig,
    KDObjective,
    ModelConfig,
    OptimisationConfig,
    PrunedStudent,
    SFTObjective,
)
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.targets.capture import CaptureSettings, capture
from stillhouse.targets.codec import Sampled
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Projection
from stillhouse.training.distributed import World
from stillhouse.training.precision import MasterWeights
from stillhouse.training.step import TrainStep
from stillhouse.training.student import DistillationModule

MAX_TOKENS = 512
MICRO_BATCH_TOKENS = 1024
"""Ours holds so many padded tokens at a time, as `optimisation.micro_batch_tokens` sets it; the gradient of
the step is the same. TRL has no token budget: its way to hold less is to accumulate over fewer rows."""
HEAD_TURNS = 5
CACHE_FOLDER = "targets"
BENCHMARK_TOKENIZER = "the teacher's"
"""Stands for a tokenizer's hash in the documents' ids: there is one tokenizer here."""
KD = KDObjective(type="kd", mixing=ConvexMixing(kd_weight=1.0))
"""Forward KL alone, because TRL's loss has no cross-entropy; ours is measured all the same."""


def prepare(teacher: str, data: Path, work: Path, *, layers: int, rows: int, steps: int) -> None:
    """Write the teacher, its student of ``layers`` evenly spaced layers, and the batches under ``work``.

    ``data`` is a JSONL file with messages; its rows whose source is gsm8k are used.
    """
    config = ModelConfig(path=teacher)
    model = load_model(config, dtype=torch.float32, base_dir=Path.cwd())
    tokenizer = load_tokenizer(config, base_dir=Path.cwd())
    save_model(model, tokenizer, work / TEACHER_FOLDER)
    batches = gsm8k_batches(data, tokenizer, rows=rows, steps=steps)
    write_batches(batches, work)
    documents = [
        Document(np.array(row.input_ids, np.int32), np.array(row.loss_mask), 0, bytes(UID_BYTES)) for row in batches[0]
    ]
    calibration = DocumentSet.build(documents, range(len(documents)), ("math",), tokenizer_hash(tokenizer))
    pruned = PrunedStudent(type="pruned", depth=DepthConfig(layers=layers, method="even"))
    student = build_student(model, pruned, documents=calibration, tokenizer=tokenizer, seed=0)
    save_model(student.model, student.tokenizer, work / STUDENT_FOLDER)


def gsm8k_batches(data: Path, tokenizer: PreTrainedTokenizerFast, *, rows: int, steps: int) -> list[RowBatch]:
    """Encode ``steps`` batches of ``rows`` GSM8K chats from a JSONL file, in a seeded order.

    Raises SystemExit when the file holds too few of them.
    """
    lines = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    chats = [line["messages"] for line in lines if line["source"] == "gsm8k"]
    if len(chats) < rows * steps:
        raise SystemExit(f"{data}: {len(chats)} GSM8K rows, {rows * steps} needed; ask for fewer steps")
    order = numpy_generator(0, "benchmark rows").permutation(len(chats))[: rows * steps]
    chat = ChatFormat(tokenizer)
    encoded = []
    for index in order:
        ids, mask = chat.encode([Message(**message) for message in chats[index]])
        encoded.append(TokenRow(ids[:MAX_TOKENS].tolist(), mask[:MAX_TOKENS].tolist()))
    return [encoded[start : start + rows] for start in range(0, len(encoded), rows)]


def capture_batches(work: Path, chunk: int) -> None:
    """Score the stored batches with the teacher into a cache under ``work``, before anything is timed."""
    documents = _documents(read_batches(work))
    model = folder_model(work / TEACHER_FOLDER, torch.bfloat16)
    vocab_size = int(model.config.get_text_config().vocab_size)
    identity = CacheIdentity("teacher", documents.tokenizer_hash, Sampled(draws=50), 1.0, vocab_size, 0)
    settings = CaptureSettings(micro_batch_tokens=MICRO_BATCH_TOKENS, chunk=chunk)
    cache = TargetCache.open_or_create(work / CACHE_FOLDER, identity)
    capture(LiveTeacher(model, vocabulary_map=None, vocab_size=vocab_size), documents, cache, settings)


def _documents(batches: Sequence[RowBatch]) -> DocumentSet:
    """All rows of all batches as documents, in order."""
    made = []
    for row in (row for batch in batches for row in batch):
        ids, mask = np.array(row.input_ids, np.int32), np.array(row.loss_mask, np.bool_)
        made.append(Document(ids, mask, 0, document_uid(ids, mask, BENCHMARK_TOKENIZER)))
    return DocumentSet.build(made, range(len(made)), ("math",), BENCHMARK_TOKENIZER)


def measure_ours(job: Job) -> dict[str, Any]:
    """Train with our step over the stored batches; ``ours-kd``, ``ours-cached`` or ``ours-sft``.

    ``bfloat16`` means float32 master weights and optimizer state with bfloat16 compute.
    """
    dtype = getattr(torch, job.dtype)
    cached = job.contestant == "ours-cached"
    kd = job.contestant == "ours-kd" or cached
    batches = read_batches(job.work)
    student = folder_model(job.work / STUDENT_FOLDER, torch.float32).train()
    vocab_size = student.get_input_embeddings().weight.shape[0]
    teacher: LiveTeacher | CachedTeacher | None = None
    if cached:
        teacher = CachedTeacher(TargetCache.open(job.work / CACHE_FOLDER), _documents(batches))
    elif kd:
        teacher_model = folder_model(job.work / TEACHER_FOLDER, dtype)
        teacher = LiveTeacher(teacher_model, vocabulary_map=None, vocab_size=vocab_size)
    module = DistillationModule(student, chunk=job.chunk, compiled=True)
    step = TrainStep(
        module,
        MasterWeights(module, dtype),
        teacher=teacher,
        terms=ObjectiveTerms.from_config(KD if kd else SFTObjective(type="sft"), vocab_size),
        config=OptimisationConfig(head_chunk=job.chunk),
        domains=("math",),
        world=World(0, 1, torch.device("cpu")),
    )
    losses = []
    clock = StepClock(job.warmup)
    clock.start()
    for number, rows in enumerate(batches):
        first = sum(len(batch) for batch in batches[:number])
        micro_batches = [as_batch([rows[i] for i in g], [first + i for i in g]) for g in _micro_batches(rows)]
        targets = sum(int(batch.loss_mask.sum()) for batch in micro_batches)
        losses.append(step.run(micro_batches, targets, learning_rate=1e-4).loss)
        clock.step_done()
    return {**clock.result([num_tokens(rows) for rows in batches]), "mean_loss": sum(losses) / len(losses)}


def _micro_batches(rows: RowBatch) -> list[list[int]]:
    """Cut a step as the loop does: rows of like length together, under a budget of padded tokens."""
    return group_by_length([len(row.input_ids) for row in rows], MICRO_BATCH_TOKENS)


def fused_kd(student: Projection, teacher: Projection, labels: Tensor, weight_gradient: Tensor, chunk: int) -> None:
    """Run the fused objective alone: values, and both gradients (``weight_gradient`` [V, H] is added to)."""
    hidden = student.hidden.detach().requires_grad_()
    weight = student.weight.detach().requires_grad_()
    with torch.enable_grad():
        output = fused_objective(
            Projection(hidden, weight, student.bias, student.scale, student.softcap),
            labels,
            teacher,
            ObjectiveTerms.from_config(KD, len(student.weight)),
            normaliser=float(len(labels)),
            chunk=chunk,
            compiled=True,
            weight_grad_accumulator=weight_gradient,
        )
        output.loss.backward()  # type: ignore[no-untyped-call]


def measure_head(job: Job) -> dict[str, Any]:
    """Our fused objective beside its four products on the targets of one batch, taken in turns."""
    dtype = getattr(torch, job.dtype)
    batch = as_batch(read_batches(job.work)[0])
    with torch.no_grad():
        parts = [split_model(folder_model(job.work / folder, dtype)) for folder in (STUDENT_FOLDER, TEACHER_FOLDER)]
        student, teacher = (part.projection(part.hidden(batch)) for part in parts)
    weight_gradient = torch.zeros(student.weight.shape)
    contestants: dict[str, Callable[[], object]] = {
        "fused": lambda: fused_kd(student, teacher, batch.labels, weight_gradient, job.chunk),
        "products": lambda: head_products(student, teacher, weight_gradient, job.chunk),
    }
    clocks = {name: StepClock(job.warmup) for name in contestants}
    with torch.no_grad():
        for _ in range(job.warmup + HEAD_TURNS):
            for name, contestant in contestants.items():
                clocks[name].start()
                contestant()
                clocks[name].step_done()
    counts = [len(batch.labels)] * (job.warmup + HEAD_TURNS)
    results = {name: clock.result(counts) for name, clock in clocks.items()}
    return {
        "tokens_per_second": results["fused"]["tokens_per_second"],
        "products_tokens_per_second": results["products"]["tokens_per_second"],
        "peak_rss_gib": peak_rss_bytes() / 2**30,
    }
