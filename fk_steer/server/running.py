"""Serving an application until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..ports import check_port
from .errors import content


GRACE = 5
"""Seconds beyond the longest that a request may take, after which one that is under way is broken off."""


def make_server(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """A server of an application, which `run()` starts and `should_exit` stops."""
    service = app.state.service
    limits = service.limits

    class Protocol(_Protocol):
        head_seconds = limits.head_seconds

    class Stopping(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.draining = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(limits.body_seconds + limits.seconds) + GRACE,
    )
    return Stopping(config)


def run(app: FastAPI, host: str, port: int) -> None:
    """See `fk_steer.server.serve`."""
    check_port(host, port)
    with _quiet_signals():
        make_server(app, host, port).run()


class _Protocol(H11Protocol):
    """HTTP/1.1 that waits for the head of a request for so long and no longer, and whose own errors have the form of
    all."""

    head_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._end(400, "malformed", "Expected a request of HTTP/1.1, but this is none.")

    def _await_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._end_for_slowness)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_for_slowness(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            message = f"Expected the head of a request within {self.head_seconds:g} seconds, but it did not come."
            self._end(408, "too_slow", message)

    def _end(self, status: int, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps(content(code, message)).encode()
        phrase = {400: "Bad Request", 408: "Request Timeout"}[status]
        head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        self.transport.close()


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Signals that stopped the server, which raises them again at its end, do nothing more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
