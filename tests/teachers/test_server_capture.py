"""Targets captured from a server, against those of the same model captured here, and against dense arithmetic."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import fake_server
from fake_server import FakeServer, serving
from stillhouse.data.document import Document, DocumentSet, document_uid
from stillhouse.divergence.objective import ObjectiveTerms
from stillhouse.divergence.sparse import sparse_objective
from stillhouse.errors import DataError, ModelError, RecipeError, ServerError, StillhouseError
from stillhouse.models.tokenizers import tokenizer_hash, vocabulary_size
from stillhouse.recipe import ConvexMixing, KDObjective, ServerConfig
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureProgress, CaptureSettings, capture
from stillhouse.targets.codec import Codec, Sampled, TopK, TopKGhost
from stillhouse.targets.manifest import CacheIdentity
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.protocol import Projection
from stillhouse.teachers.server_capture import CHECKED_DOCUMENTS, capture_from_server, served_codec
from stillhouse.teachers.server_client import Backoff, ServerClient

CODEC = TopKGhost(k=6, value_bits=16, entropy=False)
QUICK = Backoff(initial_seconds=0.01, longest_seconds=0.05, jitter_seconds=0.01)


@pytest.fixture
def server(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[FakeServer]:
    with torch.no_grad():  # random weights of this size predict nearly evenly; sharper ones are a teacher's
        tiny_model.model.norm.weight *= 12
    with serving(tiny_model, tiny_tokenizer) as fake:
        yield fake


@pytest.fixture
def documents(tiny_tokenizer: PreTrainedTokenizerFast) -> DocumentSet:
    return documents_of(tiny_tokenizer, 14)


def documents_of(tokenizer: PreTrainedTokenizerFast, count: int) -> DocumentSet:
    """Random ids (none special: padding has a zero embedding); about two thirds of them are targets."""
    rng, name = np.random.default_rng(0), tokenizer_hash(tokenizer)
    found = []
    for _ in range(count):
        ids = rng.integers(3, len(tokenizer), int(rng.integers(3, 16))).astype(np.int32)
        mask = rng.random(len(ids)) < 0.66
        mask[0], mask[-1] = False, True
        found.append(Document(ids, mask, 0, document_uid(ids, mask, name)))
    return DocumentSet.build(found, range(count), ["all"], name)


def client_of(server: FakeServer, **changes: Any) -> ServerClient:
    config = {"url": server.url, "model": "demo", "timeout_seconds": 5.0, "max_retries": 2, **changes}
    return ServerClient(ServerConfig.model_validate(config), backoff=QUICK)


def identity_of(documents: DocumentSet, vocab_size: int, codec: Codec = CODEC, **changes: Any) -> CacheIdentity:
    values: dict[str, Any] = {
        "teacher": "server:demo:tiny",
        "tokenizer": documents.tokenizer_hash,
        "codec": codec,
        "temperature": 1.0,
        "vocab_size": vocab_size,
        "seed": 0,
        **changes,
    }
    return CacheIdentity(**values)


def fill(
    server: FakeServer, documents: DocumentSet, folder: Path, **changes: Any
) -> tuple[TargetCache, CaptureProgress]:
    """Capture from the server into ``folder``; ``changes`` are those of the client, the identity, or ``progress``."""
    progress = changes.pop("progress", None)
    of_identity = {name: changes.pop(name) for name in ("codec", "temperature", "vocab_size") if name in changes}
    vocab_size = of_identity.pop("vocab_size", vocabulary_size(server.tokenizer))
    cache = TargetCache.open_or_create(folder, identity_of(documents, vocab_size, **of_identity))
    with client_of(server, **changes) as client:
        done = capture_from_server(client, client.describe(), documents, cache, server.tokenizer, progress=progress)
    return cache, done


def local(server: FakeServer, documents: DocumentSet, folder: Path) -> TargetCache:
    """The same targets by our own forward."""
    vocab_size = vocabulary_size(server.tokenizer)
    cache = TargetCache.open_or_create(folder, identity_of(documents, vocab_size))
    teacher = LiveTeacher(server.model, vocabulary_map=None, vocab_size=vocab_size)
    capture(teacher, documents, cache, CaptureSettings(micro_batch_tokens=64, compiled=False))
    return cache


def dense(server: FakeServer, documents: DocumentSet) -> Tensor:
    """The teacher's log-probabilities at the targets, float64 [N, V], by a plain forward of each document."""
    rows = []
    for document in documents:
        log_p = server.log_probs(document.input_ids.tolist())[:-1]
        rows.append(log_p[torch.from_numpy(document.loss_mask[1:])])
    return torch.cat(rows)


