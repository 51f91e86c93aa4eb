"""ChatEndpoint: greedy chat completions from any OpenAI-compatible server, by the standard library alone."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from introspect_ray.errors import UserError, one_line
from introspect_ray.records import Message

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between tries; doubled each time, less up to half by chance
_CHECK_PATIENCE = 10.0  # seconds: a preflight shall not wait for a server that is not there
_EXCERPT = 200  # characters of a server's message that an error repeats
_REMEDIES = {
    401: "check the key in the environment variable {key_env} (judge.key_env)",
    403: "check the rights of the key in the environment variable {key_env} (judge.key_env)",
    404: "check judge.endpoint, which usually ends in /v1, and judge.model",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Transient(Exception):
    """Worth another try, no sooner than after `pause` seconds."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


class _Refused(UserError):
    """The server answered with a status that another try would not change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ChatEndpoint:
    """`complete` against <url>/chat/completions.

    The key is read from the environment with every request, so no field, repr or pickle holds it.
    Raises UserError for a URL that is none.
    """

    url: str  # up to the version, e.g. "http://localhost:8000/v1"
    model: str
    key_env: str | None = "OPENAI_API_KEY"  # variable with the key; unset or None: no key is sent
    timeout: float = 60.0  # seconds that one request may take
    patience: float = 300.0  # seconds during which a request is tried again
    parallel: int = 16  # requests at a time
    request: Mapping[str, Any] = field(default_factory=dict)  # further fields of the body; None drops a field

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in self.url):
            raise UserError(f"judge.endpoint={self.url!r} is not a URL such as http://localhost:8000/v1")
        if parts.username or parts.query or parts.fragment:
            where = f"{parts.scheme}://{parts.hostname}{parts.path}"
            raise UserError(
                f"judge.endpoint: give {where} without user, query or fragment; a key belongs into judge.key_env"
            )

    def complete(self, chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
        """One answer per chat, in order. The first failure ends the call.

        Raises UserError: an HTTP status below 500 other than 408 and 429, an answer that is no chat completion, or no
        answer within `patience` (connection errors, 408, 429 and 5xx are tried again).
        """
        stop = threading.Event()
        pool = ThreadPoolExecutor(min(self.parallel, len(chats)) or 1)
        futures = [pool.submit(self._answer, chat, max_tokens, self.patience, stop) for chat in chats]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future.exception() for future in done if future.exception()), None)
            if failed:
                raise failed
            return [future.result() for future in futures]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Preflight: the server is there, lists the model (if it lists any) and answers a chat with one token.

        Raises UserError with the remedy, after at most 10 seconds of further tries.
        """
        patience, stop = min(self.patience, _CHECK_PATIENCE), threading.Event()
        try:
            listed = self._persist("/models", None, patience, stop)
            names = [str(model["id"]) for model in listed["data"]]
        except _Refused as error:
            if error.status not in (404, 405):
                raise
            names = []
        except (KeyError, TypeError):
            names = []
        if names and self.model not in names:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise UserError(f"{self._where} has no model {self.model!r}: set judge.model to one of {some}")
        self._answer(({"role": "user", "content": "Hello"},), 1, patience, stop)

    @property
    def _where(self) -> str:
        return f"judge endpoint {self.url}"

    def _answer(self, chat: Sequence[Message], max_tokens: int, patience: float, stop: threading.Event) -> str:
        body = {"model": self.model, "messages": list(chat), "max_tokens": max_tokens, "temperature": 0.0}
        body = {key: value for key, value in {**body, **self.request}.items() if value is not None}
        answer = self._persist("/chat/completions", body, patience, stop)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise self._malformed(json.dumps(answer)) from None
        return text if isinstance(text, str) else ""  # null: cut off before any text

    def _persist(self, path: str, body: Mapping[str, Any] | None, patience: float, stop: threading.Event) -> Any:
        """The server's JSON. Tries again until `patience` seconds have gone by or `stop` is set."""
        start = time.monotonic()
        for tries in itertools.count(1):
            try:
                return self._once(path, body)
            except _Transient as error:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries - 1, 10)) * random.uniform(0.5, 1)
                pause = max(pause, error.pause)
                if time.monotonic() - start + pause > patience or stop.wait(pause):
                    raise UserError(
                        f"{self._where} gave no answer: {tries} tries in {time.monotonic() - start:.0f} s, the last "
                        f"one {error}: check the server, or raise judge.patience_s ({self.patience:g})"
                    ) from None
        raise AssertionError("unreachable")

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as reply:
                text = reply.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            raise self._explain(error) from None
        except urllib.error.URLError as error:
            raise _Transient(f"could not connect ({self._clean(error.reason)})") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(f"broke off ({type(error).__name__} {self._clean(error)})") from None
        try:
            return json.loads(text)
        except ValueError:
            raise self._malformed(text) from None

    def _explain(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            said = self._clean(_message(error))
        status = f"HTTP {error.code} {said}".rstrip()
        if error.code in (408, 429) or error.code >= 500:
            return _Transient(status, _seconds(error.headers.get("Retry-After")))
        if error.code < 400:
            return _Refused(f"{self._where} redirects to {error.headers.get('Location')}: give that URL", error.code)
        remedy = _REMEDIES.get(error.code, "check judge.model, judge.request and the length of the prompts")
        return _Refused(f"{self._where} refuses: {status}: {remedy.format(key_env=self.key_env)}", error.code)

    def _malformed(self, text: str) -> UserError:
        return UserError(
            f"{self._where} answers, but not with a chat completion: {self._clean(text)!r}: check that the URL is that "
            "of an OpenAI-compatible server, up to /v1"
        )

    def _key(self) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        if not (key.isascii() and key.isprintable()):  # http.client would repeat it in its error
            raise UserError(f"the key in the environment variable {self.key_env} has characters that no key has")
        return key

    def _clean(self, text: object) -> str:
        """One line of at most _EXCERPT characters, without the key."""
        line, key = one_line(Exception(str(text))), self._key()
        line = line.replace(key, "***") if key else line
        return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}..."


def _message(error: urllib.error.HTTPError) -> str:
    """The reason in an error's body: OpenAI's {"error": {"message": ...}} and its relatives, else the text."""
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        body = json.loads(text)
    except ValueError:
        return text
    inner = body.get("error", body) if isinstance(body, dict) else body
    return str(inner.get("message") or inner.get("detail") or text) if isinstance(inner, dict) else str(inner)


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header in seconds; 0 where there is none, or where it is a date."""
    try:
        return max(float(retry_after or 0), 0.0)
    except ValueError:
        return 0.0
