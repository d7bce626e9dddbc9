"""The most that can be asked of a server of rewards."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..smc import integer, real


@dataclass(frozen=True)
class Limits:
    """The most that can be asked of a server of rewards.

    Attributes:
        body: bytes of a request, and of an image that is fetched.
        images: number of images of a request.
        pixels: number of pixels of an image, whatever its file's size.
        prompt: characters of a prompt.
        requests: requests under way at a time.
        queue: images that wait for a reward.
        memory: bytes of bodies and of images read from them, of all requests under way.
        head_seconds: time to send the head of a request.
        body_seconds: time to send the body of a request.
        fetch_seconds: time to fetch an image.
        seconds: time from the whole body to the scores.

    Raises:
        ValueError: for a number out of range.
    """

    body: int = 32 * 2**20
    images: int = 64
    pixels: int = 4096 * 4096
    prompt: int = 10_000
    requests: int = 512
    queue: int = 1024
    memory: int = 2**30
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    fetch_seconds: float = 10.0
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name.endswith("seconds"):
                object.__setattr__(self, one.name, float(real(one.name, value, 0.001)))
            else:
                object.__setattr__(self, one.name, integer(one.name, value, 1))
        if self.images > self.queue:
            raise ValueError(
                f"Expected the queue to take the images of a request, {self.images}, but it takes {self.queue}."
            )
