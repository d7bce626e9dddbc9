"""Questions about images for chat models, and a client for OpenAI-compatible servers (vLLM, SGLang, hosted ones)."""

from __future__ import annotations

import base64
import io
import itertools
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from PIL import Image

from llava_reward_guide.images import as_rgb
from llava_reward_guide.packages import require

from ...smc import unknown
from ..base import RewardError


MIN_SIDE = 28
"""Image servers of the Qwen family refuse images smaller than one merged patch, 28 x 28 pixels."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """Images first, in order, then the text.

    Attributes:
        optional: fields of the request body that a server may refuse, such as `logprobs`; it is then asked without.
    """

    images: tuple[Image.Image, ...]
    text: str
    optional: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        text: the reply; None if there is none.
        first_token: token -> natural log of its probability, the most likely first tokens of the reply; None if
            unknown.
        error: why there is no reply, in words.
        failed: whether the request itself failed, after all retries.
    """

    text: str | None
    first_token: Mapping[str, float] | None = None
    error: str | None = None
    failed: bool = False


class Chat(Protocol):
    """A chat model that looks at images."""

    model: str

    def ask(self, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        """An answer for each question, of at most so many tokens, decoded greedily."""
        ...


class ChatClient:
    """Asks an OpenAI-compatible server, several questions at a time.

    Requests that fail in passing (no connection, timeout, status 408, 409, 429 or 5xx) are repeated with exponential
    backoff, or after the time the server asks for (`Retry-After`); what still fails is an `Answer` with an error.

    Args:
        model: name under which the server serves it.
        base_url: of the server, with its `/v1`. A user and password in it are sent and never shown. None for the
            environment variable `OPENAI_BASE_URL`, or vLLM's address on this machine, http://127.0.0.1:8000/v1.
        api_key_env: name of the environment variable that holds the key. It is read once and never shown; a server
            that wants no key needs none.
        concurrency: requests under way at a time, at least 1.
        max_retries: repetitions of a failing request, at least 0.
        timeout: seconds the server may keep silent before a request counts as failed.
        image_format: 'png', which is lossless, or 'jpeg' (quality 95), a tenth of the size.
        extra_body: further fields of the request body, of the server's own or in place of ours; None leaves one out.
            Hosted models that want `max_completion_tokens`: {"max_tokens": None, "max_completion_tokens": 1024}.

    Raises:
        ImportError: without the `openai` package.
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        max_retries: int = 4,
        timeout: float = 120.0,
        image_format: str = "png",
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        require("openai")
        import openai

        if concurrency < 1 or max_retries < 0 or not timeout > 0:
            raise ValueError(
                "Expected `concurrency` to be at least 1, `max_retries` at least 0 and `timeout` above 0, but got "
                f"{concurrency}, {max_retries} and {timeout}."
            )
        if image_format not in ("png", "jpeg"):
            raise unknown("image format", image_format, ("png", "jpeg"))
        self.model, self.concurrency, self.image_format = model, concurrency, image_format
        self.base_url, credentials = _without_credentials(
            base_url or os.environ.get("OPENAI_BASE_URL") or "http://127.0.0.1:8000/v1"
        )
        self.api_key_env = api_key_env
        self.extra_body = dict(extra_body or {})
        self.refused: set[str] = set()
        """Optional fields the server has refused; they are not sent again."""
        self._lock = threading.Lock()
        # The client insists on a key; servers that want none ignore it.
        self._client = openai.OpenAI(
            api_key=os.environ.get(api_key_env) or "none",
            base_url=self.base_url,
            default_headers=credentials,
            max_retries=max_retries,
            timeout=timeout,
        )

    def __repr__(self) -> str:
        return f"ChatClient(model={self.model!r}, base_url={self.base_url!r})"

    def ask(self, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        """See `Chat`.

        Raises:
            RewardError: if the server refuses the key or does not know the model.
        """
        if not questions:
            return []
        with ThreadPoolExecutor(min(self.concurrency, len(questions))) as executor:
            return list(executor.map(self._ask, questions, itertools.repeat(max_tokens)))

    def _ask(self, question: Question, max_tokens: int) -> Answer:
        import openai

        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(image, self.image_format)}} for image in question.images
        ]
        content.append({"type": "text", "text": question.text})
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        optional = {name: value for name, value in question.optional.items() if name not in self.refused}
        try:
            try:
                return self._send({**body, **optional})
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if not optional:
                    raise
                answer = self._send(body)
                with self._lock:
                    if not self.refused.issuperset(optional):
                        logger.warning("%s refuses %s; asking without.", self.base_url, ", ".join(optional))
                    self.refused |= optional.keys()
                return answer
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            # The server's own words may quote the key.
            raise RewardError(
                f"{self.base_url} refused the key (status {error.status_code}). Expected one that is valid there in "
                f"the environment variable {self.api_key_env}."
            ) from None
        except openai.NotFoundError as error:
            raise RewardError(
                f"{self.base_url} does not know the model {self.model!r}, or the address is not that of an "
                f"OpenAI-compatible server, which usually ends in /v1. ({self._without_key(error.message)})"
            ) from None
        except openai.APIError as error:
            reason = self._without_key(error.message).rstrip(".")[:300]
            return Answer(None, error=f"{type(error).__name__} at {self.base_url}: {reason}", failed=True)

    def _send(self, body: dict[str, Any]) -> Answer:
        body = {name: value for name, value in {**body, **self.extra_body}.items() if value is not None}
        response = self._client.chat.completions.with_raw_response.create(
            model=body.pop("model"), messages=body.pop("messages"), extra_body=body
        )
        return _answer(response.http_response)

    def _without_key(self, message: str) -> str:
        return message.replace(self._client.api_key, "***") if self._client.api_key != "none" else message


def _answer(response: Any) -> Answer:
    """What a successful HTTP response says; servers and what stands between may send anything."""
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return Answer(None, error="a response without a chat completion")
    try:
        alternatives = choice["logprobs"]["content"][0]["top_logprobs"]
        first_token = {entry["token"]: float(entry["logprob"]) for entry in alternatives} or None
    except (ValueError, LookupError, TypeError):
        first_token = None
    if not isinstance(text, str):
        return Answer(None, first_token, error="a reply without text")
    return Answer(text, first_token)


def _without_credentials(url: str) -> tuple[str, dict[str, str]]:
    """A URL without user and password, which messages and logs would show, and the header that sends them instead."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    basic = base64.b64encode(unquote(credentials).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {basic}"}


def check_recordable(options: Mapping[str, Any]) -> None:
    """Make sure that the options of a reward may be written down beside results.

    Raises:
        ValueError: if `base_url` or `url` holds a user or password.
    """
    if _without_credentials(str(options.get("url", "")))[1]:
        raise ValueError(
            "Expected `url` without a user and password, as options are recorded with the results. A server's key "
            "belongs into the environment variable FK_STEER_API_KEY."
        )
    if _without_credentials(str(options.get("base_url", "")))[1]:
        raise ValueError(
            "Expected `base_url` without a user and password, as options are recorded with the results. Put the whole "
            "address into the environment variable OPENAI_BASE_URL instead."
        )


def data_url(image: Image.Image, image_format: str = "png") -> str:
    """An image as 'data:image/...;base64,...', RGB, no side shorter than `MIN_SIDE` pixels."""
    image = as_rgb(image)
    if min(image.size) < MIN_SIDE:
        image = image.resize([max(side, MIN_SIDE) for side in image.size], Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    # The most PNG can do takes longer than sending what it saves.
    image.save(buffer, image_format, **({"quality": 95} if image_format == "jpeg" else {"compress_level": 1}))
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
