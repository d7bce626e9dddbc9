"""The trace of a run, written by an observer of its events."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..files import FPS, webp
from ..report.trace import Trace, TraceEvent
from ..search import Plan
from ..smc import Weights
from .events import ScoringEvent


MOST_FRAMES = 16
"""Of a small animation."""


class Recorder:
    """Appends every event to a trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def __call__(self, event: ScoringEvent) -> None:
        P = len(event.rewards)
        decision, plan = event.decision, event.decision if isinstance(event.decision, Plan) else None
        weights = decision.weights or Weights.uniform(*event.rewards.shape)
        lmbda = torch.full((P,), torch.nan) if decision.lmbda is None else decision.lmbda
        # Of final images there always are some: equal ones, without a lambda, where the search has none.
        weighed = decision.weights is not None and (plan is not None or decision.lmbda is not None)
        nobody = torch.zeros(P, dtype=torch.bool)
        stopped = nobody if plan is None or plan.stopped is None else plan.stopped
        if plan is None and self.trace.events:
            stopped = torch.tensor(self.trace.events[-1].stopped)
        resampled = nobody
        if plan is not None:
            resampled = _moved(event) if plan.resampled is None else plan.resampled
        self.trace.events.append(
            TraceEvent(
                step=event.step,
                progress=event.progress,
                timestep=event.timestep,
                lmbda=lmbda.tolist(),
                rewards=event.rewards.tolist(),
                scores={name: score.tolist() for name, score in event.scores.items()},
                log_weights=weights.log_normalized.tolist(),
                ess=weights.ess.tolist() if weighed else [math.nan] * P,
                resampled=resampled.tolist(),
                slots_before=event.slots.tolist(),
                slots=event.slots_after.tolist(),
                parents=event.parents.tolist(),
                parent_events=event.parent_events.tolist(),
                distinct_roots=[len(set(row)) for row in event.roots.tolist()],
                resume=None if plan is None else plan.resume,
                stopped=stopped.tolist(),
                nfe=event.nfe,
                reward_calls=event.reward_calls,
                predictions=event.thumbnails,
                details=event.details,
            )
        )


def _moved(event: ScoringEvent) -> Tensor:
    P, K = event.rewards.shape
    if event.ancestors.shape[1] != K:
        return torch.ones(P, dtype=torch.bool)
    return (event.ancestors != torch.arange(K)).any(1)


def thumbnails(side: int) -> Any:
    """A function that makes of images (B, 3, H, W) in [0, 1] B small JPEG pictures as 'data:' URLs, of videos
    (B, F, 3, H, W) B animations of at most `MOST_FRAMES` frames.

    Args:
        side: the longer one, in pixels.
    """

    def make(images: Tensor) -> list[str]:
        if images.ndim == 5:
            number = min(MOST_FRAMES, images.shape[1])
            chosen = torch.linspace(0, images.shape[1] - 1, number).round().long().tolist()
            pace = FPS * number / images.shape[1]
            return [_url(webp(pictures(video[chosen]), pace, lossless=False), "webp") for video in images]
        return [_url(_jpeg(picture), "jpeg") for picture in pictures(images)]

    def pictures(images: Tensor) -> list[Image.Image]:
        height, width = images.shape[-2:]
        scale = min(1.0, side / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = F.interpolate(images.float(), size, mode="area") if scale < 1 else images.float()
        pixels = (small.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(picture) for picture in pixels]

    return make


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
