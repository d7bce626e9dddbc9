"""What steering costs beyond the models' own work, and what it saves over a plain loop.

Three ways to the same images are timed in turn, several times over, in one process:

- a steered call;
- its floor: the same denoiser rows, decodes and reward batches, run bare;
- a straight-through loop with the habits of the reference implementation (zacharyhorvitz/Fk-Diffusion-Steering): one
  prompt at a time, every row in every step, the full autoencoder, one reward call per image through PIL.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fk_steer.config import FKSteering
from fk_steer.diffusion import steer
from fk_steer.diffusion.schedulers import intercept, predict_x0
from fk_steer.rewards.base import RewardFunction


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
    """The denoiser, decoder and reward calls of a steered run."""
    recording = Recording()
    with ExitStack() as patches:
        patches.enter_context(intercept(pipe.unet, "forward", recording.of))
        patches.enter_context(intercept(pipe.vae, "decode", recording.of))
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
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
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
    prompts: list[str],
    *,
    lmbda: float,
    repeats: int = 5,
    **call: Any,
) -> dict[str, Any]:
    """Seconds of the three ways, in turn, `repeats` times after a warm-up.

    Args:
        lmbda: strength of the tilt.
        **call: of the pipeline.

    Returns:
        Seconds of each repeat by way, the median ratios 'overhead' (steered / floor) and 'speed-up' (straight-through /
        steered), 'bookkeeping' (the steered call's share outside denoiser, decoder and reward, by its own clock), and
        the mean reward of the best images of the steered and the straight-through runs.
    """
    steering = dataclasses.replace(steering, lmbda=lmbda)
    recording = record(pipe, reward, steering, prompts, **call)
    seconds: dict[str, list[float]] = {"steered": [], "floor": [], "straight-through": []}
    shares, rewards = [], {"steered": 0.0, "straight-through": 0.0}
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        output = _call(steer(pipe, reward, steering), prompts, call)
        middle = time.perf_counter()
        recording.replay()
        late = time.perf_counter()
        best = [
            straight_through(pipe, reward, steering, prompt, lmbda, seed, **call) for seed, prompt in enumerate(prompts)
        ]
        ended = time.perf_counter()
        if repeat:
            for way, spent in zip(seconds, (middle - started, late - middle, ended - late)):
                seconds[way].append(spent)
            shares.append(output.trace.seconds["rest"] / output.trace.seconds["total"])
            rewards = {"steered": output.rewards[:, 0].mean().item(), "straight-through": statistics.mean(best)}
    ratios = {
        "overhead": statistics.median(a / b for a, b in zip(seconds["steered"], seconds["floor"])),
        "speed-up": statistics.median(a / b for a, b in zip(seconds["straight-through"], seconds["steered"])),
    }
    return {"seconds": seconds, **ratios, "bookkeeping": statistics.median(shares), "reward": rewards}


def _call(steered: Any, prompts: list[str], call: dict[str, Any]) -> Any:
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    return steered(prompts, generator=generators, output_type="pt", **call)
