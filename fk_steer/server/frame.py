"""What is around every request: counts and times, and that a sender can read why it was refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics


DISCARDED = 64 * 2**20
PATIENCE = 2.0
"""Bytes of a refused body that are still read, and for how many seconds: a sender whose connection is closed while it
sends may never see the answer."""


class Frame:
    """Counts requests, and reads what is left of the body of one that is refused before it is answered.

    Args:
        app: that answers.
        metrics: that are counted.
        paths: that have counts of their own.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        start, asked, ended = time.perf_counter(), False, False
        # Who waits to be told to send the body has not begun.
        waits = any(name == b"expect" for name, _ in scope["headers"])

        async def receive_and_note() -> Message:
            nonlocal asked, ended
            asked = True
            message = await receive()
            ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def send_in_peace(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
                if message["status"] >= 400 and not ended:
                    if asked or not waits:
                        await _discard(receive_and_note, lambda: ended)
                    if not ended:
                        # Otherwise the rest would be waited for.
                        message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive_and_note, send_in_peace)


async def _discard(receive: Receive, ended: Callable[[], bool]) -> None:
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not ended() and size < DISCARDED:
                size += len((await receive()).get("body", b""))
