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
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from fk_steer.cli.options import (
    DEFAULT_PRESET,
    Device,
    FullSize,
    Model,
    RandomWeights,
    Repeats,
    Size,
    SizedPreset,
    Steps,
    one_line_errors,
)
from fk_steer.console import console
from fk_steer.diffusion import Execution, steer
from fk_steer.diffusion.interception import intercept
from fk_steer.diffusion.schedulers import predict_x0
from fk_steer.evaluation.costs import by_particles, machine
from fk_steer.evaluation.world import sized
from fk_steer.files import write_json
from fk_steer.loading import load_preview, quiet_libraries, set_scheduler
from fk_steer.rewards.base import RewardFunction, lmbda_for
from fk_steer.search import FKSteering
from fk_steer.shapes.captions import evaluation_prompts
from fk_steer.testing.full_size import bundled_or_full_size


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


def record(
    pipe: Any, reward: RewardFunction, steering: FKSteering, execution: Execution, prompts: list[str], **call: Any
) -> Recording:
    """The denoiser, decoder and reward calls of a steered run; a preview decoder is to be a module, not a name."""
    recording = Recording()
    with ExitStack() as patches:
        patches.enter_context(intercept(pipe.unet, "forward", recording.of))
        for decoder in filter(None, (pipe.vae, steering.preview and steering.preview.decoder)):
            patches.enter_context(intercept(decoder, "decode", recording.of))
        _call(steer(pipe, recording.of(reward), steering, execution), prompts, call)
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
            eta=steering.noise.eta,
            callback_on_step_end=resample,
            output_type="latent",
            **call,
        ).images
    return score(latents).max().item()


def measure(
    pipe: Any,
    reward: RewardFunction,
    steering: FKSteering,
    execution: Execution,
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
    recording = record(pipe, reward, steering, execution, texts, **call)

    def now() -> float:
        if pipe._execution_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds: dict[str, list[float]] = {"steered": [], "floor": [], "straight-through": []}
    shares, rewards = [], {"steered": 0.0, "straight-through": 0.0}
    for repeat in range(repeats + 1):
        started = now()
        output = _call(steer(pipe, reward, steering, execution), texts, call)
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


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write seconds, ratios and peak memory to this JSON file.")],
    model: Model = "shapes",
    full_size: FullSize = None,
    random_weights: RandomWeights = False,
    preset: SizedPreset = DEFAULT_PRESET,
    prompts: Annotated[int, typer.Option(min=1, help="Put this many prompts into a steered call.")] = 8,
    repeats: Repeats = 5,
    steps: Steps = None,
    previews: Annotated[
        bool, typer.Option("--previews", help="Decode x0 predictions with the bundled preview decoder.")
    ] = False,
    decode_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Decode this many latents at a time.", show_default="all")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, with up to 64 particles.")] = True,
    size: Size = None,
    device: Device = None,
) -> None:
    """Time a steered call against its models' bare work and a plain loop, and measure peak memory by particles."""
    with one_line_errors():
        quiet_libraries()

        if (full_size is not None) != random_weights:
            raise ValueError("Expected --full-size and --random-weights together, or neither.")
        pipe, guide, call = bundled_or_full_size(model, full_size, device, steps, size)
        if previews and full_size is not None:
            raise ValueError("There is no preview decoder of random weights: leave out --previews or --full-size.")
        decoder = load_preview(model, pipe) if previews else None
        steering = sized(preset, call["num_inference_steps"], preview=decoder)
        execution = Execution(decode_batch_size=decode_batch_size)
        measured = measure(pipe, guide, steering, execution, prompts=prompts, repeats=repeats, memory=memory, **call)
        setup = {
            "model": full_size or model,
            "preset": preset,
            "previews": previews,
            "prompts": prompts,
            "decode_batch_size": decode_batch_size,
            **call,
            "machine": machine(device),
        }
        write_json(out, {**setup, **measured})
        for name in ("overhead", "bookkeeping", "speed-up"):
            console.print(f"{name}: {measured[name]:.3f}", highlight=False)
        for way, value in measured["reward"].items():
            console.print(f"reward, {way}: {value:.4f}", highlight=False)
        for way, peaks in measured["peak bytes"].items():
            listed = ", ".join(f"{peak / 2**20:.1f} MiB with {number}" for number, peak in peaks.items())
            console.print(f"peak memory, {way}: {listed}", highlight=False)


if __name__ == "__main__":
    app()
