"""What can go wrong with a server, as one message for a person; the key is in none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from stillhouse.errors import RecipeError
from stillhouse.recipe import ServerConfig
from stillhouse.teachers.server_limits import LONGEST_WAIT_SECONDS, exhausted_seconds, retry_after_seconds

HIDDEN = "[key]"
_LONGEST_DETAIL = 300
_RETRIED = frozenset({408, 409, 425, 429})
_UNPAID = "insufficient_quota"
"""OpenAI's code for a 429 that no waiting mends."""


class Failure(Exception):  # noqa: N818 - it never leaves the client
    """One failed attempt: what happened, whether trying again may help, and how long the server asks to wait."""

    def __init__(self, message: str, *, again: bool, status: int | None = None, wait_seconds: float | None = None):
        super().__init__(message)
        self.again, self.status, self.wait_seconds = again, status, wait_seconds


@dataclass(frozen=True)
class Secret:
    """An API key that shows itself nowhere: not in a repr, not in a message."""

    _value: str | None

    @classmethod
    def from_environment(cls, variable: str | None, field: str) -> Secret:
        """Read the key from the environment variable; None: the server wants none.

        Raises RecipeError when the variable is not set or empty.
        """
        if variable is None:
            return cls(None)
        value = os.environ.get(variable, "").strip()
        if not value:
            raise RecipeError(
                f"{field}.api_key_env={variable}: the environment has no such variable; "
                f"set it to the server's key (export {variable}=...)"
            )
        return cls(value)

    def __repr__(self) -> str:
        return "Secret()"

    def reveal(self) -> str | None:
        """The key itself, for the Authorization header alone."""
        return self._value

    def scrub(self, text: str) -> str:
        """Return ``text`` without the key, as it is, as JSON writes it, or as a URL writes it."""
        if self._value is None:
            return text
        for form in {self._value, json.dumps(self._value)[1:-1], quote(self._value, safe="")}:
            text = text.replace(form, HIDDEN)
        return text


def status_failure(
    status: int, headers: Mapping[str, str], body: str, *, config: ServerConfig, field: str, secret: Secret
) -> Failure:
    """Turn an HTTP error answer into a failure that says which field is wrong and how to mend it."""
    detail, code = _detail(body)
    detail = secret.scrub(detail)
    if status in (401, 403):
        return Failure(_refused_key(status, detail, config, field), again=False, status=status)
    if status == 404:
        message = (
            f"{field}.model={config.model}: the server at {config.url} answers 404 ({detail}); "
            f"check {field}.model against the names it serves, and that {field}.url ends where its API begins (often /v1)"
        )
        return Failure(message, again=False, status=status)
    if status == 400 and "logprobs" in detail:
        message = (
            f"teacher.cache.codec.k: the server at {config.url} refuses so many log-probabilities ({detail}); "
            "lower k, or start the server with a larger --max-logprobs (20 is vLLM's default)"
        )
        return Failure(message, again=False, status=status)
    wait = retry_after_seconds(headers)
    if wait is None and status == 429:
        wait = exhausted_seconds(headers)
    again = (status in _RETRIED or status >= 500) and code != _UNPAID
    message = f"{field}: the server at {config.url} answers {status} ({detail})"
    if again and wait is not None and wait > LONGEST_WAIT_SECONDS:
        return Failure(f"{message} and asks to wait {wait:.0f} seconds; try again later", again=False, status=status)
    return Failure(message, again=again, status=status, wait_seconds=wait)


def choiceless_failure(answer: dict[str, Any], *, config: ServerConfig, field: str, secret: Secret) -> Failure | None:
    """Return why an answer of a completions endpoint is none, or None when its first choice is there.

    Gateways report a busy or broken model behind them as a 200 whose body holds an error, so trying again may help.
    """
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return None
    detail, code = _detail(json.dumps(answer, ensure_ascii=False))
    return Failure(
        f"{field}: the server at {config.url} answers without choices ({secret.scrub(detail)}); if it always does, "
        f"check that {field}.url is an OpenAI-compatible API",
        again=code != _UNPAID,
    )


def spent_failure(seconds: float, *, config: ServerConfig, field: str) -> Failure:
    """Return the failure of a request that a used-up limit would hold back for longer than anybody waits."""
    return Failure(
        f"{field}: a rate limit of the server at {config.url} is used up and renewed only in {seconds:.0f} seconds (its "
        f"x-ratelimit headers), and more than {LONGEST_WAIT_SECONDS:.0f} are not waited for. What is done is kept, and the "
        "same command goes on from there; run it then",
        again=False,
    )


def _refused_key(status: int, detail: str, config: ServerConfig, field: str) -> str:
    if config.api_key_env is None:
        way_out = f"name the environment variable that holds your key as {field}.api_key_env"
    else:
        way_out = f"the key comes from the environment variable {config.api_key_env}; check it"
    return f"{field}: the server at {config.url} refuses the key ({status}: {detail}); {way_out}"


def _detail(body: str) -> tuple[str, str | None]:
    """The message and the code of an error answer, in the shapes that servers use, cut to a line."""
    code: Any = None
    try:
        parsed = json.loads(body)
    except ValueError:
        found: Any = body
    else:
        error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
        found = error
        if isinstance(error, dict):
            code = error.get("code")
            found = error.get("message", error)
    text = " ".join((found if isinstance(found, str) else json.dumps(found)).split()) or "no message"
    return text[:_LONGEST_DETAIL], code if isinstance(code, str) else None
