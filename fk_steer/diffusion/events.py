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
        details: (P, K) what the scores were made of, by name of each leaf that says so, see `Reward.details`.
        ancestors: (P, M) indices in [0, K) of the particles that those alive now continue; from K on, remembered ones.
        slots_after: (P, M) where they live.
        parents: (P, M) the slot in which the ancestor of each was seen.
        parent_events: (P, M) the event at which it was seen there.
        roots: (P, M) the initial particle that each descends from.
        decision: the search's plan, or for the final images its outcome.
        nfe: denoiser rows run so far.
        reward_calls: images scored so far.
        thumbnails: (P, K) small pictures as 'data:' URLs, where they are kept.
    """

    step: int
    num_steps: int
    timestep: float | None
    prompts: tuple[str, ...]
    slots: Tensor
    rewards: Tensor
    scores: dict[str, Tensor]
    details: dict[str, list[list[dict[str, float]]]]
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
        """The x0 predictions that were scored, decoded once more: (P, K, 3, H, W), or of videos (P, K, F, 3, H, W),
        float in [0, 1] on the CPU."""
        with torch.no_grad():
            return self._decode()

    def stop(self) -> None:
        """End the run here: the x0 predictions of the particles that go on become its images, and the denoiser does not
        run again."""
        self._stop()


class Observer(Protocol):
    """Hears of every scoring event."""

    def __call__(self, event: ScoringEvent, /) -> Any: ...
