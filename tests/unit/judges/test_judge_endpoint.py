"""ChatEndpoint against a server on loopback that answers by script."""

from __future__ import annotations

import json
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from introspect_ray.errors import UserError
from introspect_ray.judges import ChatEndpoint, LLMJudge, Reply, endpoint

KEY = "sk-secret-0123"
CHAT = ({"role": "user", "content": "refuse or comply?"},)
MODELS = json.dumps({"data": [{"id": "small"}, {"id": "large"}]})


def completion(text: str | None) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class Server:
    """`answer(path, body)` gives (status, text, headers); None closes the connection without an answer."""

    def __init__(self, answer: Callable) -> None:
        self.requests: list[tuple[str, dict | None, str | None]] = []  # path, body, Authorization
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                with lock:
                    outer.requests.append((self.path, body, self.headers.get("Authorization")))
                given = answer(self.path, body)
                if given is None:
                    return
                status, text, headers = (*given, {})[:3]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Server]]:
    """Starts servers. An argument that is a list is answered item by item, the last one again and again."""
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers: list[Server] = []

    def start(answer: Callable | list) -> Server:
        if isinstance(answer, list):
            left = list(answer)
            servers.append(Server(lambda path, body: left.pop(0) if len(left) > 1 else left[0]))
        else:
            servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def refused(server: Server, **fields) -> str:
    """The one line that `complete` raises. It never holds the key."""
    with pytest.raises(UserError) as caught:
        ChatEndpoint(server.url, "small", **fields).complete([CHAT], 4)
    message = str(caught.value)
    assert server.url in message and "\n" not in message and KEY not in message
    return message


def test_answers_come_in_the_order_of_the_chats(serve):
    """The first one is the last to be answered."""
    others = threading.Semaphore(0)

    def answer(path, body):
        word = body["messages"][0]["content"]
        if word == "one":
            assert others.acquire(timeout=10) and others.acquire(timeout=10)
        else:
            others.release()
        return 200, completion(word.upper())

    server = serve(answer)
    chats = [({"role": "user", "content": word},) for word in ("one", "two", "three")]
    assert ChatEndpoint(server.url, "small", parallel=2).complete(chats, 4) == ["ONE", "TWO", "THREE"]
    assert ChatEndpoint(server.url, "small").complete([], 4) == []
    path, body, key = min(server.requests, key=lambda request: request[1]["messages"][0]["content"])
    assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {"model": "small", "messages": list(chats[0]), "max_tokens": 4, "temperature": 0.0}


def test_further_fields_and_no_key(serve):
    server = serve([(200, completion("x"))])
    fields = {"max_tokens": None, "max_completion_tokens": 64, "chat_template_kwargs": {"enable_thinking": False}}
    ChatEndpoint(server.url, "small", key_env=None, request=fields).complete([CHAT], 4)
    ((_, body, key),) = server.requests
    assert key is None and "max_tokens" not in body
    assert body["max_completion_tokens"] == 64 and body["chat_template_kwargs"] == {"enable_thinking": False}


def test_busy_and_broken_servers_are_asked_again(serve):
    server = serve([(429, "slow down"), (500, ""), None, (200, completion("comply"))])
    assert ChatEndpoint(server.url, "small").complete([CHAT], 4) == ["comply"]
    assert len(server.requests) == 4


def test_retry_after_is_waited_for(serve):
    server = serve([(429, "", {"Retry-After": "0.3"}), (200, completion("comply"))])
    start = time.monotonic()
    ChatEndpoint(server.url, "small").complete([CHAT], 4)
    assert time.monotonic() - start >= 0.3


def test_patience_ends(serve):
    message = refused(serve([(503, '{"error": {"message": "loading"}}')]), patience=0.2)
    assert re.search(
        r"tries in \d+ s, the last one HTTP 503 loading: check the server, or raise judge.patience_s \(0.2\)", message
    )
    later = serve([(429, "", {"Retry-After": "60"})])
    refused(later, patience=1)
    assert len(later.requests) == 1  # 60 s are longer than the patience


def test_a_server_that_is_not_there(serve):
    server = serve([(200, "")])
    server.close()
    with pytest.raises(UserError, match=r"gave no answer: .* could not connect .*refused"):
        ChatEndpoint(server.url, "small", patience=0.05).complete([CHAT], 4)


