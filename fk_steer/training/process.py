"""How a model's training data are made noisy, what it predicts of them, and how wrong a prediction is.

Every model here sees x_t = a_t x_0 + s_t e, of an image's latents x_0 and standard normal noise e:

| target | a_t, s_t | is | its error, in terms of the noise's |
|---|---|---|---|
| epsilon | a² + s² = 1 | e | 1 |
| v_prediction | a² + s² = 1 | a e - s x_0 | 1 / a |
| sample | a² + s² = 1 | x_0 | s / a |
| flow | a + s = 1 | e - x_0 | 1 / a |

The last column: with x_t given, e follows from a predicted target, and an error of the target is one of e times that
factor, up to its sign. For v: x_t = a x_0 + s e and v = a e - s x_0 give e = s x_t + a v; for a flow e = x_t + a v.
Diffusion-DPO's bound weighs errors of the noise alike at all timesteps (equation 14 of arXiv 2311.12908, with a
constant weight), which is `weighting` 'epsilon'; 'target' weighs errors of the target alike, as the model itself was
trained, and so pays more attention to high noise, where what is in the image and where is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from .config import DENSITIES, WEIGHTINGS


TARGETS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class Process:
    """One model's noise.

    Attributes:
        signal: (T,) float32, a_t.
        level: (T,) float32, s_t.
        timesteps: (T,) what the model is told.
        target: what it predicts, one of `TARGETS`.
        weighting: what errors are measured of, 'epsilon' or 'target'.
    """

    signal: Tensor
    level: Tensor
    timesteps: Tensor
    target: str
    weighting: str = "target"

    def __post_init__(self) -> None:
        for name, known in (("target", TARGETS), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"Unknown `{name}` {getattr(self, name)!r}. Known: {', '.join(known)}.")

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents (B, ...) with noise (B, ...) at the moments `times` (B,), indices into the attributes."""
        return _rows(self.signal, times, latents) * latents + _rows(self.level, times, latents) * noise

    def truth(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(B, ...): what a perfect model predicts; see the module."""
        if self.target == "epsilon":
            return noise
        if self.target == "sample":
            return latents
        if self.target == "flow":
            return noise - latents
        return _rows(self.signal, times, latents) * noise - _rows(self.level, times, latents) * latents

    def errors(self, predicted: Tensor, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(B,) float32: mean squared errors of predictions (B, ...), in the weighting."""
        truth = self.truth(latents.float(), noise.float(), times)
        errors = (predicted.float() - truth).square().flatten(1).mean(1)
        if self.weighting == "epsilon":
            signal, level = self.signal.to(errors.device)[times], self.level.to(errors.device)[times]
            factor = {"epsilon": torch.ones_like(signal), "sample": signal / level}.get(self.target, signal)
            errors = errors * factor.square()
        return errors


def _rows(table: Tensor, times: Tensor, like: Tensor) -> Tensor:
    return table.to(like.device)[times].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def process_of(scheduler: Any, weighting: str) -> Process:
    """The noise that a pipeline's model was trained with, from its scheduler.

    Args:
        weighting: see the module; 'auto' is 'epsilon' for a model that predicts it and 'target' for others.

    Raises:
        ValueError: for a scheduler that says neither.
    """
    if "FlowMatch" in type(scheduler).__name__:
        # A fresh one: a pipeline's call leaves its own few timesteps behind.
        fresh = type(scheduler).from_config(scheduler.config)
        level = fresh.sigmas.float()[: fresh.config.num_train_timesteps]
        return Process(
            1 - level, level, fresh.timesteps.float(), "flow", "target" if weighting == "auto" else weighting
        )
    alphas, target = getattr(scheduler, "alphas_cumprod", None), scheduler.config.get("prediction_type")
    if alphas is None or target not in TARGETS:
        raise ValueError(
            f"Cannot train a model of {type(scheduler).__name__} that predicts {target!r}: expected a flow, or a "
            f"discrete schedule of noise with a model that predicts {', '.join(TARGETS[:-1])}."
        )
    if weighting == "auto":
        weighting = "epsilon" if target == "epsilon" else "target"
    alphas = alphas.float().cpu()
    return Process(alphas.sqrt(), (1 - alphas).sqrt(), torch.arange(len(alphas)), target, weighting)


def draw_times(process: Process, generator: torch.Generator, density: str, only: Sequence[int] | None = None) -> Tensor:
    """(1,) int64: a moment of the process at random.

    Args:
        density: 'uniform' over the T moments, or 'logit-normal' (Esser et al., arXiv 2403.03206), which prefers the
            middle; 'auto' is the first, and the second for flows.
        only: the timesteps to draw from; None for all.
    """
    total = len(process.timesteps)
    if only is not None:
        return torch.tensor(only)[torch.randint(len(only), (1,), generator=generator)]
    if density == "auto":
        density = "logit-normal" if process.target == "flow" else "uniform"
    if density not in DENSITIES:
        raise ValueError(f"Unknown `density` {density!r}. Known: {', '.join(DENSITIES)}.")
    if density == "uniform":
        return torch.randint(total, (1,), generator=generator)
    share = compute_density_for_timestep_sampling("logit_normal", 1, logit_mean=0.0, logit_std=1.0, generator=generator)
    return (share * total).long().clamp(max=total - 1)