def ghost_loss(teacher: Tensor, student: Tensor, k: int) -> Tensor:
    """KL on k + 1 buckets (methods of section 4), float64 [N], from log-probabilities [N, V]."""
    kept, ids = teacher.topk(k, dim=1)
    other = student.gather(1, ids)
    rest_p, rest_q = 1 - kept.exp().sum(1), 1 - other.exp().sum(1)
    return (kept.exp() * (kept - other)).sum(1) + rest_p * (rest_p / rest_q).log()


# --- values -----------------------------------------------------------------------------------


def test_the_cache_is_that_of_a_local_capture(server: FakeServer, documents: DocumentSet, tmp_path: Path) -> None:
    served, done = fill(server, documents, tmp_path / "served")
    here = local(server, documents, tmp_path / "local")
    theirs, ours = served.read(documents.uids), here.read(documents.uids)
    theirs.check()
    assert torch.equal(theirs.ids, ours.ids)
    # One step of the 16-bit code on either side, where the float32 forward rounds otherwise.
    torch.testing.assert_close(theirs.weight, ours.weight, rtol=2e-3, atol=1e-6)
    assert theirs.teacher_nll is not None
    assert ours.teacher_nll is not None
    torch.testing.assert_close(theirs.teacher_nll, ours.teacher_nll, rtol=2e-3, atol=1e-4)
    assert theirs.teacher_entropy is None
    assert (done.documents, done.total_documents) == (14, 14)
    assert done.targets == int(documents.num_targets.sum())


