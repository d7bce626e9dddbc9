"""Loops over whole passes: which prompts are run again, and from which noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor


if TYPE_CHECKING:
    from .strategy import Strategy


@dataclass(frozen=True)
class Pass:
    """What came of a pass over some populations.

    Attributes:
        populations: their numbers.
        rewards: of their final images, in the order of `slots`; an image that stands for several particles is there
            once.
        slots: in which of the pass's rows of the population each image was made.
        rows: denoiser rows it took.
        saved: denoiser rows it did not take because prompts had reached the reward asked for.
    """

    populations: Sequence[int]
    rewards: Sequence[Sequence[float]]
    slots: Sequence[Sequence[int]]
    rows: int
    saved: int


class Passes(Protocol):
    """The passes of one call. The best images of all are what the call returns.

    Attributes:
        num_populations: P, one per prompt and image asked for.
    """

    @property
    def num_populations(self) -> int: ...

    def run(
        self,
        strategy: Strategy,
        populations: Sequence[int] | None = None,
        slots: Tensor | None = None,
        num_steps: int | None = None,
        sampler: str = "own",
    ) -> Pass:
        """Make a pass, and keep the better images.

        Args:
            strategy: what is run; unless it is the one that asks, with all its own passes.
            populations: those that are run, from other noise each time; None for all from the noise of the call.
            slots: (P, M) the rows of each population whose noise the M particles begin with, in place of all.
            num_steps: of the loop, in place of what the call asks for.
            sampler: 'own' for the pipeline's, 'dpmsolver++' for DPM-Solver++ of second order without noise, where the
                pipeline's model can be sampled with it.
        """
        ...
