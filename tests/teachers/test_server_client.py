"""The client against a server that misbehaves: what is tried again, what is given up, and what is said of it."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import fake_server
from fake_server import FakeServer, Fault, body, cut, hang, serving
from stillhouse.errors import MissingDependencyError, RecipeError, ServerError
from stillhouse.recipe import ServerConfig
from stillhouse.teachers import server_limits
from stillhouse.teachers.server_client import Backoff, Request, ServedModel, ServerClient

KEY = "sk-test-0123456789/abc+def"
QUICK = Backoff(initial_seconds=0.01, longest_seconds=0.05, jitter_seconds=0.01)
CHAT = Request(
    "chat/completions",
    {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1, "temperature": 0},
)


@pytest.fixture
def server(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[FakeServer]:
    with serving(tiny_model, tiny_tokenizer) as fake:
        yield fake


Connect = Callable[..., ServerClient]


@pytest.fixture
def connect(server: FakeServer) -> Connect:
    def build(**changes: Any) -> ServerClient:
        config = {"url": server.url, "model": "demo", "timeout_seconds": 5.0, "max_retries": 3, **changes}
        return ServerClient(ServerConfig.model_validate(config), backoff=QUICK)

    return build


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_what_is_served(server: FakeServer, connect: Connect) -> None:
    with connect() as client:
        found = client.describe()
    assert found == ServedModel("demo", "tiny", 256)
    assert found.fingerprint == "server:demo:tiny"


def test_an_unknown_model_names_those_that_are_served(connect: Connect) -> None:
    with (
        connect(model="other") as client,
        pytest.raises(ServerError, match=r"teacher\.server\.model=other: the server at .* serves demo; name one"),
    ):
        client.describe()


FAULTS: dict[str, Fault] = {
    "429": fake_server.status(429),
    "500": fake_server.status(500),
    "503 with a body that is no JSON": lambda good: (503, {}, b"<html>busy</html>"),
    "408": fake_server.status(408),
    "cut": cut,
    "garbage": body(b"\x00\xff not json"),
    "html": body(b"<html>proxy</html>"),
    "a list": body(b"[1, 2]"),
    "hang": hang(0.6),
    "an error in a 200": body(b'{"error": {"message": "the model behind me is busy", "code": 502}}'),
    "empty choices": body(b'{"choices": []}'),
    "null for a choice": body(b'{"choices": [null]}'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_tried_again(name: str, server: FakeServer, connect: Connect) -> None:
    server.faults.append(FAULTS[name])
    with connect(timeout_seconds=0.3) as client:
        assert text_of(client.ask(CHAT)) == "HELLO 1"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("429", r"answers 429 \(no\); gave up after 3 attempts in 0 seconds\. What is done is kept"),
        ("503 with a body that is no JSON", r"answers 503 \(<html>busy</html>\); gave up"),
        ("cut", r"cannot be reached \(.+\); gave up after 3 attempts"),
        ("garbage", r"answers with something that is no JSON object; gave up"),
        ("hang", r"gave no answer within 0\.2 seconds; gave up"),
        (
            "an error in a 200",
            r"answers without choices \(the model behind me is busy\); if it always does, .*; gave up",
        ),
        ("empty choices", r'answers without choices \(\{"choices": \[\]\}\)'),
    ],
)
def test_what_does_not_pass_is_given_up_with_its_reason(
    name: str, said: str, server: FakeServer, connect: Connect
) -> None:
    server.always = FAULTS[name]
    with connect(max_retries=2, timeout_seconds=0.2) as client, pytest.raises(ServerError, match=said) as caught:
        client.ask(CHAT)
    assert str(caught.value).startswith(f"teacher.server: the server at {server.url} ")
    assert len(server.requests) == 3


def test_no_server_is_named(connect: Connect) -> None:
    with (
        connect(url="http://127.0.0.1:9/v1", max_retries=1) as client,
        pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1 cannot be reached"),
    ):
        client.ask(CHAT)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fake_server.status(400, "bad messages"), r"answers 400 \(bad messages\)$"),
        (fake_server.status(404, "no such"), r"teacher\.server\.model=demo: .* answers 404 \(no such\); check"),
        (fake_server.status(400, "Requested prompt logprobs of 30"), r"codec\.k: .*larger --max-logprobs"),
        (
            lambda good: (429, {}, b'{"error": {"message": "pay first", "code": "insufficient_quota"}}'),
            r"answers 429 \(pay first\)$",
        ),
        (
            body(b'{"error": {"message": "pay first", "code": "insufficient_quota"}}'),
            r"without choices \(pay first\); if",
        ),
        (fake_server.status(429, "slow down", retry_after="86400"), r"asks to wait 86400 seconds; try again later"),
        (fake_server.status(403), r"refuses the key \(403: no\); name the environment variable .*api_key_env"),
    ],
)
def test_what_no_waiting_mends_is_not_tried_again(
    fault: Fault, said: str, server: FakeServer, connect: Connect
) -> None:
    server.always = fault
    with connect() as client, pytest.raises(ServerError, match=said):
        client.ask(CHAT)
    assert len(server.requests) == 1


def test_retry_after_is_honoured_by_all_requests(server: FakeServer, connect: Connect) -> None:
    server.faults.append(fake_server.status(429, retry_after="0.4"))
    started = time.monotonic()
    with connect(concurrency=1) as client:
        found = list(client.stream((i, CHAT) for i in range(3)))
    assert 0.4 <= time.monotonic() - started < 3
    assert len(found) == 3


def test_a_used_up_limit_holds_back_the_next_request(server: FakeServer, connect: Connect) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "400ms"}
    server.faults.append(lambda good: (200, headers, json.dumps(good).encode()))
    with connect(concurrency=1) as client:
        client.ask(CHAT)
        started = time.monotonic()
        client.ask(CHAT)
    assert time.monotonic() - started >= 0.35


def used_up(reset: str) -> Fault:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    return lambda good: (200, headers, json.dumps(good).encode())


def test_a_limit_that_is_used_up_for_long_ends_the_work_and_keeps_every_answer(
    server: FakeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of four requests under way spends the limit: their answers are kept, the fifth is not sent."""
    server.faults.extend([used_up("24h"), hang(0.3), hang(0.3), hang(0.3)])
    found: list[int] = []
    started = time.monotonic()
    with connect(concurrency=4) as client:
        with pytest.raises(
            ServerError, match=r"used up and renewed only in 8(6400|6399) seconds .*more than 600 are not"
        ):
            found.extend(key for key, _ in client.stream((i, CHAT) for i in range(9)))
        with pytest.raises(ServerError, match="used up"):
            client.ask(CHAT)
    assert sorted(found) == [0, 1, 2, 3]
    assert len(server.requests) == 4
    assert time.monotonic() - started < 4
    assert not caplog.records