def test_the_loss_is_that_of_the_dense_distribution_in_k_and_one_buckets(
    server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    served, _ = fill(server, documents, tmp_path / "served")
    here = local(server, documents, tmp_path / "local")
    vocab_size = vocabulary_size(server.tokenizer)
    teacher = dense(server, documents)[:, :vocab_size]
    labels = torch.from_numpy(documents.tokens[documents.mask].astype(np.int64))
    g = torch.Generator().manual_seed(1)
    head = torch.randn(vocab_size, 8, generator=g)
    hidden = torch.randn(len(labels), 8, generator=g)
    terms = ObjectiveTerms.from_config(KDObjective(type="kd", mixing=ConvexMixing(kd_weight=1.0)), vocab_size)

    def loss(cache: TargetCache) -> Tensor:
        output = sparse_objective(
            Projection(hidden, head),
            labels,
            cache.read(documents.uids),
            terms,
            normaliser=1.0,
            chunk=16,
            compiled=False,
        )
        return output.kd.double()

    student = (hidden.double() @ head.double().T).log_softmax(-1)
    torch.testing.assert_close(loss(served), ghost_loss(teacher, student, 6), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loss(served), loss(here), rtol=1e-3, atol=1e-4)


def test_ids_beyond_the_tokenizer_are_left_out_and_their_mass_shared(
    server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    """A head with padding rows: the server lists them, and is asked for more until k real ids are there."""
    vocab_size = 300
    small = replace(documents, tokens=(3 + documents.tokens % (vocab_size - 3)).astype(np.int32))
    cache, _ = fill(server, small, tmp_path, vocab_size=vocab_size)
    asked = [r["prompt_logprobs"] for _, r in server.requests]
    assert max(asked) > 6
    p = dense(server, small)[:, :vocab_size].softmax(-1)  # renormalised over the real ids
    found = cache.read(small.uids)
    assert torch.equal(found.ids, p.topk(6).indices)
    # Padding ids below the k-th likeliest are not listed, so their mass stays in the last bucket.
    listed = found.weight.double() / p.gather(1, found.ids)
    assert (listed < 1.002).all()
    assert (listed > 0.8).all()


def test_k_beyond_the_vocabulary_is_the_whole_distribution(
    server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    server.max_logprobs = 500
    some = documents.select(range(3))
    cache, _ = fill(server, some, tmp_path, codec=TopKGhost(k=1000, value_bits=16, entropy=False))
    found, p = cache.read(some.uids), dense(server, some).exp()
    assert found.ids.shape[1] == vocabulary_size(server.tokenizer)
    torch.testing.assert_close(found.weight.double(), p.gather(1, found.ids), rtol=2e-3, atol=2e-7)


# --- going on ---------------------------------------------------------------------------------


def test_only_what_is_missing_is_asked_for(server: FakeServer, documents: DocumentSet, tmp_path: Path) -> None:
    seen: list[CaptureProgress] = []
    fill(server, documents.select(range(9)), tmp_path, progress=seen.append)
    assert [p.documents for p in seen] == list(range(1, 10))
    server.requests.clear()
    _, done = fill(server, documents, tmp_path)
    assert done.total_documents == 5
    known = [r for _, r in server.requests if r["prompt_logprobs"] == 0]
    assert len(known) == 3  # asked again, to see whether it is the same teacher
    assert len(server.requests) == 3 + 5
    server.requests.clear()
    assert fill(server, documents, tmp_path)[1].total_documents == 0


def test_an_error_in_the_middle_keeps_what_was_answered(
    server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    server.faults.extend([lambda good: None] * 8)
    server.faults.append(fake_server.status(400, "broken"))
    with pytest.raises(ServerError, match="broken"):
        fill(server, documents, tmp_path, concurrency=1)
    assert TargetCache.open(tmp_path).num_documents == 8
    cache, done = fill(server, documents, tmp_path)
    assert done.documents == 6
    cache.require(documents)


@pytest.mark.parametrize(
    "fault",
    [fake_server.status(429, retry_after="0.05"), fake_server.status(500), fake_server.cut, fake_server.body(b"{oops")],
)
def test_faults_that_pass_change_nothing(
    server: FakeServer, documents: DocumentSet, tmp_path: Path, fault: fake_server.Fault
) -> None:
    server.faults.extend([fault, lambda good: None, fault])
    cache, _ = fill(server, documents, tmp_path / "served")
    ours = local(server, documents, tmp_path / "local").read(documents.uids)
    assert torch.equal(cache.read(documents.uids).ids, ours.ids)


KILLED = """
import sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from stillhouse.recipe import ServerConfig
from stillhouse.targets.cache import TargetCache
from stillhouse.teachers.server_capture import capture_from_server
from stillhouse.teachers.server_client import ServerClient
from test_server_capture import documents_of, identity_of
folder, url, model = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
documents = documents_of(tokenizer, 40)
cache = TargetCache.open_or_create(folder, identity_of(documents, len(tokenizer)))
with ServerClient(ServerConfig(url=url, model="demo", concurrency=2)) as client:
    capture_from_server(client, client.describe(), documents, cache, tokenizer, shard_seconds=0.0)
"""


def test_a_killed_capture_goes_on(server: FakeServer, tiny_model_dir: Path, tmp_path: Path) -> None:
    server.delay_seconds = 0.05
    folder, here = tmp_path / "cache", Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(folder), server.url, str(tiny_model_dir)]
    paths = os.pathsep.join([str(here), str(here.parent)])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 60
    while len(list(folder.glob("shards/*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.delay_seconds = 0.0
    documents = documents_of(server.tokenizer, 40)
    kept = TargetCache.open(folder).num_documents
    assert 5 <= kept < 40
    cache, done = fill(server, documents, folder)
    assert done.documents == 40 - kept
    ours = local(server, documents, tmp_path / "local").read(documents.uids)
    assert torch.equal(cache.read(documents.uids).ids, ours.ids)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Sampled(), TopK(k=4)])
def test_other_codecs_are_refused_with_the_flag_to_raise(codec: Codec) -> None:
    with pytest.raises(RecipeError, match=rf"codec\.type={codec.name}: .*topk_ghost.*--max-logprobs"):
        served_codec(codec)


def test_another_temperature_is_refused(server: FakeServer, documents: DocumentSet, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.cache\.temperature=2\.0: .*temperature 1 alone"):
        fill(server, documents, tmp_path, temperature=2.0)


def test_a_k_above_the_limit_names_the_flag(server: FakeServer, documents: DocumentSet, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"codec\.k: .*max allowed: 20.*--max-logprobs"):
        fill(server, documents, tmp_path, codec=TopKGhost(k=21, entropy=False))


def test_long_documents_are_named_before_anything_is_asked(
    server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    server.max_model_len = 10
    too_long = int((documents.lengths > 9).sum())
    row, longest = int(np.flatnonzero(documents.lengths > 9)[0]), int(documents.lengths.max())
    expected = (
        rf"{too_long} of 14 documents are longer than the 9 tokens .* row {row} of .*max_seq_len=9, or .*"
        rf"--max-model-len {longest + 1}"
    )
    with pytest.raises(DataError, match=expected):
        fill(server, documents, tmp_path)
    assert not server.requests
    server.max_model_len = longest + 1  # just enough
    fill(server, documents, tmp_path)


def edit(change: Any) -> fake_server.Fault:
    """A good answer whose prompt_logprobs are changed in place."""

    def fault(good: Any) -> Any:
        choice = good["choices"][0]
        changed = change(choice["prompt_logprobs"])
        if changed is not None:
            choice["prompt_logprobs"] = changed
        return good

    return fault


def other_texts(listed: Any) -> None:
    for entry in filter(None, listed):
        for token, values in entry.items():
            values["decoded_token"] = f"x{token}"


def without_texts(listed: Any) -> None:
    for entry in filter(None, listed):
        for values in entry.values():
            values["decoded_token"] = None


def raw_logits(listed: Any) -> None:
    for entry in filter(None, listed):
        for values in entry.values():
            values["logprob"] += 12.0


WRONG: dict[str, tuple[fake_server.Fault, type[StillhouseError], str]] = {
    "another vocabulary": (
        edit(other_texts),
        ModelError,
        r"id \d+ is 'x\d+' for the server and '.*' for the tokenizer",
    ),
    "no texts": (edit(without_texts), ModelError, "--skip-tokenizer-init"),
    "a token more": (edit(lambda listed: [None, *listed]), ModelError, r"read \d+ tokens where \d+ were sent"),
    "other tokens": (
        edit(lambda listed: [None, *({str(int(t) + 1000): v for t, v in e.items()} for e in listed[1:])]),
        ModelError,
        r"token 1 was sent as id \d+, and the server scores other ids there",
    ),
    "no prompt_logprobs": (
        lambda good: {"choices": [{"index": 0, "text": ""}]},
        ServerError,
        "gives no prompt_logprobs",
    ),
    "no choices": (lambda good: {"hello": 1}, ServerError, "answers without choices"),
    "logits": (edit(raw_logits), ServerError, "--logprobs-mode raw_logprobs"),
    "words for numbers": (
        edit(lambda listed: [None, *({"1": {"logprob": "low"}} for _ in listed[1:])]),
        ServerError,
        "no log-probabilities by id",
    ),
    "fewer than asked for": (
        edit(lambda listed: [None, *(dict(list(e.items())[:2]) for e in listed[1:])]),
        ServerError,
        r"codec\.k: asked for 6 ids, the server lists 2 for token 1; .*--max-logprobs",
    ),
    "no tables": (edit(lambda listed: [None, *(7 for _ in listed[1:])]), ServerError, "no table of ids"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_answer_for_our_tokens_is_refused_and_nothing_kept(
    name: str, server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    fault, kind, said = WRONG[name]
    server.always = fault
    with pytest.raises(kind, match=said):
        fill(server, documents, tmp_path)
    assert TargetCache.open(tmp_path).num_documents == 0
    # An answer without choices may be a gateway's trouble, so that one is asked for again.
    assert len(server.requests) <= CHECKED_DOCUMENTS * (3 if name == "no choices" else 1)


def test_another_model_under_the_same_name_is_noticed(
    server: FakeServer, documents: DocumentSet, tmp_path: Path
) -> None:
    fill(server, documents.select(range(9)), tmp_path)
    with torch.no_grad():
        server.model.model.norm.weight *= 0.3
    with pytest.raises(ModelError, match=r"answers otherwise than when the cache .* differs by \d\.\d+ nats"):
        fill(server, documents, tmp_path)


def test_the_key_is_in_no_file(
    server: FakeServer, documents: DocumentSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-secret-of-the-test"
    monkeypatch.setenv("SERVER_KEY", key)
    server.key = key
    fill(server, documents, tmp_path, api_key_env="SERVER_KEY")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(key.encode() not in path.read_bytes() for path in files)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "SERVER_KEY" not in str(manifest)
    assert server.url not in str(manifest)
