"""From a request to scores."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import Request
from PIL.Image import Image

from ..rewards.base import RewardFunction
from ..smc import suggestion
from .batching import Batcher, Score
from .bodies import Asked, read
from .decoding import BYTES_PER_PIXEL, decoded, pixels_of
from .errors import RequestError, busy, invalid
from .fetching import Fetcher
from .limits import Limits
from .memory import Held, Memory
from .metrics import Metrics
from .schema import MostAtOnce, Rewards
from .scoring import Served, error_of, threads


DECODERS = 2
"""Images decoded at a time."""

logger = logging.getLogger(__name__)


class SenderLeft(Exception):
    """Nobody waits for the reply any more."""


class Service:
    """What a server does between reading a request and answering it.

    Args:
        rewards: name -> reward.
        limits: of requests.
        hosts: see `create_app`.
        private_hosts: see `create_app`.
        max_batch: see `create_app`.
        max_wait: see `create_app`.
        models: see `create_app`.

    Attributes:
        draining: whether the server is stopping.
    """

    def __init__(
        self,
        rewards: Mapping[str, RewardFunction],
        *,
        limits: Limits,
        hosts: Sequence[str],
        private_hosts: bool,
        max_batch: int,
        max_wait: float,
        models: Mapping[str, str],
    ) -> None:
        self.limits, self.metrics, self.memory = limits, Metrics(), Memory(limits.memory)
        self.served = {name: Served(name, reward, models.get(name)) for name, reward in rewards.items()}
        if not self.served:
            raise ValueError("Expected at least one reward to serve, but got none.")
        self.draining = False
        self._under_way = 0
        self._threads = threads(list(self.served.values()))
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="images")
        self._fetcher = Fetcher(hosts, private_hosts, limits)
        self._batchers = {
            name: Batcher(
                one.score,
                self._threads[one],
                max_batch=max_batch,
                max_wait=max_wait,
                max_queue=limits.queue,
                together=one.reward.relative,
                observe=partial(self.metrics.batch, name),
            )
            for name, one in self.served.items()
        }
        self.metrics.watch(
            {name: partial(_length, one) for name, one in self._batchers.items()},
            lambda: self.memory.used,
            lambda: self._under_way,
        )

    async def start(self) -> None:
        """Begin to score."""
        for batcher in self._batchers.values():
            batcher.start()

    async def stop(self) -> None:
        """Let go of threads and connections."""
        for batcher in self._batchers.values():
            await batcher.stop()
        for executor in {*self._threads.values(), self._decoders}:
            executor.shutdown(wait=False, cancel_futures=True)
        await self._fetcher.close()

    def facts(self) -> Rewards:
        """What is served, and what a request may hold."""
        most = MostAtOnce(
            images=self.limits.images,
            bytes=self.limits.body,
            pixels=self.limits.pixels,
            prompt_characters=self.limits.prompt,
        )
        return Rewards(rewards=[one.facts for one in self.served.values()], limits=most)

    async def scores(self, request: Request) -> dict[str, list[float | str | None]]:
        """The scores that a request asks for.

        Raises:
            RequestError: if there are none.
            SenderLeft: if the sender has.
            starlette.requests.ClientDisconnect: if it has before the whole body was there.
        """
        if self._under_way >= self.limits.requests:
            raise busy(f"There are {self._under_way} requests under way.")
        self._under_way += 1
        try:
            with self.memory.hold() as held:
                asked = await read(request, self.limits, held)
                return await _while_wanted(request, self._within_time(asked, held))
        finally:
            self._under_way -= 1

    async def _within_time(self, asked: Asked, held: Held) -> dict[str, list[float | str | None]]:
        names = self._names(asked.rewards)
        try:
            async with asyncio.timeout(self.limits.seconds):
                images = await self._images(asked, held)
                found = await _all([self._scored(name, images, asked.prompts) for name in names])
        except TimeoutError:
            raise RequestError(
                504, "too_long", f"Expected scores within {self.limits.seconds:g} seconds, but they took longer."
            ) from None
        return {name: [_as_json(score) for score in scores] for name, scores in zip(names, found)}

    def _names(self, rewards: Sequence[str] | None) -> list[str]:
        names = list(dict.fromkeys(rewards or self.served))
        for name in names:
            if name not in self.served:
                raise invalid(
                    f"`rewards`: there is no {name[:100]!r}. There are: {', '.join(self.served)}."
                    f"{suggestion(name[:100], self.served)}"
                )
        return names

    async def _images(self, asked: Asked, held: Held) -> list[Image]:
        names = [f"image {place}" for place in range(1, len(asked.images) + 1)]
        files = await _all([self._file(image, name, held) for image, name in zip(asked.images, names)])
        loop = asyncio.get_running_loop()

        async def image(data: bytes, name: str) -> Image:
            pixels = await loop.run_in_executor(self._decoders, pixels_of, data, name, self.limits.pixels)
            held.add(BYTES_PER_PIXEL * pixels)
            return await loop.run_in_executor(self._decoders, decoded, data, name)

        return await _all([image(data, name) for data, name in zip(files, names)])

    async def _file(self, image: bytes | str, name: str, held: Held) -> bytes:
        return image if isinstance(image, bytes) else await self._fetcher.fetch(image, name, held)

    async def _scored(self, name: str, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        try:
            return await self._batchers[name].scores(images, prompts)
        except Exception as error:
            told = error_of(name, error)
            if told.status == 500:
                logger.exception("The reward '%s' failed.", name)
            raise told from None


async def _while_wanted(request: Request, work: Any) -> Any:
    """What work comes to, unless the sender leaves before it is done."""
    task = asyncio.ensure_future(work)
    # With the body read, this comes when the sender leaves.
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise SenderLeft
        return task.result()
    finally:
        for one in (task, left):
            one.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _all(work: Sequence[Any]) -> list[Any]:
    """What all of it comes to; if some fails, the rest is cancelled, and the first error in order counts."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _length(batcher: Batcher) -> int:
    return batcher.queue


def _as_json(score: Score) -> float | str | None:
    if score is None or math.isfinite(score):
        return score
    return "Infinity" if score > 0 else "-Infinity"
