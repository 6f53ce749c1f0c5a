"""How long a server asks its clients to wait: Retry-After and rate-limit headers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_WAIT_SECONDS = 600.0
"""Whoever asks for more is not waited for: a person should know."""

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?")


def duration_seconds(text: str) -> float | None:
    """Read ``12``, ``1.5``, ``6m0s``, ``120ms`` or ``1h2m3s``; None for anything else."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PARTS.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return what ``retry-after-ms`` or ``Retry-After`` (seconds or a date, RFC 9110) asks for, at least 0.

    ``headers`` must not care about case, or be in lower case. None when there is no such header or it cannot be read.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    text = headers.get("retry-after", "").strip()
    seconds = duration_seconds(text)
    if seconds is not None or not text:
        return seconds
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def exhausted_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the time until a limit that is used up is renewed, by ``x-ratelimit-*``; None when none is used up."""
    waits = []
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
            waits.append(duration_seconds(headers.get(f"x-ratelimit-reset-{what}", "")))
    known = [wait for wait in waits if wait is not None]
    return max(known) if known else None


SAID_SECONDS = 5.0
"""A wait is announced when it is longer, and again when it has grown by as much."""


class Throttle:
    """The moment before which nobody asks the server again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = self._announced = -1.0

    def hold(self, seconds: float) -> None:
        """Let everybody wait ``seconds`` from now; a longer wait that was asked for before stays."""
        self._until = max(self._until, self._clock() + seconds)

    def seconds_left(self) -> float:
        """How long to wait now; 0 or less: not at all."""
        return self._until - self._clock()

    def worth_saying(self) -> bool:
        """True, once for all who wait for the same moment, when the wait is a long one."""
        if self.seconds_left() <= SAID_SECONDS or self._until <= self._announced + SAID_SECONDS:
            return False
        self._announced = self._until
        return True
