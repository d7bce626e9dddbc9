"""What a request asks for, read from a JSON body or a form of files, within limits while it comes in."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import RequestError, invalid, too_large
from .limits import Limits
from .memory import Held
from .schema import ScoreRequest


COPIES = {"application/json": 3, "multipart/form-data": 2}
"""Type of a body -> how often it is in memory while it is read."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        images: files, or URLs of files.
        prompts: one for each image.
        rewards: names; None for all.
    """

    images: Sequence[bytes | str]
    prompts: Sequence[str]
    rewards: Sequence[str] | None


class _Form(MultiPartParser):
    """Files stay in memory, which is counted, and never go to a disk."""

    spool_max_size = 2**62


async def read(request: Request, limits: Limits, held: Held) -> Asked:
    """Read a request.

    Raises:
        RequestError: for a body of another type, too much of anything, too little of it in time, or what cannot be
            understood.
        starlette.requests.ClientDisconnect: if the sender has left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in COPIES:
        raise RequestError(
            415,
            "unsupported_media_type",
            f"Expected a body of the type {' or '.join(COPIES)}, but got {kind or 'none'!r}.",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "unsupported_media_type", "Expected a body without Content-Encoding.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body:
        raise _body_too_large(limits)
    stream = _within(request, limits, held, COPIES[kind])
    try:
        async with asyncio.timeout(limits.body_seconds):
            asked = await (_form(request, stream, limits) if kind == "multipart/form-data" else _json(stream))
    except TimeoutError:
        raise RequestError(
            408, "too_slow", f"Expected the whole body within {limits.body_seconds:g} seconds, but it did not come."
        ) from None
    return _checked(asked, limits)


async def _within(request: Request, limits: Limits, held: Held, copies: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.body:
            raise _body_too_large(limits)
        held.add(copies * len(chunk))
        yield chunk


def _body_too_large(limits: Limits) -> RequestError:
    return too_large(f"Expected a body of at most {limits.body} bytes, but it has more. Send fewer images at a time.")


async def _json(stream: AsyncGenerator[bytes, None]) -> Asked:
    body = b"".join([chunk async for chunk in stream])
    try:
        # A large body would keep others waiting.
        asked = await asyncio.to_thread(ScoreRequest.model_validate_json, body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise RequestError(400, "malformed", f"Expected JSON, but {first['msg']}.") from None
        where = ".".join(map(str, first["loc"])) or "the body"
        raise invalid(f"`{where}`: {first['msg']}.") from None
    return Asked(asked.images, asked.prompts, asked.rewards)


async def _form(request: Request, stream: AsyncGenerator[bytes, None], limits: Limits) -> Asked:
    parser = _Form(
        request.headers,
        stream,
        max_files=limits.images,
        max_fields=2 * limits.images + 64,
        # Of a field that is no file: an image in base64 at most.
        max_part_size=limits.body,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith(("Too many", "Part exceeded")):
            raise too_large(f"Expected a smaller form: {error.message}") from None
        raise RequestError(400, "malformed", f"Expected a multipart form, but: {error.message}") from None
    try:
        fields: dict[str, list[str | UploadFile]] = {"images": [], "prompts": [], "rewards": []}
        for name, value in form.multi_items():
            if name not in fields:
                raise invalid(f"`{name[:100]}`: there is no such field. There are: {', '.join(fields)}.")
            fields[name].append(value)
        for name in ("prompts", "rewards"):
            if not all(isinstance(value, str) for value in fields[name]):
                raise invalid(f"`{name}`: expected texts, but got a file.")
        images = [value if isinstance(value, str) else value.file.read() for value in fields["images"]]
    finally:
        await form.close()
    prompts, rewards = ([str(value) for value in fields[name]] for name in ("prompts", "rewards"))
    return Asked(images, prompts, rewards or None)


def _checked(asked: Asked, limits: Limits) -> Asked:
    number = len(asked.images)
    if not number or not asked.prompts:
        raise invalid(f"`{'prompts' if number else 'images'}`: expected at least one, but got none.")
    if number > limits.images:
        raise too_large(f"Expected at most {limits.images} images, but got {number}. Send several requests.")
    if len(asked.prompts) not in (1, number):
        raise invalid(
            f"`prompts`: expected one for all images, or {number}, one for each, but got {len(asked.prompts)}."
        )
    if (longest := max(map(len, asked.prompts))) > limits.prompt:
        raise too_large(f"Expected prompts of at most {limits.prompt} characters, but got one of {longest}.")
    images = [_image(image, f"image {place}") for place, image in enumerate(asked.images, 1)]
    return Asked(images, list(asked.prompts) * (number if len(asked.prompts) == 1 else 1), asked.rewards)


def _image(image: bytes | str, name: str) -> bytes | str:
    """The file itself where it is in base64."""
    if isinstance(image, bytes) or image[:8].lower().startswith(("http://", "https://")):
        return image
    text = image
    if image[:5].lower() == "data:":
        head, comma, text = image.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise invalid(f"Expected {name} as a data: URL in base64, but it is another.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"Expected {name} to be a file in base64 or an http(s) URL, but it is neither.") from None
