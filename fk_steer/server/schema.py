"""What is sent and what is answered, for the schema of the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ScoreRequest(BaseModel):
    """Images to be scored, as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[
        list[str],
        Field(min_length=1, description="Files in base64, as they are or as data: URLs, or http(s) URLs of hosts that "
              "the server fetches from."),
    ]  # fmt: skip
    prompts: Annotated[list[str], Field(min_length=1, description="One for all images, or one for each.")]
    rewards: Annotated[
        list[str] | None, Field(min_length=1, description="Names from /rewards; all of them if left out.")
    ] = None


class ScoreReply(BaseModel):
    """Scores of images."""

    scores: Annotated[
        dict[str, list[float | Literal["Infinity", "-Infinity"] | None]],
        Field(description="Name of a reward -> a score for each image; null where a judge had none."),
    ]


class Card(BaseModel):
    """Facts about a reward."""

    summary: str | None
    paper: str | None
    hub_id: Annotated[str | None, Field(description="Where its weights are published, or the name of others.")]
    licence: str | None
    typical_range: tuple[float, float] | None


class RewardFacts(BaseModel):
    """A reward that is served."""

    name: str
    model: Annotated[str | None, Field(description="The id of the model behind it, where there is one.")]
    relative: Annotated[bool, Field(description="Whether it compares the images of a prompt within a request.")]
    standardize: bool
    default_lmbda: Annotated[float | None, Field(description="A lambda that suits its scale.")]
    card: Card


class MostAtOnce(BaseModel):
    """What a request may hold."""

    images: int
    bytes: int
    pixels: int
    prompt_characters: int


class Rewards(BaseModel):
    """What is served."""

    rewards: list[RewardFacts]
    limits: MostAtOnce


class Status(BaseModel):
    """How the server is."""

    status: Literal["ok", "ready", "stopping"]


class ErrorFacts(BaseModel):
    """What is wrong, in a word and in a sentence."""

    code: str
    message: str


class ErrorReply(BaseModel):
    """The body of every error."""

    error: ErrorFacts


FORM: dict[str, Any] = {
    "type": "object",
    "required": ["images", "prompts"],
    "properties": {
        "images": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "Files.",
        },
        "prompts": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string"},
            "description": "One for all images, or one for each.",
        },
        "rewards": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Names from /rewards; all of them if left out.",
        },
    },
}
"""Images to be scored, as a form of files."""
