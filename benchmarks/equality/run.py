"""What presets do for fixed seeds, saved before a change of the engine and compared after it, to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from torch import Tensor

from fk_steer import Execution, FKSteering, Noise, Preview, Resampling, Schedule, Stop, load_reward, preset, steer
from fk_steer.console import console, progress_bar
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from fk_steer.report.trace import strict
from fk_steer.rewards import Cascade, PairwiseReward, WeightedSum, ZScoreSum
from fk_steer.search import PRESETS
from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS, load_pipeline
from fk_steer.smc import Max, Rising
from fk_steer.testing import CALLS, PROMPTS, SIZE, redness, row_generators, sd, sd_scheduler, sdxl


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False, no_args_is_help=True)

SAMPLERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DPMSolverMultistep", {}), ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}), ("EulerDiscrete", {}),
    ("EulerAncestralDiscrete", {}), ("DDPM", {}), ("DPMSolverSinglestep", {}), ("UniPCMultistep", {}),
    ("HeunDiscrete", {}), ("KDPM2AncestralDiscrete", {}), ("LMSDiscrete", {}), ("PNDM", {}), ("DEISMultistep", {}),
    ("SASolver", {}), ("LCM", {}), ("TCD", {}),
)  # fmt: skip


def greenness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Green against blue."""
    return 20 * (images[:, 1] - images[:, 2]).mean((1, 2))


def compared(first: Tensor, second: Tensor, prompts: Sequence[str]) -> Tensor:
    """How much redder the first images are, as a probability."""
    return torch.sigmoid(redness(first, prompts) - redness(second, prompts))


SETTINGS: dict[str, Any] = {
    "six": FKSteering(6),
    "three": preset("fk", num_particles=3, lmbda=1.0),
    "target": preset("fk", lmbda=2.0, stop=Stop(-0.2)),
    "rollover": preset("fk", lmbda=2.0, stop=Stop(0.3, rollover=True)),
    "pruned-target": preset("psp", stop=Stop(-0.2)),
    "elite": FKSteering(elite=True),
    "standardize": preset("fk", standardize=True, lmbda=2.0),
    "some-noise": preset("fk", noise=Noise(0.5), lmbda=2.0),
    "window": preset("fk", lmbda=2.0, schedule=(0.3, 0.5, 0.7), noise=Noise(window=(0.2, 0.8))),
    "alive": preset("fk", num_particles=6, lmbda=2.0, schedule=Schedule((0.3, 0.5, 0.7), (4, 5, 2))),
    "systematic": preset("fk", lmbda=3.0, resampling=Resampling("systematic", 0.5)),
    "residual": preset("fk", lmbda=3.0, resampling=Resampling("residual", 0.5)),
    "stratified": preset("fk", lmbda=3.0, resampling=Resampling("stratified", 0.5)),
    "sum": preset("fk", lmbda=1.0, potential="sum"),
    "late": preset("fk", lmbda=2.0, potential=Max(), tempering=Rising(2.0), resampling=Resampling(after_noise=True)),
    "limit": FKSteering(lmbda=0.5),
    "seed": FKSteering(seed=11),
}


def runs() -> Iterator[tuple[str, Any, Any, Any, dict[str, Any]]]:
    """Name, pipeline, reward, settings, arguments of the call."""
    fitted = {name: entry.settings for name, entry in PRESETS.items()}
    fitted = {name: one.replace(lmbda=4.0) if hasattr(one, "lmbda") else one for name, one in fitted.items()}
    for model, (make, call) in CALLS.items():
        for name, settings in fitted.items():
            yield f"{model}/{name}", make(), redness, settings, {**call, "prompt": PROMPTS, "num_inference_steps": 10}
    call = {**SIZE, "prompt": PROMPTS, "guidance_scale": 5.0, "num_inference_steps": 10}
    for name, settings in SETTINGS.items():
        yield f"settings/{name}", sd(), redness, settings, call
    fk = preset("fk", lmbda=2.0)
    yield "call/generators", sd(), redness, fk, {**call, "generator": row_generators(*range(8))}
    yield "call/images-per-prompt", sd(), redness, fk, {**call, "num_images_per_prompt": 2}
    yield "call/eta", sd(), redness, fk, {**call, "eta": 0.3}
    for name in ("adaptive", "fk", "psp", "hybrid"):
        yield f"unfinished/{name}", sdxl(sd_scheduler("epsilon")), redness, fitted[name], {**call, "denoising_end": 0.7}
    rewards = {
        "cascade": Cascade(greenness, redness, 0.55),
        "z-scores": ZScoreSum({greenness: 1.0, redness: 0.5}),
        "sum": WeightedSum({greenness: 1.0, redness: 0.5}),
        "pairs": PairwiseReward(compared),
    }
    for name, reward in rewards.items():
        yield f"rewards/{name}", sd(), reward, FKSteering(), call
    for kind, options in SAMPLERS:
        for name in ("adaptive", "psp", "fk-paper", "evolution"):
            scheduler = sd_scheduler(kind=getattr(diffusers, f"{kind}Scheduler"), **options)
            yield f"{kind}{'-sde' if options else ''}/{name}", sd(scheduler), redness, fitted[name], call
    for model in BUNDLED:
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        clip = load_reward("clip-score", path=model)
        call = {
            "prompt": ["a photo of a red star and a blue circle", "a photo of three hearts"],
            "num_inference_steps": NUM_INFERENCE_STEPS,
            "guidance_scale": GUIDANCE_SCALE,
        }
        preview = FKSteering(preview=Preview("shapes", until=0.65))
        for name, settings in {**{n: e.settings for n, e in PRESETS.items()}, "preview": preview}.items():
            yield f"{model}/{name}", pipe, clip, settings, call


def record(pipe: Any, reward: Any, settings: Any, call: dict[str, Any]) -> dict[str, Any] | str:
    """What a run does; the kind of error where it is refused."""
    call = {"generator": torch.Generator().manual_seed(3), **call, "output_type": "latent"}
    if settings.seed is not None:
        del call["generator"]
    try:
        output = steer(pipe, reward, settings, Execution(denoise_batch_size=6))(**call)
    except ValueError as error:
        return type(error).__name__
    trace = output.trace
    return {
        **{name: _digest(getattr(output, name)) for name in ("particles", "rewards", "log_weights")},
        "events": [
            strict([e.step, e.resume, e.slots, e.parents, e.parent_events, e.resampled, e.stopped, e.nfe])
            for e in trace.events
        ],
        "cost": [trace.nfe, trace.nfe_saved, trace.reward_calls, len(trace.retries)],
    }


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def record_all() -> dict[str, Any]:
    quiet_libraries()
    torch.set_num_threads(1)
    found = {}
    with progress_bar() as bar:
        task = bar.add_task("runs", total=None)
        for name, *run in runs():
            found[name] = record(*run)
            bar.advance(task)
    return found


@app.command()
def save(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Write what presets do to this JSON file.")],
) -> None:
    """Save what presets do now."""
    write_json(file, record_all())


@app.command()
def compare(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Compare with this JSON file, which `save` has written.")
    ],
) -> None:
    """Compare what presets do now with what was saved."""
    before, now = json.loads(file.read_text()), json.loads(json.dumps(record_all()))
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    for name in differing:
        old, new = before.get(name), now.get(name)
        both = isinstance(old, dict) and isinstance(new, dict)
        what = ", ".join(key for key in old if old[key] != new[key]) if both else f"{old} -> {new}"
        console.print(f"{name}: {what}", highlight=False)
    console.print(f"{len(now)} runs, {len(differing)} differ", highlight=False)
    if differing:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
