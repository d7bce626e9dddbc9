"""The two nodes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fk_steer import Execution, FrameReward, Trace, steer
from fk_steer.defaults import DEFAULT_PRESET
from fk_steer.diffusion import ScoringEvent
from fk_steer.diffusion.components import call_names, makes_videos
from fk_steer.files import write_atomically
from fk_steer.loading import DTYPES, set_scheduler
from fk_steer.report.page import trace_page
from fk_steer.rewards.judge import scores_or_none
from fk_steer.search import PRESETS
from fk_steer.search.presets import asked
from fk_steer.shapes import GUIDANCE_SCALE, NUM_INFERENCE_STEPS

from . import host, models


CATEGORY = "fk-steer"
PROMPT = "a photo of a blue triangle and a purple star"
REWARD = "llava-reward"
LARGEST_SEED = 2**64 - 1
BUNDLED, PUBLISHED = "bundled", "published"

_REWARD = {
    "default": REWARD,
    "tooltip": "Name of a reward, as `fk-steer rewards` lists them, or several: 'a+b' is the mean of their z-scores, "
    "'2*a+b' a weighted one, and with 'a>b' a guides and b chooses among the final images.",
}
_REWARD_OPTIONS = {
    "default": "",
    "tooltip": 'Options of the reward as JSON, such as {"variant": "v2.1"}; of several by their names. Empty for none.',
}
_BATCH_SIZE = {"default": 0, "min": 0, "max": 1024, "tooltip": "Do so many at a time, to save memory. 0 for all."}
_SIDE = {"default": 0, "min": 0, "max": 16384, "step": 8, "tooltip": "In pixels. 0 for the model's own."}
_FRAMES = {"default": 0, "min": 0, "max": 4096, "tooltip": "Length of a video. 0 for the model's own."}


class FKSteerSample:
    """Draws with a pipeline of Diffusers, several particles at a time, steered towards a high reward."""

    DESCRIPTION = "Draw with a pipeline of Diffusers, steered by a reward: particles that promise more are continued."
    CATEGORY = CATEGORY
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("best", "particles", "rewards", "tree_path", "trace")
    OUTPUT_TOOLTIPS = (
        "The image with the highest reward; of a video its frames.",
        "The images of all particles, best first; of videos one's frames after the other's.",
        "The rewards of the particles, a line for each, best first.",
        "Path of a page with the family tree, to open in a browser.",
        "Every scoring event, as JSON that `fk_steer.Trace.from_dict` reads.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        return {
            "required": {
                "prompt": ("STRING", {"default": PROMPT, "multiline": True}),
                "model": (
                    "STRING",
                    {
                        "default": "shapes-xl",
                        "tooltip": "A pipeline of Diffusers: 'shapes' or 'shapes-xl', which come with fk-steer and "
                        "draw coloured shapes, a hub id, a folder, or the name of one in models/diffusers.",
                    },
                ),
                "reward": ("STRING", dict(_REWARD)),
                "preset": (
                    list(PRESETS),
                    {"default": DEFAULT_PRESET, "tooltip": "The search; `fk-steer presets` says when to use which."},
                ),
                "particles": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Denoise so many candidates together. 0 for the preset's own number, 4 for most.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": NUM_INFERENCE_STEPS,
                        "min": 0,
                        "max": 1000,
                        "tooltip": "Denoising steps. 0 for what the preset or the budget chooses.",
                    },
                ),
                "guidance": (
                    "FLOAT",
                    {
                        "default": GUIDANCE_SCALE,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Scale of guidance (CFG): 3 suits the bundled models, 5 to 7.5 most others.",
                    },
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}),
            },
            "optional": {
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
                "reward_options": ("STRING", dict(_REWARD_OPTIONS)),
                "budget": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 100_000,
                        "tooltip": "Spend at most so many denoiser calls, which choose the particles, and with 0 steps "
                        "the steps. 0 for no budget.",
                    },
                ),
                "lmbda": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1e6,
                        "step": 0.01,
                        "tooltip": "Strength of steering (lambda). 0 for what the preset finds.",
                    },
                ),
                "width": ("INT", dict(_SIDE)),
                "height": ("INT", dict(_SIDE)),
                "frames": ("INT", dict(_FRAMES)),
                "batch_size": ("INT", dict(_BATCH_SIZE)),
                "dtype": (list(DTYPES), {"default": "auto"}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        model: str | None = None,
        reward: str | None = None,
        reward_options: str | None = "",
    ) -> bool | str:
        # Of these alone, as ComfyUI leaves the ranges of what is named here unchecked. What comes by a link is None: it
        # has no value yet.
        try:
            if model is not None:
                models.check_model(model)
            if reward is not None and reward_options is not None:
                models.check_reward(reward, reward_options)
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(
        cls, model: str | None = None, reward: str | None = None, reward_options: str | None = "", **_: Any
    ) -> str:
        # The same inputs give the same images, unless the files of the models have been replaced.
        return str((models.changed(host.find_pipeline(model or "")), models.changed_options(reward, reward_options)))

    @torch.inference_mode(False)
    def sample(
        self,
        prompt: str,
        model: str,
        reward: str,
        preset: str,
        particles: int,
        steps: int,
        guidance: float,
        seed: int,
        negative_prompt: str = "",
        reward_options: str = "",
        budget: int = 0,
        lmbda: float = 0.0,
        width: int = 0,
        height: int = 0,
        frames: int = 0,
        batch_size: int = 0,
        dtype: str = "auto",
    ) -> tuple[Tensor, Tensor, str, str, str]:
        settings = _settings(preset, particles, budget, lmbda)
        models.check_reward(reward, reward_options)
        guide = models.reward(reward, reward_options, model)
        pipe, scheduler = models.pipeline(model, dtype)
        if makes_videos(pipe) and not guide.takes_videos:
            guide = FrameReward(guide)
        call: dict[str, Any] = {
            "num_inference_steps": steps or (NUM_INFERENCE_STEPS if settings.steps_are_usual else None),
            "guidance_scale": guidance if "guidance_scale" in call_names(pipe) else None,
            "negative_prompt": negative_prompt.strip() or None,
            "width": width or None,
            "height": height or None,
            "num_frames": frames or None,
        }
        call = {name: value for name, value in call.items() if value is not None}
        # The pipeline stays loaded, and an execution before may have given it another.
        pipe.scheduler = scheduler
        set_scheduler(pipe, None, settings, steps or None)
        progress = host.Progress(steps or NUM_INFERENCE_STEPS)

        def see(event: ScoringEvent) -> None:
            best = int(event.rewards[0].nan_to_num(-math.inf).argmax())
            progress.show(_picture(event.thumbnails[0][best]))

        with progress.steps_of(pipe):
            out = steer(pipe, guide, settings, Execution.in_batches(batch_size or None))(
                prompt,
                generator=torch.Generator().manual_seed(seed),
                keep_predictions=True,
                on_event=see,
                output_type="pt",
                **call,
            )
        rewards = "\n".join(f"{rank}: {value:.4f}" for rank, value in enumerate(out.rewards[0].tolist(), 1))
        return (
            _to_comfy(out.images),
            _to_comfy(out.particles[0]),
            rewards,
            str(_write_tree(out.trace)),
            json.dumps(out.trace.to_dict()),
        )


class FKScoreImages:
    """Scores images for a prompt by a reward and sorts them."""

    DESCRIPTION = "Score images for a prompt by a reward, and sort them, best first."
    CATEGORY = CATEGORY
    FUNCTION = "score"
    RETURN_TYPES = ("IMAGE", "STRING", "FLOAT", "INT")
    RETURN_NAMES = ("sorted", "scores", "highest", "index_of_best")
    OUTPUT_TOOLTIPS = (
        "The images, best first.",
        "A line for each, best first: its number in the batch, from 0, and its score.",
        "The highest score.",
        "The number of the best image in the batch, from 0.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        return {
            "required": {
                "images": ("IMAGE",),
                "prompt": ("STRING", {"default": PROMPT, "multiline": True}),
                "reward": ("STRING", dict(_REWARD)),
                "weights": (
                    [BUNDLED, PUBLISHED],
                    {
                        "default": BUNDLED,
                        "tooltip": f"'{BUNDLED}' knows the pictures of the bundled models alone and needs no download; "
                        f"'{PUBLISHED}' is right for all others.",
                    },
                ),
            },
            "optional": {
                "reward_options": ("STRING", dict(_REWARD_OPTIONS)),
                "batch_size": ("INT", dict(_BATCH_SIZE)),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, reward: str | None = None, weights: str | None = None, reward_options: str | None = ""
    ) -> bool | str:
        try:
            if weights not in (None, BUNDLED, PUBLISHED):
                return f"Expected `weights` to be '{BUNDLED}' or '{PUBLISHED}', but got {weights!r}."
            if reward is not None and reward_options is not None:
                models.check_reward(reward, reward_options)
                if weights == BUNDLED:
                    models.bundled(reward, reward_options)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, reward: str | None = None, reward_options: str | None = "", **_: Any) -> str:
        return str(models.changed_options(reward, reward_options))

    @torch.inference_mode(False)
    @torch.no_grad()
    def score(
        self,
        images: Tensor,
        prompt: str,
        reward: str,
        weights: str,
        reward_options: str = "",
        batch_size: int = 0,
    ) -> tuple[Tensor, str, float, int]:
        models.check_reward(reward, reward_options)
        options = models.bundled(reward, reward_options) if weights == BUNDLED else reward_options
        scorer = models.reward(reward, options)
        pictures, device = _from_comfy(images), host.device()
        # What compares images needs all of them.
        size = len(pictures) if scorer.relative or not batch_size else batch_size
        progress = host.Progress(len(pictures))
        scores: list[float] = []
        for some in pictures.split(size):
            found = scores_or_none(scorer, some.to(device), [prompt] * len(some), "for the images of the node")
            scores += [math.nan if value is None else value for value in found]
            progress.update(len(scores), len(pictures))
        order = sorted(range(len(scores)), key=lambda index: _order(scores[index]), reverse=True)
        lines = "\n".join(f"image {index}: {scores[index]:.4f}" for index in order)
        return images[order], lines, scores[order[0]], order[0]


def _settings(preset: str, particles: int, budget: int, lmbda: float) -> Any:
    return asked(preset, particles=particles or None, budget=budget or None, lmbda=lmbda or None)


def _to_comfy(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) or videos (B, F, 3, H, W) as ComfyUI has images: (B, H, W, 3) in [0, 1] on the CPU."""
    frames = images.flatten(0, 1) if images.ndim == 5 else images
    return frames.movedim(1, -1).clamp(0.0, 1.0).float().cpu().contiguous()


def _from_comfy(images: Tensor) -> Tensor:
    """Images (B, H, W, C) as rewards take them, (B, 3, H, W): without transparency, grey ones in three channels."""
    colours = images[..., :3] if images.shape[-1] > 2 else images[..., :1].expand(*images.shape[:-1], 3)
    # A copy: what ComfyUI's nodes make within its inference mode cannot be changed outside of it.
    return colours.movedim(-1, 1).float().clamp(0.0, 1.0).clone()


def _picture(url: str) -> Image.Image:
    """The picture in a 'data:' URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def _write_tree(trace: Trace) -> Path:
    """A page with the family tree, under a name of its own that the same run finds again."""
    page = trace_page(trace).encode()
    path = host.output_folder() / f"tree_{hashlib.sha256(page).hexdigest()[:12]}.html"
    write_atomically(path, page)
    return path


def _order(score: float) -> tuple[bool, float]:
    return (False, 0.0) if math.isnan(score) else (True, score)
