"""What servers ask their clients to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.teachers.server_limits import Throttle, duration_seconds, exhausted_seconds, retry_after_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12.0), ("1.5", 1.5), ("6m0s", 360.0), ("120ms", 0.12), ("1h2m3s", 3723.0), ("1d", 86400.0), (" 2s ", 2.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    found = duration_seconds(text)
    assert found is None or found >= 0


@given(st.integers(0, 90000), st.integers(0, 59), st.integers(0, 999))
def test_written_durations_are_read(minutes: int, seconds: int, milliseconds: int) -> None:
    text = f"{minutes}m{seconds}s{milliseconds}ms"
    assert duration_seconds(text) == pytest.approx(60 * minutes + seconds + milliseconds / 1000)


@pytest.mark.parametrize("text", ["", "soon", "5x", "s", "1m 2s", "-3", "inf", "nan", "1e9"])
def test_what_is_no_duration(text: str) -> None:
    assert duration_seconds(text) is None


def test_retry_after() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=40), usegmt=True)
    assert retry_after_seconds({"retry-after": "7"}) == 7
    assert retry_after_seconds({"retry-after": later}, now) == 40
    assert retry_after_seconds({"retry-after": format_datetime(now - timedelta(hours=1))}, now) == 0
    assert retry_after_seconds({"retry-after": "Fri, 02 Jan 2026 03:05:05"}, now) == 60  # no zone: GMT
    assert retry_after_seconds({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_seconds({"retry-after": "tomorrow"}) is None
    assert retry_after_seconds({}) is None


def test_used_up_limits() -> None:
    requests = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m"}
    assert exhausted_seconds(requests) == 2
    assert exhausted_seconds({**requests, **tokens}) == 60
    assert exhausted_seconds({**requests, "x-ratelimit-remaining-requests": "3"}) is None
    assert exhausted_seconds({"x-ratelimit-remaining-requests": "0"}) is None  # until when is not told


def test_a_long_wait_is_said_once_and_again_when_it_has_grown() -> None:
    now = [100.0]
    throttle = Throttle(lambda: now[0])
    throttle.hold(5)
    assert not throttle.worth_saying()
    throttle.hold(20)
    assert throttle.worth_saying()
    throttle.hold(24)
    assert not throttle.worth_saying()
    throttle.hold(26)
    assert throttle.worth_saying()
    now[0] = 125.0
    assert not throttle.worth_saying()


def test_the_longest_wait_counts() -> None:
    now = [100.0]
    throttle = Throttle(lambda: now[0])
    assert throttle.seconds_left() <= 0
    throttle.hold(5)
    throttle.hold(2)
    assert throttle.seconds_left() == 5
    now[0] = 104.0
    assert throttle.seconds_left() == 1
    now[0] = 106.0
    assert throttle.seconds_left() <= 0
