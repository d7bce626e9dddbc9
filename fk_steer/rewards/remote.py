"""A reward of another process, environment or machine: what a server of `fk-steer serve` makes of the images."""

from __future__ import annotations

import io
import logging
import math
import os
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_reward_guide.images import as_rgb

from ..smc import integer, real, unknown
from .base import Images, MissingScoreError, Reward, RewardError, check_one_prompt_per_image
from .card import RewardCard
from .images import to_uint8
from .loading import RewardLoadError


AGAIN = (408, 425, 429, 502, 503, 504)
"""Statuses of what may be had a moment later."""

LONGEST_WAIT = 30.0
"""Seconds between two attempts, at most."""

_FACTS = {"relative", "standardize", "default_lmbda", "card"}
"""What a server tells of a reward, among others."""

_PNG = ("1", "P", "L", "LA", "RGBA", "RGB")
"""Modes that a PNG file keeps."""

logger = logging.getLogger(__name__)


class RemoteReward(Reward):
    """A reward that runs elsewhere: in another environment, on another GPU or machine, behind `fk-steer serve`.

    ```py
    steer(pipe, load_reward("remote", url="http://127.0.0.1:8008", reward="hps"))
    ```

    Images go there as PNG files, which are lossless, and come back as numbers, so that the scores are those that the
    same reward gives in this process. A reward that compares is sent all particles of a prompt in one request. What
    fails in passing (no connection once the server was there, a timeout, status 408, 425, 429, 502, 503 or 504) is
    tried again with growing waits, or after the time that the server asks for.

    Args:
        url: of the server, without a user, a password or a query: options are written down beside results.
        reward: the name under which it is served; None if there is one only.
        api_key_env: name of the environment variable that holds the server's key, which is sent with each request and
            never kept; a server without a key needs none.
        batch_size: images of a request, at least 1.
        concurrency: requests under way at a time, at least 1.
        max_retries: repetitions of a failing request, at least 0.
        timeout: seconds that the server may keep silent before a request counts as failed.

    Attributes:
        served: what the server tells about the reward, as it stands at its path /rewards.

    Raises:
        ValueError: for a URL of another form, a reward that is not served, or a number out of range.
        RewardLoadError: if there is no such server, or it refuses the key.
        RewardError: when called, if the server refuses the images, or fails for good.
    """

    name = "remote"
    card: RewardCard = RewardCard(
        summary="What a reward on a server of `fk-steer serve` makes of the image, in another process or elsewhere.",
        licence="the reward's",
    )
    served: Mapping[str, Any]

    def __init__(
        self,
        url: str,
        reward: str | None = None,
        api_key_env: str = "FK_STEER_API_KEY",
        batch_size: int = 8,
        concurrency: int = 4,
        max_retries: int = 6,
        timeout: float = 120.0,
    ) -> None:
        self.url = _checked(url)
        self.api_key_env = api_key_env
        self.batch_size, self.concurrency = integer("batch_size", batch_size, 1), integer("concurrency", concurrency, 1)
        self.max_retries, self.timeout = integer("max_retries", max_retries, 0), real("timeout", timeout, 0.001)
        self._connect()
        self.served, self.most, self.most_bytes = self._look_up(reward)
        self.reward = str(self.served["name"])
        self.relative, self.standardize = bool(self.served["relative"]), bool(self.served["standardize"])
        self.default_lmbda = self.served["default_lmbda"]
        self.card = self._own_card()

    def __repr__(self) -> str:
        return f"RemoteReward({self.url!r}, {self.reward!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Connections stay behind; a copy makes its own."""
        return {name: value for name, value in vars(self).items() if name not in ("_client", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """The score of each image, None where a judge had none; of a reward that compares, the image's file."""
        check_one_prompt_per_image(images, prompts)
        files = [_png(image) for image in to_uint8(images, "cpu")] if isinstance(images, Tensor) else _files(images)
        if self.relative:
            return files
        return [score for scores in self._ask_all(self._portions(files, prompts)) for score in scores]

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        """The scores of all particles, those that a judge had none for replaced by the mean of the others.

        Raises:
            MissingScoreError: if there is no score for any image of a prompt.
            RewardError: see the class.
        """
        kept: list[Any] = list(encodings)
        if not self.relative:
            groups = [[kept[i] for i in group.tolist()] for group in members]
            return [self._complete(scores, prompt) for scores, prompt in zip(groups, prompts)]
        # In the order in which they would be compared here: a judge may prefer a place.
        orders = [group.argsort(stable=True) for group in members]
        requests = [
            ([kept[i] for i in group[order].tolist()], [prompt] * len(group))
            for group, order, prompt in zip(members, orders, prompts)
        ]
        found = [self._complete(scores, prompt) for scores, prompt in zip(self._ask_all(requests), prompts)]
        return [scores[order.argsort()] for scores, order in zip(found, orders)]

    def scores_or_none(self, images: Images, prompts: Sequence[str]) -> list[float | None]:
        """The scores of images, None where a judge had none; see `fk_steer.rewards.judge.scores_or_none`."""
        return list(self(images, prompts).tolist() if self.relative else self.encode(images, prompts))

    def _portions(self, files: Sequence[bytes], prompts: Sequence[str]) -> list[tuple[list[bytes], list[str]]]:
        """Images and prompts of requests, none larger than is asked for, or than the server takes."""
        portions: list[tuple[list[bytes], list[str]]] = []
        size = 0
        for file, prompt in zip(files, prompts):
            # Beside the files there is some text.
            needed = len(file) + 4 * len(prompt) + 1000
            if (
                not portions
                or len(portions[-1][0]) == min(self.batch_size, self.most)
                or size + needed > self.most_bytes
            ):
                portions.append(([], []))
                size = 0
            portions[-1][0].append(file)
            portions[-1][1].append(prompt)
            size += needed
        return portions

    def _complete(self, scores: list[float | None], prompt: str) -> Tensor:
        known = [score for score in scores if score is not None]
        if not known:
            raise MissingScoreError(f"'{self.reward}' at {self.url} had no score for any image of {prompt!r}.")
        if len(known) < len(scores):
            missing = len(scores) - len(known)
            logger.warning("'%s' had no score for %d of %d images of %r.", self.reward, missing, len(scores), prompt)
        mean = sum(known) / len(known)
        return torch.tensor([mean if score is None else score for score in scores], dtype=torch.float64)

    def _connect(self) -> None:
        self._lock, self._process, self._client = threading.Lock(), os.getpid(), self._new_client()

    def _new_client(self) -> httpx2.Client:
        return httpx2.Client(
            timeout=httpx2.Timeout(self.timeout, connect=min(10.0, self.timeout)),
            limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
        )

    @property
    def client(self) -> httpx2.Client:
        """What sends requests; after a fork another one, as two processes cannot share connections."""
        with self._lock:
            if self._process != os.getpid():
                self._process, self._client = os.getpid(), self._new_client()
            return self._client

    def _look_up(self, reward: str | None) -> tuple[Mapping[str, Any], int, int]:
        """What the server tells of a reward, and how many images, and bytes, it takes at a time."""
        try:
            response = self._send("GET", "/rewards", attempts=1)
        except RewardError as error:
            raise RewardLoadError(str(error)) from error
        try:
            told = response.json()
            served = {str(one["name"]): one for one in told["rewards"]}
            most, most_bytes = (int(told["limits"][name]) for name in ("images", "bytes"))
            complete = all(one.keys() >= _FACTS for one in served.values())
        except (ValueError, LookupError, TypeError, AttributeError):
            complete = False
        if not complete or not served:
            raise RewardLoadError(self._stranger("its /rewards is not what one says"))
        if reward is None and len(served) > 1:
            raise ValueError(
                f"{self.url} serves several rewards: {', '.join(served)}. Say which is meant with the option `reward`."
            )
        name = next(iter(served)) if reward is None else reward
        if name not in served:
            raise unknown("reward", name, served, of=f" of {self.url}")
        return served[name], most, most_bytes

    def _own_card(self) -> RewardCard:
        told = self.served["card"]
        low_high = told.get("typical_range")
        return replace(
            type(self).card,
            summary=told.get("summary") or type(self).card.summary,
            paper=told.get("paper"),
            licence=told.get("licence"),
            typical_range=(float(low_high[0]), float(low_high[1])) if low_high else None,
            default_lmbda=self.default_lmbda,
        )

    def _ask_all(self, requests: Sequence[tuple[list[bytes], list[str]]]) -> list[list[float | None]]:
        if len(requests) <= 1:
            return [self._ask(*one) for one in requests]
        with ThreadPoolExecutor(min(self.concurrency, len(requests))) as executor:
            return list(executor.map(lambda one: self._ask(*one), requests))

    def _ask(self, files: list[bytes], prompts: list[str]) -> list[float | None]:
        parts = [("images", (f"{place}.png", file, "image/png")) for place, file in enumerate(files)]
        response = self._send("POST", "/score", data={"prompts": prompts, "rewards": [self.reward]}, files=parts)
        try:
            scores = [None if one is None else float(one) for one in response.json()["scores"][self.reward]]
        except (ValueError, LookupError, TypeError):
            raise RewardError(self._stranger("its reply holds no scores")) from None
        if len(scores) != len(files) or any(score is not None and math.isnan(score) for score in scores):
            raise RewardError(
                f"Expected {self.url} to return {len(files)} scores of '{self.reward}', but got {len(scores)}, or "
                "some that are no numbers."
            )
        return scores

    def _send(self, method: str, path: str, attempts: int | None = None, **content: Any) -> httpx2.Response:
        """A reply of status 200.

        Raises:
            RewardError: if there is none.
        """
        attempts = self.max_retries + 1 if attempts is None else attempts
        for attempt in range(attempts):
            waiting, failure = min(LONGEST_WAIT, 0.25 * 2**attempt) * random.uniform(0.75, 1.25), ""
            try:
                response = self.client.request(method, self.url + path, headers=self._key(), **content)
            except httpx2.TransportError as error:
                failure = _why(error)
            else:
                if response.status_code == 200:
                    return response
                failure = self._said(response)
                if response.status_code not in AGAIN:
                    raise RewardError(failure)
                waiting = _asked_for(response) or waiting
            if attempt + 1 < attempts:
                sleep(min(waiting, LONGEST_WAIT))
        tries = f" in {attempts} attempts" if attempts > 1 else ""
        raise RewardError(
            f"Could not get an answer from {self.url}{tries}: {failure.rstrip('.')}. Does `fk-steer serve` run there?"
        )

    def _key(self) -> dict[str, str]:
        key = os.environ.get(self.api_key_env, "").strip()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _said(self, response: httpx2.Response) -> str:
        """What a reply of another status says."""
        if response.status_code in (401, 403) and _error(response)[0] in ("unauthorized", None):
            return (
                f"{self.url} refused the key (status {response.status_code}). Expected the server's key in the "
                f"environment variable {self.api_key_env}."
            )
        code, message = _error(response)
        if code is None:
            return self._stranger(f"it answered with the status {response.status_code}")
        return f"{self.url} answered: {message} (status {response.status_code})"

    def _stranger(self, why: str) -> str:
        return f"{self.url} is no server of `fk-steer serve`: {why}."


def _checked(url: str) -> str:
    """A URL without a slash at its end.

    Raises:
        ValueError: for another form; what may be secret in it is not shown.
    """
    expected = "Expected `url` to be the address of a server, such as http://127.0.0.1:8008,"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{expected} but got another form.") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            f"{expected} without a user, a password or a query, as options are recorded with the results. The key "
            "belongs into the environment variable FK_STEER_API_KEY."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{expected} but got {url!r}.")
    return url.rstrip("/")


def _why(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it took too long to answer"
    if isinstance(error, httpx2.ConnectError):
        return f"no connection ({error})"
    return f"the connection broke ({type(error).__name__})"


def _error(response: httpx2.Response) -> tuple[str | None, str]:
    """Code and message of an error of our servers; no code for one of others."""
    try:
        error = response.json()["error"]
        return str(error["code"]), str(error["message"]).rstrip(".")
    except (ValueError, LookupError, TypeError):
        return None, ""


def _asked_for(response: httpx2.Response) -> float | None:
    """The seconds after which a server wants to be asked again."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (LookupError, ValueError):
        return None


def _files(images: Sequence[Image.Image]) -> list[bytes]:
    return [_png(image if image.mode in _PNG else as_rgb(image)) for image in images]


def _png(image: Image.Image | Tensor) -> bytes:
    """A PNG file, lossless, of a PIL image, or of (3, H, W) uint8."""
    if isinstance(image, Tensor):
        image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    bare = image.copy()
    # Of what stands beside the pixels nothing is sent: they are the right way up already.
    bare.info = {}
    buffer = io.BytesIO()
    # The most PNG can do takes longer than sending what it saves.
    bare.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
