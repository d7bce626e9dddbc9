"""Scoring images of several requests together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from PIL.Image import Image

from .errors import busy


Score = float | None
Scorer = Callable[[Sequence[Image], Sequence[str]], list[Score]]


@dataclass(eq=False)
class _Job:
    """What a request wants of one reward."""

    images: Sequence[Image]
    prompts: Sequence[str]
    future: asyncio.Future[list[Score]]
    arrived: float
    left: int = 0
    """Images whose scores are not there yet."""
    scores: list[Score] = field(default_factory=list)


class Batcher:
    """Collects images until there are enough for a batch, or the first of them has waited long enough.

    A batch that fails is scored again request by request, so that what one of them sent is no other's error. What
    nobody waits for any more is left out.

    Args:
        score: scores B images for B prompts; it runs in `executor`.
        executor: where; of rewards that share a device, the same.
        max_batch: images of a batch.
        max_wait: seconds that an image waits for others.
        max_queue: images that may wait.
        together: whether images of a request have to be scored together, and apart from others'.
        observe: told the number of images of each batch, and the seconds it took.
    """

    def __init__(
        self,
        score: Scorer,
        executor: Executor,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        together: bool = False,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._score, self._executor, self._observe = score, executor, observe
        self.max_batch, self.max_wait, self.max_queue, self.together = max_batch, max_wait, max_queue, together
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def queue(self) -> int:
        """How many images wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to score, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End, without finishing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def scores(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """The scores of images for their prompts, None where there are none to be had.

        Raises:
            RequestError: if too many images wait.
            Exception: what the scorer raised for these images.
        """
        if len(self._waiting) + len(images) > self.max_queue:
            raise busy(f"There are {len(self._waiting)} images waiting, of at most {self.max_queue}.")
        loop = asyncio.get_running_loop()
        job = _Job(images, prompts, loop.create_future(), loop.time(), len(images), [None] * len(images))
        self._waiting.extend((job, place) for place in range(len(images)))
        self._news.set()
        return await job.future

    async def _work(self) -> None:
        while True:
            self._drop_abandoned()
            if not self._waiting:
                await self._heard(None)
                continue
            if not self.together:
                await self._fill()
            if batch := self._take():
                await self._run(batch)

    def _drop_abandoned(self) -> None:
        while self._waiting and self._waiting[0][0].future.done():
            self._waiting.popleft()

    async def _heard(self, seconds: float | None) -> bool:
        """Whether something came in time."""
        self._news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _fill(self) -> None:
        end = self._waiting[0][0].arrived + self.max_wait
        while len(self._waiting) < self.max_batch:
            left = end - asyncio.get_running_loop().time()
            if left <= 0 or not await self._heard(left):
                return

    def _take(self) -> list[tuple[_Job, int]]:
        batch: list[tuple[_Job, int]] = []
        while self._waiting:
            job, place = self._waiting[0]
            whole = not any(one is job for one, _ in batch) if self.together else len(batch) >= self.max_batch
            if batch and whole:
                break
            self._waiting.popleft()
            if not job.future.done():
                batch.append((job, place))
        return batch

    async def _run(self, batch: list[tuple[_Job, int]]) -> None:
        jobs = list(dict.fromkeys(job for job, _ in batch))
        try:
            self._give(batch, await self._scored(batch))
        except Exception as error:
            if len(jobs) == 1:
                _fail(jobs[0], error)
                return
            for job in jobs:
                own = [(one, place) for one, place in batch if one is job]
                try:
                    self._give(own, await self._scored(own))
                except Exception as of_job:
                    _fail(job, of_job)

    async def _scored(self, batch: list[tuple[_Job, int]]) -> list[Score]:
        loop = asyncio.get_running_loop()
        images = [job.images[place] for job, place in batch]
        prompts = [job.prompts[place] for job, place in batch]
        start = loop.time()
        scores = await loop.run_in_executor(self._executor, self._score, images, prompts)
        self._observe(len(batch), loop.time() - start)
        return scores

    @staticmethod
    def _give(batch: list[tuple[_Job, int]], scores: list[Score]) -> None:
        for (job, place), score in zip(batch, scores, strict=True):
            job.scores[place] = score
            job.left -= 1
            if not job.left and not job.future.done():
                job.future.set_result(job.scores)


def _fail(job: _Job, error: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(error)
