"""Images of held-out prompts while a model trains, always from the same noise, and what a reward says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..evaluation.prompts import evenly, prompt_list
from ..files import png, write_atomically, write_json
from .config import DPOConfig
from .denoisers import Denoiser


class Watch:
    """Samples of a run.

    Args:
        denoiser: its pipeline draws with the weights of the moment.
        folder: of the images, a folder for each step.

    Raises:
        ValueError: if the prompts cannot be read, or the reward is unknown.
    """

    def __init__(self, denoiser: Denoiser, config: DPOConfig, folder: Path) -> None:
        assert config.prompts is not None
        self.denoiser, self.config, self.folder = denoiser, config, folder
        entries = prompt_list(config.prompts)
        self.prompts = [entries[index]["prompt"] for index in evenly(entries, config.sample_limit)]
        self.reward = None
        if config.reward is not None:
            from ..bundled import fitted_options
            from ..loading import load_guide

            device = denoiser.pipe._execution_device
            self.reward = load_guide(config.reward, device, **fitted_options(config.model, config.reward, {}))

    @torch.no_grad()
    def __call__(self, step: int) -> tuple[dict[str, float], list[Image.Image]]:
        """Draw, keep and score images of all prompts.

        Returns:
            'sample_reward', the mean, where there is a reward; and the images.
        """
        images: list[Image.Image] = []
        with _evaluating(self.denoiser.module):
            for start in range(0, len(self.prompts), self.config.sample_batch):
                images += self._draw(start)
        folder = self.folder / f"step-{step:08d}"
        for number, image in enumerate(images):
            write_atomically(folder / f"{number:05d}.png", png(image))
        if self.reward is None:
            return {}, images
        pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255
        scores = (
            torch.as_tensor(self.reward(pixels.to(self.denoiser.pipe._execution_device), self.prompts))
            .double()
            .tolist()
        )
        write_json(
            folder / "rewards.json",
            [{"prompt": text, "reward": score} for text, score in zip(self.prompts, scores)],
        )
        return {"sample_reward": sum(scores) / len(scores)}, images

    def _draw(self, start: int) -> list[Image.Image]:
        config, texts = self.config, self.prompts[start : start + self.config.sample_batch]
        options: dict[str, Any] = {"num_inference_steps": config.sample_steps}
        if config.sample_guidance is not None:
            options["guidance_scale"] = config.sample_guidance
        if config.text_length is not None:
            options["max_sequence_length"] = config.text_length
        side = config.resolution or self.denoiser.resolution
        with _ordinary(self.denoiser.pipe):
            found = self.denoiser.pipe(
                texts,
                height=side,
                width=side,
                generator=[torch.Generator().manual_seed(config.seed + start + place) for place in range(len(texts))],
                **options,
            )
        return list(found.images)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def _ordinary(pipe: Any) -> Iterator[None]:
    """A pipeline that shows no bar, and whose scheduler is as before afterwards."""
    shown, scheduler = dict(getattr(pipe, "_progress_bar_config", {})), pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(scheduler).from_config(scheduler.config)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**shown)
