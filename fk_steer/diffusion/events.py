"""What can be seen of a scoring event from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..report.trace import Trace
from ..search import Outcome, Plan


@dataclass(frozen=True)
class ScoringEvent:
    """A scoring event: K particles of each of P populations were scored, M go on.

    Attributes:
        step: index of the denoising step whose x0 predictions were scored, counted from zero; the number of steps for
            the final images.
        num_steps: of the loop.
        timestep: of the step, as the scheduler counts; None for the final images.
        prompts: P texts, as the reward reads them.
        slots: (P, K) which of the pipeline's rows of the prompt were alive.
        rewards: (P, K) float64 on the CPU.
        scores: what they were made from: (P, K) by name of each leaf of the reward.
        ancestors: (P, M) indices in [0, K) of the particles that those alive now continue; from K on, remembered ones.
        slots_after: (P, M) where they live.
        parents, parent_events: (P, M) slot and event at which each was seen.
        roots: (P, M) the initial particle that each descends from.
        decision: the search's plan, or for the final images its outcome.
        nfe, reward_calls: denoiser rows run and images scored so far.
        thumbnails: (P, K) small pictures as 'data:' URLs, where they are kept.
    """

    step: int
    num_steps: int
    timestep: float | None
    prompts: tuple[str, ...]
    slots: Tensor
    rewards: Tensor
    scores: dict[str, Tensor]
    ancestors: Tensor
    slots_after: Tensor
    parents: Tensor
    parent_events: Tensor
    roots: Tensor
    decision: Plan | Outcome
    nfe: int
    reward_calls: int
    thumbnails: list[list[str]]
    _decode: Callable[[], Tensor]
    _trace: Callable[[], Trace]
    _stop: Callable[[], None]

    @property
    def final(self) -> bool:
        """Whether the final images were scored."""
        return self.timestep is None

    @property
    def progress(self) -> float:
        """The share of the loop's denoiser calls made, in (0, 1]; 1 for the final images."""
        return 1.0 if self.final else (self.step + 1) / self.num_steps

    @property
    def trace(self) -> Trace:
        """The trace up to this event, with the passes before this one: a snapshot that does not grow. Without seconds
        of the pass at hand, which are known at its end."""
        return self._trace()

    def __repr__(self) -> str:
        where = "the final images" if self.final else f"step {self.step} of {self.num_steps}"
        populations, particles = self.rewards.shape
        return f"ScoringEvent({where}: {particles} particles of {populations} populations)"

    def predictions(self) -> Tensor:
        """(P, K, 3, H, W), or of videos (P, K, F, 3, H, W), float in [0, 1] on the CPU: the x0 predictions that were
        scored, decoded once more."""
        with torch.no_grad():
            return self._decode()

    def stop(self) -> None:
        """End the run here: the x0 predictions of the particles that go on become its images, and the denoiser does not
        run again."""
        self._stop()


class Observer(Protocol):
    """Hears of every scoring event."""

    def __call__(self, event: ScoringEvent, /) -> Any: ...
