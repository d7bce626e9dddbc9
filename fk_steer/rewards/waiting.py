"""Rewards that are async: what they return is waited for, wherever they are called.

All run in one event loop in a thread of its own, which stays: clients keep their connections from one call to the
next, and a loop that is running already where the call comes from, as in a notebook, is no hindrance.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


CONCURRENCY = 16
"""Of a list of awaitables, as many are under way at a time; so it is with the requests of chat judges."""


def settled(value: Any) -> Any:
    """What an async function returned, once it is there.

    Args:
        value: an awaitable, which is awaited; a list or tuple of awaitables, among which may be plain values, which are
            awaited together, at most `CONCURRENCY` at a time; anything else is returned as it is.

    Returns:
        The result, or a list of the results in their order. Gradients are not computed.

    Raises:
        Exception: what was raised there. What else was under way is then cancelled, as it is when waiting ends by an
            interrupt.
    """
    if not _waits(value):
        return value
    if threading.current_thread() is _LOOP.thread:
        # An async reward has called another one: the loop cannot wait for itself.
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(_run_once, value).result()
    future = asyncio.run_coroutine_threadsafe(_outcome(value, _current_device()), _LOOP.get())
    try:
        result, error = future.result()
    except BaseException:
        future.cancel()
        raise
    if error is not None:
        raise error
    return result


def waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls another and waits for what it returns."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return settled(function(*args, **kwargs))

    return call


class _Loop:
    """An event loop that runs in a thread, from when it is first needed; after a fork there is a new one."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self.thread is None or not self.thread.is_alive():
                self._loop = asyncio.new_event_loop()
                self.thread = threading.Thread(target=self._run, args=(self._loop,), name="async rewards", daemon=True)
                self.thread.start()
            return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        # Whether gradients are computed is a thread's own.
        torch.set_grad_enabled(False)
        asyncio.set_event_loop(loop)
        loop.run_forever()


_LOOP = _Loop()


def _waits(value: Any) -> bool:
    return inspect.isawaitable(value) or (isinstance(value, (list, tuple)) and any(map(inspect.isawaitable, value)))


async def _outcome(value: Any, device: int | None) -> tuple[Any, BaseException | None]:
    """The result or what was raised. An exit that was raised would end the loop, and nobody would hear of it."""
    if device is not None:
        torch.cuda.set_device(device)
    try:
        return await _result(value), None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


async def _result(value: Any) -> Any:
    if inspect.isawaitable(value):
        value = await value
        # An async function may return calls of others.
        return await _result(value) if _waits(value) else value
    free = asyncio.Semaphore(CONCURRENCY)

    async def one(item: Any) -> Any:
        async with free:
            return await item if inspect.isawaitable(item) else item

    tasks = [asyncio.ensure_future(one(item)) for item in value]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for item in value:
            # Those that had yet to be begun.
            if inspect.iscoroutine(item):
                item.close()
        raise


@torch.no_grad()
def _run_once(value: Any) -> Any:
    return asyncio.run(_result(value))


def _current_device() -> int | None:
    """Which CUDA device the caller uses, a thread's own; None before CUDA is."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None
