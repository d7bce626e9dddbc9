"""What is wrong with a request, as its sender is told."""

from __future__ import annotations

from collections.abc import Mapping


class RequestError(Exception):
    """A request that is answered by an error.

    Args:
        status: of HTTP.
        code: what it is in a word, for programs.
        message: what it is in a sentence that says what to change.
        headers: further ones of the reply.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


def busy(message: str, code: str = "busy") -> RequestError:
    """The error for what can be had in a moment."""
    return RequestError(503, code, f"{message} Try again in a second.", {"Retry-After": "1"})


def too_large(message: str) -> RequestError:
    """The error for more than a limit allows."""
    return RequestError(413, "too_large", message)


def invalid(message: str) -> RequestError:
    """The error for a request that cannot be done as it stands."""
    return RequestError(422, "invalid", message)


def content(code: str, message: str) -> dict[str, dict[str, str]]:
    """The body of every error."""
    return {"error": {"code": code, "message": message}}


STATUSES = {
    400: "The request cannot be read: it is no JSON, or no multipart form.",
    401: "The API key is missing or wrong.",
    403: "An image is at a host from which none are fetched.",
    408: "The request was not sent in time.",
    413: "There is more of something than a limit allows.",
    415: "The body is neither JSON nor a multipart form, or an image is of no format that is read.",
    422: "A field is missing or wrong, a reward is not served, or an image cannot be read.",
    500: "The reward failed.",
    502: "An image could not be fetched.",
    503: "Too much is under way; `Retry-After` says when to try again.",
    504: "The scores took too long.",
}
"""Status -> what it means, for the schema."""