def test_a_wait_of_more_than_a_few_seconds_is_said_once(
    server: FakeServer, connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_limits, "SAID_SECONDS", 0.2)
    server.faults.extend([used_up("500ms"), used_up("510ms"), used_up("100ms")])
    with connect(concurrency=2) as client:
        assert len(list(client.stream((i, CHAT) for i in range(8)))) == 8
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("stillhouse")]
    expected = f"teacher.server: the server at {server.url} asks to wait; the next request goes out in "
    assert said.removeprefix(expected) in ("0 seconds", "1 seconds")


def test_concurrency_is_bounded_and_used(server: FakeServer, connect: Connect) -> None:
    server.delay_seconds = 0.05
    with connect(concurrency=4) as client:
        found = dict(client.stream((i, CHAT) for i in range(12)))
    assert sorted(found) == list(range(12))
    assert 2 <= server.most_under_way <= 4


def test_requests_are_drawn_as_places_become_free(server: FakeServer, connect: Connect) -> None:
    drawn: list[int] = []

    def requests() -> Iterator[tuple[int, Request]]:
        for i in range(10):
            drawn.append(i)
            yield i, CHAT

    with connect(concurrency=2) as client:
        stream = client.stream(requests())
        next(stream)
        assert len(drawn) <= 3
        stream.close()


def test_one_failure_ends_the_stream_and_keeps_what_came(server: FakeServer, connect: Connect) -> None:
    server.faults.extend([lambda good: None, lambda good: None, fake_server.status(400, "bad")])
    with connect(concurrency=1) as client:
        stream = client.stream((i, CHAT) for i in range(9))
        assert [next(stream)[0], next(stream)[0]] == [0, 1]
        with pytest.raises(ServerError, match="bad"):
            next(stream)


# --- the key ----------------------------------------------------------------------------------


def test_the_key_comes_from_the_named_variable_alone(
    server: FakeServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "somebody-elses")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: somebody-elses\nX-Gateway: somebody-elses")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/")
    with connect() as client:
        client.ask(CHAT)
    assert "authorization" not in server.headers[0]
    assert "somebody-elses" not in str(server.headers)
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    server.key = KEY
    with connect(api_key_env="MY_KEY") as client:
        client.ask(CHAT)
    assert server.headers[1]["authorization"] == f"Bearer {KEY}"
    assert "somebody-elses" not in str(server.headers)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_an_absent_key_names_the_variable(connect: Connect, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(RecipeError, match=r"teacher\.server\.api_key_env=MY_KEY: the environment has no such variable"):
        connect(api_key_env="MY_KEY")


def test_the_key_is_in_no_error_log_or_repr(
    server: FakeServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server repeats the key that it refuses, as servers do, in every form that it may take."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    shown = ""
    escaped = KEY.replace("/", "%2F").replace("+", "%2B")
    for fault in (
        None,
        fake_server.status(500, f"failed for {KEY}"),
        fake_server.status(400, f"see /?key={escaped}"),
        body(json.dumps({"error": {"message": f"no model for {KEY}"}}).encode()),
        body(json.dumps({"id": 1, "choices": [], "asked": {"authorization": f"Bearer {KEY}"}}).encode()),
    ):
        server.always = fault
        server.key = "another" if fault is None else None
        with connect(api_key_env="MY_KEY", max_retries=1) as client:
            with pytest.raises(ServerError) as caught:
                client.ask(CHAT)
            shown += repr(client) + repr(vars(client)) + str(caught.value)
            shown += "".join(traceback.format_exception(caught.value))
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None
    assert "[key]" in shown
    assert "check it" in shown
    for text in (shown, caplog.text, str([vars(r) for r in caplog.records])):
        for form in (KEY, escaped, "0123456789"):
            assert form not in text


def test_the_extra_is_named_where_it_is_missing(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stamina", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stillhouse\[server\]'"):
        connect()
