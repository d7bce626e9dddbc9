"""From samples to images: one steered call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...diffusion import Execution, steer
from ...diffusion.budgets import choose
from ...diffusion.components import makes_videos
from ...diffusion.generators import particle_generators
from ...loading import load_guide, load_pipeline, quiet_libraries, set_scheduler
from ...report.trace import Trace
from ...search import FKSteering
from .plan import Plan, Sample, SampleRecord


class Sampler:
    """A plan's pipeline and reward, loaded.

    Args:
        plan: of the run.
        device: of both.
    """

    def __init__(self, plan: Plan, device: torch.device | str) -> None:
        quiet_libraries()
        self.settings, self.steering = plan.settings, plan.settings.steering()
        settings = self.settings
        self.pipe = load_pipeline(settings.model, dtype=settings.dtype, device=device, lora=settings.lora)
        self.pipe.set_progress_bar_config(disable=True)
        if makes_videos(self.pipe):
            raise ValueError(
                f"{type(self.pipe).__name__} gives videos, and runs over lists of prompts are of images. "
                "`fk-steer generate` makes videos."
            )
        self.reward: Any = None
        if settings.reward is not None:
            self.reward = load_guide(settings.reward, device, **settings.reward_options)
        # Without steering a single particle stands for the stock pipeline: it needs no noise of its own.
        steering = self.steering or FKSteering(num_particles=1)
        if note := set_scheduler(self.pipe, settings.scheduler, steering, settings.steps):
            warnings.warn(note, stacklevel=2)
        self.call: dict[str, Any] = {
            "guidance_scale": settings.guidance,
            "height": settings.height,
            "width": settings.width,
        }
        if settings.steps is not None:
            self.call["num_inference_steps"] = settings.steps
        self.num_particles = 1
        if self.steering is not None:
            if settings.scheduler is not None:
                self.steering = self.steering.replace(sampler=settings.scheduler)
            self.num_particles = choose(self.pipe, self.steering, self.call).strategy.num_particles

    def __call__(self, samples: Sequence[Sample]) -> list[tuple[Image.Image, SampleRecord, Trace | None]]:
        """The best image of each sample, its record and, if steered, its trace, all made in one call.

        Traces come without seconds, so that they are the same every time.
        """
        settings = self.settings
        started = time.perf_counter()
        call = {"prompt": [sample.prompt.text for sample in samples], **self.call}
        K = self.num_particles
        # A generator per particle, so that the noise of the first does not depend on how many there are.
        call["generator"] = [
            row for sample in samples for row in particle_generators(noise(sample), None, [sample.prompt.text], 1, K)[0]
        ]
        if self.steering is None:
            with _counted_rows(self.pipe) as rows:
                images = self.pipe(**call).images
            scores, nfe, reward_calls = {}, sum(rows), 0
            rewards: list[list[float]] = [[] for _ in samples]
            traces: list[Trace | None] = [None for _ in samples]
        else:
            output = steer(self.pipe, self.reward, self.steering, Execution.in_batches(settings.max_rows))(**call)
            rewards, trace = output.rewards.tolist(), output.trace
            images = output.images
            # Of several passes the last event of the first is not that of the images.
            scores = {} if trace.retries else _sorted_scores(trace.events[-1])
            nfe, reward_calls = trace.nfe, trace.reward_calls
            traces = [_without_seconds(trace.of(number)) for number in range(len(samples))]
        share = len(samples)
        seconds = time.perf_counter() - started
        return [
            (
                image,
                SampleRecord(
                    prompt_index=sample.prompt.index,
                    sample=sample.number,
                    seed=sample.seed,
                    prompt=sample.prompt.text,
                    preset=None if self.steering is None else settings.preset,
                    reward=of_particles[0] if of_particles else None,
                    rewards=of_particles,
                    scores={name: values[number] for name, values in scores.items()},
                    nfe=nfe / share,
                    reward_calls=reward_calls / share,
                    seconds=seconds / share,
                ),
                traces[number],
            )
            for number, (sample, image, of_particles) in enumerate(zip(samples, images, rewards))
        ]


def noise(sample: Sample) -> torch.Generator:
    """What all noise of a sample comes from; it depends on the seed and the numbers of the prompt and repeat alone."""
    sequence = np.random.SeedSequence([sample.seed, sample.prompt.index, sample.repeat])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


def _without_seconds(trace: Trace) -> Trace:
    retries = [(populations, _without_seconds(retry)) for populations, retry in trace.retries]
    return replace(trace, seconds={}, retries=retries)


def _sorted_scores(event: Any) -> dict[str, list[list[float]]]:
    """What the rewards of an event were made from, per population in the order of the rewards, best first."""
    orders = [sorted(range(len(rewards)), key=rewards.__getitem__, reverse=True) for rewards in event.rewards]
    return {
        name: [[values[i] for i in order] for order, values in zip(orders, of_populations)]
        for name, of_populations in event.scores.items()
    }


@contextmanager
def _counted_rows(pipe: Any) -> Iterator[list[int]]:
    """Rows of each of the denoiser's calls."""
    denoiser = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    rows: list[int] = []

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    hook = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()
