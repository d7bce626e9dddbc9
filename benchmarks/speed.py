"""What steering costs beyond the models' own work, and what it saves over a plain loop.

Three ways to the same images are timed in turn, several times over, in one process:

- a steered call;
- its floor: the same denoiser rows, decodes and reward batches, run bare;
- a straight-through loop with the habits of the reference implementation (zacharyhorvitz/Fk-Diffusion-Steering): one
  prompt at a time, every row in every step, the full autoencoder, one reward call per image through PIL.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fk_steer.config import FKSteering
from fk_steer.diffusion import steer
from fk_steer.diffusion.schedulers import intercept, predict_x0
from fk_steer.loading import load_guide, load_pipeline, set_scheduler
from fk_steer.rewards.base import RewardFunction, lmbda_for
from fk_steer.rewards.loading import default_device
from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from fk_steer.shapes.captions import evaluation_prompts

from .full_size import random_pipeline
from .memory import by_particles
from .rewards import clip_score


def subject(
    model: str, full_size: str | None, device: torch.device | str | None, steps: int | None, size: int | None
) -> tuple[Any, RewardFunction, dict[str, Any]]:
    """What is measured: a pipeline, its guide and the arguments of a call.

    Args:
        model: name of a bundled pipeline.
        full_size: 'sd21' or 'sdxl' for an architecture of published size with random bfloat16 weights instead, guided
            by a CLIP of ViT-L/14's size.
        steps: None for the bundled models' own number.
        size: height and width in pixels; None for the model's own.

    Raises:
        ValueError: for an unknown model.
    """
    call: dict[str, Any] = {"num_inference_steps": steps or NUM_INFERENCE_STEPS, "guidance_scale": GUIDANCE_SCALE}
    if size is not None:
        call |= {"height": size, "width": size}
    target = default_device(device)
    if full_size is not None:
        return random_pipeline(full_size, target), clip_score(target, torch.bfloat16), call
    if model not in BUNDLED:
        raise ValueError(f"Unknown bundled model {model!r}. Known: {', '.join(BUNDLED)}.")
    pipe = load_pipeline(model, dtype="float32", device=target)
    pipe.set_progress_bar_config(disable=True)
    return pipe, load_guide("clip-score", target, path=model), call


def machine(device: torch.device | str | None) -> str:
    """Name of the processor or GPU and its share in use."""
    target = default_device(device)
    if target.type == "cuda":
        return torch.cuda.get_device_name(target)
    info = Path("/proc/cpuinfo")  # Linux alone
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else []
    return f"{(names or [platform.processor()])[0]}, threads: {torch.get_num_threads()}"


@dataclasses.dataclass
class Recording:
    """The calls that a steered run makes of its models: function, arguments."""

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = dataclasses.field(default_factory=list)

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((function, args, kwargs))
            return function(*args, **kwargs)

        return recorded

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


def record(pipe: Any, reward: RewardFunction, steering: FKSteering, prompts: list[str], **call: Any) -> Recording:
    """The denoiser, decoder and reward calls of a steered run; a preview decoder is to be a module, not a name."""
    recording = Recording()
    with ExitStack() as patches:
        patches.enter_context(intercept(pipe.unet, "forward", recording.of))
        for decoder in filter(None, (pipe.vae, steering.preview_decoder)):
            patches.enter_context(intercept(decoder, "decode", recording.of))
        _call(steer(pipe, recording.of(reward), steering), prompts, call)
    return recording


@torch.no_grad()
def straight_through(
    pipe: Any, reward: RewardFunction, steering: FKSteering, prompt: str, lmbda: float, seed: int, **call: Any
) -> float:
    """Feynman-Kac steering of one prompt as a plain loop: the potential is the reward itself, resampling is multinomial
    and after the noise.

    Returns:
        The reward of the best image.
    """
    K, generator = steering.num_particles, torch.Generator().manual_seed(seed)
    events = steering.schedule.events(call["num_inference_steps"], K)
    prediction: list[Tensor] = []

    def score(latents: Tensor) -> Tensor:
        images = pipe.vae.decode((latents / pipe.vae.config.scaling_factor).to(pipe.vae.dtype)).sample
        pictures = pipe.image_processor.postprocess(images, output_type="pil")
        return torch.stack([torch.as_tensor(reward([picture], [prompt]))[0] for picture in pictures]).cpu()

    def predict(inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            prediction[:] = [predict_x0(pipe.scheduler, model_output, timestep, sample)]
            return inner(model_output, timestep, sample, *args, **kwargs)

        return step

    def resample(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step in events:
            weights = (lmbda * score(prediction[0])).softmax(0)
            ancestors = torch.multinomial(weights, K, replacement=True, generator=generator)
            tensors["latents"] = tensors["latents"][ancestors.to(tensors["latents"].device)]
        return tensors

    with intercept(pipe.scheduler, "step", predict):
        latents = pipe(
            prompt,
            num_images_per_prompt=K,
            generator=generator,
            eta=steering.eta,
            callback_on_step_end=resample,
            output_type="latent",
            **call,
        ).images
    return score(latents).max().item()


def measure(
    pipe: Any,
    reward: RewardFunction,
    steering: FKSteering,
    *,
    prompts: int = 8,
    repeats: int = 5,
    memory: bool = True,
    **call: Any,
) -> dict[str, Any]:
    """Seconds of the three ways, in turn, `repeats` times after a warm-up; peak memory of the steered call.

    Args:
        prompts: prompts per steered call.
        memory: measure peak memory too, with up to 64 particles.
        **call: of the pipeline.

    Returns:
        Seconds of each repeat by way, the median ratios 'overhead' (steered / floor) and 'speed-up' (straight-through /
        steered), 'bookkeeping' (the steered call's share outside denoiser, decoder and reward, by its own clock), the
        mean 'reward' of the best images of the steered and the straight-through runs, and 'peak bytes' by number of
        particles.
    """
    set_scheduler(pipe, None, steering, call.get("num_inference_steps"))
    texts = [line["prompt"] for line in evaluation_prompts()[:prompts]]
    lmbda = lmbda_for(reward, steering.lmbda) or 0.0
    # What records a reward's calls does not have its default.
    steering = dataclasses.replace(steering, lmbda=lmbda)
    recording = record(pipe, reward, steering, texts, **call)

    def now() -> float:
        if pipe._execution_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds: dict[str, list[float]] = {"steered": [], "floor": [], "straight-through": []}
    shares, rewards = [], {"steered": 0.0, "straight-through": 0.0}
    for repeat in range(repeats + 1):
        started = now()
        output = _call(steer(pipe, reward, steering), texts, call)
        middle = now()
        recording.replay()
        late = now()
        best = [straight_through(pipe, reward, steering, text, lmbda, seed, **call) for seed, text in enumerate(texts)]
        ended = now()
        if repeat:
            for way, spent in zip(seconds, (middle - started, late - middle, ended - late)):
                seconds[way].append(spent)
            shares.append(output.trace.seconds["rest"] / output.trace.seconds["total"])
            rewards = {"steered": output.rewards[:, 0].mean().item(), "straight-through": statistics.mean(best)}
    ratios = {
        "overhead": statistics.median(a / b for a, b in zip(seconds["steered"], seconds["floor"])),
        "speed-up": statistics.median(a / b for a, b in zip(seconds["straight-through"], seconds["steered"])),
    }
    return {
        "seconds": seconds,
        **ratios,
        "bookkeeping": statistics.median(shares),
        "reward": rewards,
        "peak bytes": by_particles(pipe, reward, steering, texts[0], **call) if memory else {},
    }


def _call(steered: Any, prompts: list[str], call: dict[str, Any]) -> Any:
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    return steered(prompts, generator=generators, output_type="pt", **call)
