"""A client of an OpenAI-compatible server: many requests at a time, patient, and discreet about its key.

``openai`` speaks the protocol and ``stamina`` decides when to try again. The requests run in a
thread of their own, so that callers stay plain (and may run in a notebook).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from stillhouse.errors import MissingDependencyError, ServerError
from stillhouse.recipe import ServerConfig
from stillhouse.teachers.server_failures import Failure, Secret, choiceless_failure, spent_failure, status_failure
from stillhouse.teachers.server_limits import LONGEST_WAIT_SECONDS, Throttle, exhausted_seconds

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.from_thread import BlockingPortal
    from openai import AsyncOpenAI

KeyT = TypeVar("KeyT")
Json = dict[str, Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts: exponential from ``initial_seconds`` to ``longest_seconds``, and up to ``jitter_seconds``."""

    initial_seconds: float = 0.5
    longest_seconds: float = 30.0
    jitter_seconds: float = 1.0


@dataclass(frozen=True)
class Request:
    """One request: an endpoint and its body, without the model's name."""

    endpoint: str
    """``completions`` or ``chat/completions``."""
    body: Json


@dataclass(frozen=True)
class ServedModel:
    """What the server says about the model that the recipe names.

    ``root`` is the last part of the folder or hub name that it was loaded from, where the server
    tells. ``max_model_len`` bounds prompt and answer together; None where it is not told.
    """

    name: str
    root: str | None
    max_model_len: int | None

    @property
    def fingerprint(self) -> str:
        """What a cache keeps of the teacher: no address, so the same model may be served anywhere."""
        return served_fingerprint(self.name) + (self.root or "")


def served_fingerprint(model: str) -> str:
    """The part of a served teacher's fingerprint that the recipe knows, without asking the server."""
    return f"server:{model}:"