def test_a_request_may_take_its_timeout_alone(serve):
    def answer(path, body):
        time.sleep(0.4)
        return 200, completion("late")

    assert "timed out" in refused(serve(answer), timeout=0.1, patience=0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}})),
            "refuses: HTTP 401 Incorrect API key: ***: check the key in the environment variable OPENAI_API_KEY",
        ),
        ((404, json.dumps({"detail": "Not Found"})), "HTTP 404 Not Found: check judge.endpoint, which usually ends"),
        ((400, "maximum context\nlength is 9"), "HTTP 400 maximum context length is 9: check judge.model"),
        ((307, "", {"Location": "https://elsewhere/v1"}), "redirects to https://elsewhere/v1: give that URL"),
        ((200, "<html>Welcome</html>"), "answers, but not with a chat completion: '<html>Welcome</html>'"),
        ((200, '{"choices": []}'), "not with a chat completion: '{\"choices\": []}'"),
    ],
)
def test_what_no_further_try_would_change_is_an_error_at_once(serve, answer, message):
    server = serve([answer])
    assert message in refused(server)
    assert len(server.requests) == 1


def test_one_failure_ends_the_call(serve):
    """Without waiting for the patience of the others."""

    def answer(path, body):
        return (400, "too long") if body["messages"][0]["content"] == "bad" else (503, "")

    server = serve(answer)
    chats = [*[CHAT] * 3, ({"role": "user", "content": "bad"},)]
    start = time.monotonic()
    with pytest.raises(UserError, match="too long"):
        ChatEndpoint(server.url, "small").complete(chats, 4)
    assert time.monotonic() - start < 5


def test_no_text_is_no_verdict(serve):
    judge = LLMJudge(ChatEndpoint(serve([(200, completion(None))]).url, "small").complete)
    assert judge.verdicts([Reply("a", CHAT, "yes")])[0].label is None


def test_the_key_shows_nowhere(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    made = ChatEndpoint("http://localhost:1/v1", "small", key_env="JUDGE_KEY")
    assert KEY not in repr(made) and KEY.encode() not in pickle.dumps(made)
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nX: y")
    with pytest.raises(UserError, match="JUDGE_KEY has characters that no key has") as caught:
        made.complete([CHAT], 4)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://ho st/v1"])
def test_urls_that_are_none(url):
    with pytest.raises(UserError, match="is not a URL such as http://localhost:8000/v1"):
        ChatEndpoint(url, "small")


def test_a_url_with_a_password_is_refused_without_it():
    with pytest.raises(UserError, match="give https://host/v1 without user") as caught:
        ChatEndpoint(f"https://me:{KEY}@host/v1", "small")
    assert KEY not in str(caught.value)


class TestCheck:
    """The preflight."""

    def test_a_server_with_the_model(self, serve):
        server = serve(lambda path, body: (200, MODELS) if path == "/v1/models" else (200, completion("Hi")))
        ChatEndpoint(server.url, "small").check()
        assert [(path, body and body["max_tokens"]) for path, body, _ in server.requests] == [
            ("/v1/models", None),
            ("/v1/chat/completions", 1),
        ]

    def test_an_unknown_model(self, serve):
        with pytest.raises(UserError, match=r"has no model 'medium': set judge.model to one of small, large$"):
            ChatEndpoint(serve([(200, MODELS)]).url, "medium").check()

    def test_a_server_that_lists_no_models_is_asked_for_an_answer(self, serve):
        server = serve(lambda path, body: (404, "") if path == "/v1/models" else (200, completion("Hi")))
        ChatEndpoint(server.url, "small").check()
        server = serve([(404, "no such model")])
        with pytest.raises(UserError, match=r"HTTP 404 no such model: check judge.endpoint"):
            ChatEndpoint(server.url, "small").check()

    def test_it_does_not_wait_long(self, monkeypatch, serve):
        monkeypatch.setattr(endpoint, "_CHECK_PATIENCE", 0.1)
        with pytest.raises(UserError, match="HTTP 503"):
            ChatEndpoint(serve([(503, "")]).url, "small", patience=300).check()
