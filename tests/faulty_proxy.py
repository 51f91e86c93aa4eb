"""A proxy before an HTTP server that refuses and breaks a share of all requests, drawn from a seed."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

FAULTS = ("503", "reset before", "lost answer", "half answer")
_BODY = b"<Error><Code>SlowDown</Code><Message>x</Message></Error>"
_UNAVAILABLE = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (len(_BODY), _BODY)
)


@dataclass
class FaultyProxy:
    """Counts what it did to requests. What may be changed while it runs:

    away: it refuses all requests while that is set. only: the one of FAULTS that is made; "": any. delay_s: before each
    request is passed on.
    """

    url: str
    share: float
    only: str = ""
    delay_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    away: threading.Event = field(default_factory=threading.Event)


@contextmanager
def faulty_proxy(server: str, share: float, seed: int = 0) -> Iterator[FaultyProxy]:
    """A proxy on loopback before `server` for the time of the body: of all requests, `share` fail in one of FAULTS."""
    target, draws, lock = urlsplit(server), random.Random(seed), threading.Lock()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        proxy = FaultyProxy(f"http://127.0.0.1:{listener.getsockname()[1]}", share)

        def fault() -> str:
            with lock:
                name = (proxy.only or draws.choice(FAULTS)) if draws.random() < proxy.share else "served"
                name = "503" if proxy.away.is_set() else name
                proxy.seen[name] += 1
            return name

        def serve(client: socket.socket) -> None:
            with suppress(OSError), client:
                while request := _message(client, b""):
                    time.sleep(proxy.delay_s)
                    if not _forward(client, (str(target.hostname), int(target.port or 80)), request, fault()):
                        return

        def accept() -> None:
            with suppress(OSError):  # the listener was closed
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def _forward(client: socket.socket, server: tuple[str, int], request: bytes, fault: str) -> bool:
    """Answer one request; returns whether the connection stays open."""
    if fault == "503":
        client.sendall(_UNAVAILABLE)
        return False
    if fault == "reset before":
        return False
    with socket.create_connection(server) as upstream:
        upstream.sendall(request)
        answer = _message(upstream, request.split(b" ", 1)[0])
    if fault == "lost answer":  # the server did what was asked, and nobody hears of it
        return False
    client.sendall(answer[: len(answer) // 2] if fault == "half answer" else answer)
    return fault == "served"


def _message(source: socket.socket, answers: bytes) -> bytes:
    """One whole HTTP message; b"" if none came. answers: the method of the request that it answers; b"": a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := source.recv(1 << 16)):
            return b""
        data += piece
    head = data.partition(b"\r\n\r\n")[0].lower()
    if b"expect: 100-continue" in head:  # the proxy waits for the body; the server gets both at once
        source.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        at = head.index(b"expect: 100-continue")
        data = data[:at] + data[at:].partition(b"\r\n")[2]
        head = data.partition(b"\r\n\r\n")[0].lower()
    if answers == b"HEAD" or b" 204 " in head.split(b"\r\n")[0]:
        return data
    if b"transfer-encoding: chunked" in head:
        while not data.endswith(b"0\r\n\r\n"):
            data += source.recv(1 << 16)
        return data
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    whole = len(head) + 4 + (lengths[0] if lengths else 0)
    while len(data) < whole and (piece := source.recv(1 << 20)):
        data += piece
    return data
