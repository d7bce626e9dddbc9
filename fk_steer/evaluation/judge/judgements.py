"""Human judgements of images, videos and texts, whatever the format they are published in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Kind(str, Enum):
    """What humans were asked, and so which statistics there are."""

    preferences = "preferences"
    """Which of the images of a prompt is better; nothing is said of equal ones."""
    votes = "votes"
    """Which of two images is better, where 'equally good' is an answer."""
    labels = "labels"
    """1 or 0 for each image."""
    ratings = "ratings"
    """A number for each image, comparable between prompts."""


class Subject(str, Enum):
    """What was judged."""

    images = "images"
    videos = "videos"
    edits = "edited images"
    """Images beside the one they were made from; the prompt is the instruction."""
    answers = "answers"
    """Texts about an image; the prompt is the question."""


@dataclass(frozen=True)
class Judgement:
    """Images that were judged together, or videos, or texts about an image.

    Attributes:
        images: paths of what was judged, relative to the folder of images; of texts, that of the images shown.
        prompts: the prompt of each thing that was judged.
        human: what humans made of each, higher is better.
        cluster: what judgements that depend on each other have in common: the prompt, or its id.
        answers: the texts that were judged, if it was texts.
        before: path of the image that was edited, if it was edited images.
        groups: the part of the data that this belongs to, by each of `JudgeData.groupings`.
    """

    images: tuple[str, ...]
    prompts: tuple[str, ...]
    human: tuple[float, ...]
    cluster: str
    answers: tuple[str, ...] = ()
    before: str | None = None
    groups: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all that is shown."""
        return self.images if self.before is None else (self.before, *self.images)


@dataclass(frozen=True)
class JudgeData:
    """A data set of human judgements.

    Attributes:
        format: the name of its format in `FORMATS`.
        kind: what was asked.
        judgements: the answers.
        subject: what was judged.
        groupings: ways in which judgements are divided into groups, each with a mean of its own; the first word of the
            columns' names, '' for the published way.
        left_out: reason -> how many entries were left out for it.
    """

    format: str
    kind: Kind
    judgements: list[Judgement]
    subject: Subject = Subject.images
    groupings: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
