"""How a steered call is carried out, which by contract changes none of its results."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ..smc import Keywords, integer


@dataclass(frozen=True)
class Execution(Keywords):
    """How much is done at a time. Set all three for a peak memory that does not grow with the number of particles.

    Attributes:
        denoise_batch_size: rows per call of the denoiser; a particle is two rows under classifier-free guidance.
        decode_batch_size: latents per call of the decoder.
        reward_batch_size: images per call of the reward.
            None is everything at once; of videos, whose frames are many, one at a time for the decoder, and for the
            reward what the decoder gives at a time.

    Raises:
        ValueError: for anything but None or an integer of at least 1.
    """

    denoise_batch_size: int | None = None
    decode_batch_size: int | None = None
    reward_batch_size: int | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, integer(entry.name, getattr(self, entry.name), 1, optional=True))

    def for_videos(self) -> Execution:
        """The same sizes, for videos."""
        return self if self.decode_batch_size is not None else replace(self, decode_batch_size=1)

    @classmethod
    def in_batches(cls, size: int | None) -> Execution:
        """The same size for all three."""
        return cls(size, size, size)