class ServerClient:
    """Asks one server for one model. Use it as a context manager.

    At most ``config.concurrency`` requests are under way. An attempt that fails for a reason that may
    pass (no connection, a timeout, 408, 409, 425, 429, 5xx, a body that is no JSON or has no ``choices``)
    is repeated up to ``config.max_retries`` times; Retry-After and used-up rate limits hold back all
    requests, and fail them when the wait is longer than ``LONGEST_WAIT_SECONDS``.
    ``field`` is the recipe field that messages name.

    Raises MissingDependencyError without the extra ``server``, and RecipeError when the environment
    variable of the key is not set.
    """

    def __init__(self, config: ServerConfig, *, field: str = "teacher.server", backoff: Backoff | None = None) -> None:
        try:
            import anyio  # noqa: F401
            import openai  # noqa: F401
            import stamina  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"{field} needs the packages openai and stamina; run `pip install 'stillhouse[server]'`"
            ) from error
        self.config, self.field = config, field
        self._secret = Secret.from_environment(config.api_key_env, field)
        self._backoff = backoff or Backoff()
        self._throttle = Throttle()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._api: AsyncOpenAI | None = None

    def __enter__(self) -> Self:
        from anyio.from_thread import start_blocking_portal

        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal(name="stillhouse-server"))
            self._api = stack.enter_context(self._portal.wrap_async_context_manager(self._connection()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal = self._api = None
        self._stack.__exit__(kind, error, trace)

    def describe(self) -> ServedModel:
        """Ask what is served. Raises ServerError when the model is not among it, or nothing answers."""

        async def ask(api: AsyncOpenAI) -> Any:
            return await api.models.with_raw_response.list(extra_headers=self._headers())

        answer = self._run(self._ask(ask, _unchecked))
        cards = answer.get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
            raise ServerError(f"{self.field}.url={self.config.url}: its /models is no list of models; is this an API?")
        for card in cards:
            if card.get("id") == self.config.model:
                root, length = card.get("root"), card.get("max_model_len")
                return ServedModel(
                    self.config.model,
                    root.rstrip("/").rpartition("/")[2] if isinstance(root, str) else None,
                    length if isinstance(length, int) else None,
                )
        names = ", ".join(str(card.get("id")) for card in cards) or "nothing"
        raise ServerError(
            f"{self.field}.model={self.config.model}: the server at {self.config.url} serves {self._secret.scrub(names)}; "
            "name one of these"
        )

    def ask(self, request: Request) -> Json:
        """Send one request and return the answer, whose first choice is there. Raises ServerError when no attempt succeeds."""
        return self._run(self._send(request))

    def stream(self, requests: Iterable[tuple[KeyT, Request]]) -> Iterator[tuple[KeyT, Json]]:
        """Send requests, at most ``concurrency`` at a time, and yield (key, answer) as answers come.

        ``requests`` is drawn from as places become free, and every answer has its first choice. Raises
        ServerError at the first request for which no attempt succeeds. What else is under way then has
        been paid for: for as long as one attempt may take, its answers are still yielded before.
        """
        portal = self._open()
        waiting: dict[Future[Json], KeyT] = {}
        try:
            for key, request in requests:
                if len(waiting) >= self.config.concurrency:
                    yield from self._finished(waiting)
                waiting[portal.start_task_soon(self._send, request)] = key
            while waiting:
                yield from self._finished(waiting)
        except ServerError:
            for future in wait(waiting, timeout=self.config.timeout_seconds).done:
                if future.exception() is None:
                    yield waiting[future], future.result()
            raise
        finally:
            for future in waiting:
                future.cancel()

    def _finished(self, waiting: dict[Future[Json], KeyT]) -> Iterator[tuple[KeyT, Json]]:
        done = wait(waiting, return_when=FIRST_COMPLETED).done
        found = [(waiting.pop(future), future) for future in done]
        for key, future in found:
            if future.exception() is None:
                yield key, future.result()
        for _, future in found:
            future.result()

    def _open(self) -> BlockingPortal:
        assert self._portal is not None, "the client is a context manager"
        return self._portal

    def _run(self, answer: Awaitable[Json]) -> Json:
        async def run() -> Json:
            return await answer

        return self._open().call(run)

    def _connection(self) -> AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.config.url,
            api_key=self._secret.reveal() or "none",
            timeout=self.config.timeout_seconds,
            max_retries=0,
        )

    def _headers(self) -> dict[str, Any]:
        """Nothing of the environment may reach a server that the recipe names, but the key that the recipe names too."""
        import openai

        ambient = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
        names = {line.partition(":")[0].strip().lower() for line in ambient} - {""}
        headers: dict[str, Any] = {name: openai.Omit() for name in names | {"openai-organization", "openai-project"}}
        key = self._secret.reveal()
        return headers | {"authorization": openai.Omit() if key is None else f"Bearer {key}"}

    async def _send(self, request: Request) -> Json:
        body = {"model": self.config.model, **request.body}

        async def ask(api: AsyncOpenAI) -> Any:
            # Everything travels as the body, so that a server's own parameters need no place in the client's types.
            if request.endpoint == "completions":
                return await api.completions.with_raw_response.create(
                    model=self.config.model, prompt=body["prompt"], extra_body=body, extra_headers=self._headers()
                )
            assert request.endpoint == "chat/completions"
            return await api.chat.completions.with_raw_response.create(
                model=self.config.model,
                messages=body["messages"],
                extra_body=body,
                extra_headers=self._headers(),
            )

        def check(answer: Json) -> Failure | None:
            return choiceless_failure(answer, config=self.config, field=self.field, secret=self._secret)

        return await self._ask(ask, check)

    async def _ask(
        self,
        ask: Callable[[AsyncOpenAI], Awaitable[Any]],
        check: Callable[[Json], Failure | None],
    ) -> Json:
        """Try until ``check`` finds nothing wrong, it makes no sense, or the attempts are used up."""
        import stamina

        started, attempts = time.monotonic(), 0
        failure: Failure
        try:
            async for attempt in stamina.retry_context(
                on=_may_pass,
                attempts=self.config.max_retries + 1,
                timeout=None,
                wait_initial=self._backoff.initial_seconds,
                wait_max=self._backoff.longest_seconds,
                wait_jitter=self._backoff.jitter_seconds,
            ):
                with attempt:
                    attempts += 1
                    return await self._attempt(ask, check)
            raise AssertionError("an attempt returns or raises")
        except Failure as last:
            failure = last
        message = str(failure)
        if failure.again:
            message += (
                f"; gave up after {attempts} attempts in {time.monotonic() - started:.0f} seconds. What is done is kept, "
                f"and the same command goes on from there; look at the server, or raise {self.field}.max_retries or "
                "timeout_seconds"
            )
        raise ServerError(message)

    async def _attempt(
        self, ask: Callable[[AsyncOpenAI], Awaitable[Any]], check: Callable[[Json], Failure | None]
    ) -> Json:
        """Send once; every failure is raised without the request that caused it, which carries the key."""
        await self._wait_for_limits()
        outcome = await self._outcome(ask)
        if not isinstance(outcome, Failure):
            outcome = check(outcome) or outcome
        if isinstance(outcome, Failure):
            if outcome.wait_seconds is not None:
                self._throttle.hold(outcome.wait_seconds)
            raise outcome
        return outcome

    async def _wait_for_limits(self) -> None:
        import anyio

        while (seconds := self._throttle.seconds_left()) > 0:
            if seconds > LONGEST_WAIT_SECONDS:
                raise spent_failure(seconds, config=self.config, field=self.field)
            if self._throttle.worth_saying():
                _log.warning(
                    "%s: the server at %s asks to wait; the next request goes out in %.0f seconds",
                    self.field,
                    self.config.url,
                    seconds,
                )
            await anyio.sleep(seconds)

    async def _outcome(self, ask: Callable[[AsyncOpenAI], Awaitable[Any]]) -> Json | Failure:
        import anyio
        import openai

        assert self._api is not None
        where = f"{self.field}: the server at {self.config.url}"
        try:
            with anyio.fail_after(self.config.timeout_seconds):
                raw = await ask(self._api)
        except openai.APIStatusError as error:
            response = error.response
            return status_failure(
                response.status_code,
                response.headers,
                response.text,
                config=self.config,
                field=self.field,
                secret=self._secret,
            )
        except (TimeoutError, openai.APITimeoutError):
            return Failure(f"{where} gave no answer within {self.config.timeout_seconds:g} seconds", again=True)
        except openai.APIConnectionError as error:
            reason = self._secret.scrub(str(error.__cause__ or error)) or type(error.__cause__).__name__
            return Failure(f"{where} cannot be reached ({reason})", again=True)
        self._note_limits(raw.headers)
        try:
            answer = json.loads(raw.text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            return Failure(f"{where} answers with something that is no JSON object", again=True)
        return answer

    def _note_limits(self, headers: Mapping[str, str]) -> None:
        seconds = exhausted_seconds(headers)
        if seconds is not None:
            self._throttle.hold(seconds)


def _unchecked(_answer: Json) -> None:
    """The list of models has no choices; its caller looks at it."""


def _may_pass(error: Exception) -> bool:
    return isinstance(error, Failure) and error.again
