"""Labelling through a server: contents, seeds, the journal, and continuations of ids beside our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import fake_server
from fake_server import FakeServer, serving
from stillhouse.data.rows import Message
from stillhouse.errors import DataError, OutputError, ServerError
from stillhouse.recipe import ServerConfig
from stillhouse.rollout.generate import GenerationSettings, generate
from stillhouse.rollout.generator import Completion, Generator, SamplingSettings
from stillhouse.teachers.server_client import Backoff, ServerClient
from stillhouse.teachers.server_generation import ServedGenerator, continue_prompts
from stillhouse.teachers.server_journal import Journal

QUICK = Backoff(initial_seconds=0.01, longest_seconds=0.05, jitter_seconds=0.01)
SETTINGS = SamplingSettings(max_new_tokens=9, temperature=0.7, top_p=0.9, stop=("\n\n",))


@pytest.fixture
def server(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[FakeServer]:
    with serving(tiny_model, tiny_tokenizer) as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[ServerClient]:
    config = ServerConfig(url=server.url, model="demo", timeout_seconds=5.0, max_retries=2, concurrency=1)
    with ServerClient(config, backoff=QUICK) as found:
        yield found


def asking(*texts: str) -> list[list[Message]]:
    return [[Message("system", "Be brief."), Message("user", text)] for text in texts]


def test_answers_come_in_the_prompts_order(server: FakeServer, client: ServerClient) -> None:
    generator: Generator = ServedGenerator(client)
    found = generator.generate(asking("one", "two", "three"), SETTINGS, seed=3)
    assert [c.text.split()[0] for c in found] == ["ONE", "TWO", "THREE"]
    assert found[1] == Completion(found[1].text, True, 3, 3)
    assert generator.fingerprint == "server:demo"
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "demo",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["\n\n"],
        "seed": body["seed"],
    }


def test_a_cut_answer_says_so(client: ServerClient) -> None:
    found = ServedGenerator(client).generate(asking("one"), SamplingSettings(max_new_tokens=2), seed=0)
    assert not found[0].finished


def test_equal_prompts_have_seeds_of_their_own_and_the_same_ones_again(
    server: FakeServer, client: ServerClient
) -> None:
    generator = ServedGenerator(client)
    first = [c.text for c in generator.generate(asking("one", "one", "two", "one"), SETTINGS, seed=3)]
    assert len(set(first)) == 4
    assert [c.text for c in generator.generate(asking("one", "one", "two", "one"), SETTINGS, seed=3)] == first
    assert [c.text for c in generator.generate(asking("one"), SETTINGS, seed=4)] != first[:1]
    assert all(0 <= body["seed"] < 2**31 for _, body in server.requests)


def test_what_the_journal_has_is_not_asked_for_again(server: FakeServer, client: ServerClient, tmp_path: Path) -> None:
    path = tmp_path / "answers" / "journal.jsonl"
    server.faults.extend([lambda good: None, lambda good: None, fake_server.status(400, "broken")])
    with pytest.raises(ServerError, match="broken"):
        ServedGenerator(client, journal=path).generate(asking("one", "two", "three"), SETTINGS, seed=3)
    assert len(path.read_text().splitlines()) == 2
    with path.open("a") as file:
        file.write('{"key": "cut off in the mid')
    server.requests.clear()
    told: list[tuple[int, int]] = []
    generator = ServedGenerator(client, journal=path, progress=lambda done, total: told.append((done, total)))
    found = generator.generate(asking("zero", "three", "two", "one"), SETTINGS, seed=3)
    assert [c.text.split()[0] for c in found] == ["ZERO", "THREE", "TWO", "ONE"]
    assert sorted(body["messages"][1]["content"] for _, body in server.requests) == ["three", "zero"]
    assert told == [(3, 4), (4, 4)]
    other = SamplingSettings(max_new_tokens=10)
    ServedGenerator(client, journal=path).generate(asking("one"), other, seed=3)
    assert len(server.requests) == 3
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_journal_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.add("a", {"text": "x"})
    journal.add("b", {"text": "y\n\N{SNOWMAN}"})
    assert Journal(path).get("b") == {"text": "y\n\N{SNOWMAN}"}
    assert len(Journal(path)) == 2
    path.write_text(path.read_text().replace('{"key": "a"', '{"kex": "a"'))
    with pytest.raises(DataError, match=r"journal\.jsonl:1: .*delete the line"):
        Journal(path)
    with pytest.raises(OutputError, match="the journal of answers cannot be used"):
        Journal(path / "below-a-file.jsonl")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": []}, "answers without choices"),
        ({"choices": [{"text": "x"}]}, "has no message"),
    ],
)
def test_what_is_no_answer_is_named(
    server: FakeServer, client: ServerClient, answer: dict[str, Any], said: str
) -> None:
    server.always = lambda good: answer
    with pytest.raises(ServerError, match=said):
        ServedGenerator(client).generate(asking("one"), SETTINGS, seed=0)


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"total_tokens": 7}}])
def test_counts_that_a_server_leaves_out_are_unknown(
    server: FakeServer, client: ServerClient, tmp_path: Path, usage: dict[str, Any]
) -> None:
    answer = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], **usage}
    server.always = lambda good: answer
    for _ in range(2):  # the second time from the journal
        generator = ServedGenerator(client, journal=tmp_path / "journal.jsonl")
        assert generator.generate(asking("one"), SETTINGS, seed=0) == [Completion("yes", True, None, None)]
    assert len(server.requests) == 1


# --- the recipe's own fields --------------------------------------------------------------------


def changed(server: FakeServer, **extra: Any) -> ServerClient:
    config = ServerConfig(url=server.url, model="demo", max_retries=0, concurrency=1, extra_body=extra)
    return ServerClient(config, backoff=QUICK)


def test_fields_are_taken_out_and_set(server: FakeServer, client: ServerClient) -> None:
    server.refused = frozenset({"max_tokens", "seed", "temperature"})
    with pytest.raises(ServerError, match=r"answers 400 \(Unsupported parameter: max_tokens\)"):
        ServedGenerator(client).generate(asking("one"), SETTINGS, seed=3)
    with changed(
        server, max_tokens=None, seed=None, temperature=None, max_completion_tokens=256, provider={"zdr": True}
    ) as other:
        found = ServedGenerator(other).generate(asking("one", "one"), SETTINGS, seed=3)
    assert server.requests[-1][1] == {
        "model": "demo",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
        "top_p": 0.9,
        "stop": ["\n\n"],
        "max_completion_tokens": 256,
        "provider": {"zdr": True},
    }
    # Equal requests, for they have no seeds: still two answers.
    assert len({c.text for c in found}) == 2


def test_other_fields_are_another_question(server: FakeServer, client: ServerClient, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    plain = ServedGenerator(client, journal=path)
    names = {plain.fingerprint}
    plain.generate(asking("one"), SETTINGS, seed=3)
    for extra in ({"seed": None}, {"reasoning_effort": "low"}, {"reasoning_effort": "high"}):
        for asked_again in (1, 0):
            before = len(server.requests)
            with changed(server, **extra) as other:
                generator = ServedGenerator(other, journal=path)
                generator.generate(asking("one"), SETTINGS, seed=3)
                names.add(generator.fingerprint)
            assert len(server.requests) - before == asked_again
    assert "server:demo" in names
    assert len(names) == 4


@pytest.mark.parametrize("name", ["model", "messages", "prompt", "stream", "n", "logprobs", "prompt_logprobs"])
def test_fields_that_decide_what_is_asked_are_refused(name: str) -> None:
    for value in (None, 2):
        with pytest.raises(ValueError, match=f"extra_body\n.*{name}: decides what is asked or how the answer is read"):
            ServerConfig(url="http://host/v1", model="demo", extra_body={"user": "x", name: value})


def test_a_number_that_json_cannot_write_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON cannot write"):
        ServerConfig(url="http://host/v1", model="demo", extra_body={"a": [float("nan")]})


# --- many batches -------------------------------------------------------------------------------


def test_batches_are_answered_as_one_by_one(server: FakeServer, client: ServerClient, tmp_path: Path) -> None:
    batches = [(7, asking("one", "one", "two"), 1), (8, [], 2), (9, asking("one"), 3)]
    alone = {n: ServedGenerator(client).generate(prompts, SETTINGS, seed=seed) for n, prompts, seed in batches}
    server.requests.clear()
    for asked in (4, 0):
        generator = ServedGenerator(client, journal=tmp_path / "journal.jsonl")
        assert dict(generator.generate_each(batches, SETTINGS)) == alone
        assert len(server.requests) == asked
        server.requests.clear()


def test_no_batch_waits_for_the_slowest_answer_of_another(server: FakeServer) -> None:
    server.faults.append(fake_server.hang(1.5))
    config = ServerConfig(url=server.url, model="demo", timeout_seconds=10.0, max_retries=0, concurrency=3)
    batches = [(n, asking(f"a{n}", f"b{n}"), n) for n in range(6)]
    with ServerClient(config, backoff=QUICK) as client:
        found = [n for n, _ in ServedGenerator(client).generate_each(batches, SETTINGS)]
    assert sorted(found) == list(range(6))
    assert found[-1] == 0


def test_continuations_are_those_of_the_model_here(
    server: FakeServer, client: ServerClient, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [tiny_tokenizer(text)["input_ids"] for text in ("What is 1", "Greet", "Spell 'tree'", "7")]
    ours = generate(server.model, tiny_tokenizer, prompts, GenerationSettings(6, frozenset({2, 40})), seed=0)
    found = continue_prompts(client, client.describe(), prompts, max_new_tokens=6, stop_ids=frozenset({2, 40}))
    assert found == [g.text for g in ours]
    assert {"repetition_penalty": 1.0, "temperature": 0.0, "stop_token_ids": [2, 40]}.items() <= server.requests[0][
        1
    ].items()


def test_a_prompt_without_room_has_no_answer(server: FakeServer, client: ServerClient) -> None:
    server.max_model_len = 12
    found = continue_prompts(client, client.describe(), [[5] * 6, [5] * 7], max_new_tokens=6, stop_ids=frozenset())
    assert found[0] != ""
    assert found[1] == ""
    assert len(server.requests) == 1
    server.always = lambda good: {"choices": [{"text": None}]}
    with pytest.raises(ServerError, match="no text"):
        continue_prompts(client, client.describe(), [[5]], max_new_tokens=1, stop_ids=frozenset())
