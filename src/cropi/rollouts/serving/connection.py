"""JSON to and from a server that samples: bounded in number and time, and tried again.

What passes by itself (a connection that breaks, a time-out, a server that is busy or restarting, an
answer that was cut off) is tried again, after pauses that grow and are drawn by lot, so that many
clients do not come back at once; a server that names a pause (`Retry-After`) gets it. Everything
else is an InputError at once, with the server's own words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import urllib3
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from cropi.errors import InputError
from cropi.text import shortened

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses of answers that may be others a moment later."""
LONGEST_PAUSE = 60.0
CONNECT_SECONDS = 10.0


class PassingError(Exception):
    """A failure that may pass by itself; `pause` is how many seconds the server asks for."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Connection:
    """A server at `url`, for `connections` requests at once.

    `key` goes into the Authorization header and nowhere else. A request has `timeout` seconds, and
    is made `tries` times at most. `still_there` raises if it is no use to try again.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        connections: int,
        timeout: float,
        tries: int,
        first_pause: float = 0.5,
        still_there: Callable[[], None] = lambda: None,
    ) -> None:
        self.url, self.tries = url, tries
        self._first_pause, self._still_there = first_pause, still_there
        self._timeout = timeout
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            block=True,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=timeout),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def get(self, path: str) -> Any:
        """Return the JSON at `path`; raises InputError as `post` does."""
        return self._retried("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send `body` as JSON and return the JSON of the answer.

        Raises InputError if the server refuses the request, or fails `tries` times.
        """
        return self._retried("POST", path, body)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()

    def _retried(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        attempts = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(self.tries),
            wait=self._pause,
            before_sleep=lambda _: self._still_there(),
            reraise=True,
        )
        try:
            return attempts(self._attempt, method, path, body)
        except PassingError as error:
            self._still_there()
            times = f" {self.tries} times" if self.tries > 1 else ""
            raise InputError(
                f"the server at {self.url} failed{times}: {error}; what was sampled is kept: "
                "start the server, or raise the engine's tries or timeout, and run this again"
            ) from None

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next try: the server's wish, or twice as long each time, by lot."""
        error = state.outcome.exception() if state.outcome else None
        longest = min(LONGEST_PAUSE, self._first_pause * 2.0 ** (state.attempt_number - 1))
        asked = error.pause if isinstance(error, PassingError) and error.pause else 0.0
        return min(asked, LONGEST_PAUSE) + longest * random.uniform(0.5, 1.0)

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = self._pool.request(method, self.url + path, json=body, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise PassingError(self._broken(error)) from None
        if answer.status == 200:
            return _parsed(answer.data)
        reason = f"status {answer.status} {_words(answer.data)}".strip()
        if answer.status in PASSING:
            raise PassingError(reason, _seconds(answer.headers.get("Retry-After")))
        raise refusal(self.url, path, answer.status, reason)

    def _broken(self, error: urllib3.exceptions.HTTPError) -> str:
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            return f"no answer within {self._timeout:g} s"
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            return "nothing answers there"
        if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
            return f"no connection within {CONNECT_SECONDS:g} s"
        return shortened(" ".join(str(error).split()), 200)


def refusal(url: str, path: str, status: int, reason: str) -> InputError:
    """The error for a request that the server will not answer however often it is made."""
    if status in (401, 403):
        advice = "set the environment variable that rollouts.engine.key_variable names to its key"
    elif status == 404:
        advice = "give the address of a vLLM or SGLang server, without /v1"
    else:
        advice = "correct what it says"
    return InputError(f"the server at {url} refuses {path} ({reason}); {advice}")


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise PassingError(f"an answer of {len(data):,} bytes is not whole JSON") from None


def _words(data: bytes) -> str:
    """What the server says is wrong, in one line."""
    text = data.decode(errors="replace")
    try:
        value = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    return shortened(" ".join(text.split()), 300)


def _seconds(value: str | None) -> float | None:
    """The seconds of a Retry-After header; None for dates and nonsense."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
