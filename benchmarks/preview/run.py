"""Whether a reward judges previews as it judges the images of the full autoencoder, and what previews save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_REWARD,
    AnyModel,
    Device,
    Guidance,
    Guide,
    Steps,
    one_line_errors,
)
from fk_steer.console import console
from fk_steer.diffusion.decode import LatentDecoder
from fk_steer.diffusion.interception import intercept_step
from fk_steer.diffusion.schedulers import predict_x0
from fk_steer.files import write_json
from fk_steer.loading import load_guide, load_pipeline, load_preview, quiet_libraries
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.loading import default_device
from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from fk_steer.shapes.captions import evaluation_prompts


def agreement(
    pipe: Any,
    reward: RewardFunction,
    preview: Any,
    prompts: Sequence[str],
    *,
    images: int = 8,
    at: Sequence[float] = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0),
    **call: Any,
) -> list[dict[str, float]]:
    """Rank correlation of rewards of x0 predictions, decoded by the preview decoder and by the autoencoder.

    Args:
        preview: an `AutoencoderTiny`, on the pipeline's device.
        images: per prompt, at least 2.
        at: progress in (0, 1] of the loop.
        **call: of the pipeline, with `num_inference_steps`.

    Returns:
        For each entry of `at`: 'progress', Spearman's correlation 'within' prompts (mean over them) and 'pooled' over
        all images, the share 'same best' of prompts with the same best image, and 'seconds' over 'preview seconds' of
        decoding, 'speed-up'.
    """
    full, tiny = LatentDecoder(pipe), LatentDecoder(pipe, preview)
    num_steps = call["num_inference_steps"]
    steps = {max(0, int(progress * num_steps + 1e-9) - 1): progress for progress in at}
    texts = [prompt for prompt in prompts for _ in range(images)]
    predictions: dict[int, Tensor] = {}
    counter = iter(range(num_steps))

    def step(inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        if (index := next(counter)) in steps:
            predictions[index] = predict_x0(pipe.scheduler, model_output, timestep, sample)
        return inner(model_output, timestep, sample, *args, **kwargs)

    generators = [torch.Generator().manual_seed(index) for index in range(len(texts))]
    with intercept_step(pipe.scheduler, step):
        pipe(list(prompts), num_images_per_prompt=images, generator=generators, output_type="latent", **call)

    rows = []
    for index, progress in steps.items():
        by_full, seconds = _scores(reward, full, predictions[index], texts)
        by_tiny, preview_seconds = _scores(reward, tiny, predictions[index], texts)
        pairs = list(zip(by_full.reshape(-1, images), by_tiny.reshape(-1, images)))
        rows.append(
            {
                "progress": progress,
                "within": float(np.mean([spearmanr(a, b).statistic for a, b in pairs])),
                "pooled": float(spearmanr(by_full, by_tiny).statistic),
                "same best": float(np.mean([a.argmax() == b.argmax() for a, b in pairs])),
                "speed-up": seconds / preview_seconds,
            }
        )
    return rows


def _scores(
    reward: RewardFunction, decoder: LatentDecoder, latents: Tensor, texts: list[str]
) -> tuple[np.ndarray, float]:
    """Rewards (B,) and the seconds it took to decode."""
    with torch.no_grad():
        decoder(latents[:8])  # warm
        started = time.perf_counter()
        images = torch.cat([decoder(chunk).cpu() for chunk in latents.split(32)])
        seconds = time.perf_counter() - started
        scores = [
            torch.as_tensor(reward(images[start : start + 32].to(latents.device), texts[start : start + 32])).cpu()
            for start in range(0, len(texts), 32)
        ]
    return torch.cat(scores).numpy(), seconds


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write the table to this JSON file.")],
    model: AnyModel = DEFAULT_MODEL,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="Decode with this AutoencoderTiny, a hub id or folder such as madebyollin/taesd.",
            show_default="the bundled one",
        ),
    ] = None,
    reward: Guide = DEFAULT_REWARD,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw these prompts; may be repeated.", show_default="24 of the bundled world's held-out prompts"
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Make this many images of each prompt.")] = 8,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = None,
) -> None:
    """Rank correlation of rewards of previews with those of the full autoencoder's images, along the loop."""

    with one_line_errors():
        quiet_libraries()

        bundled, target = model in BUNDLED, default_device(device)
        pipe = load_pipeline(model, device=target)
        pipe.set_progress_bar_config(disable=True)
        options = bundled_options(model, reward)
        call: dict[str, Any] = {
            "num_inference_steps": steps or (NUM_INFERENCE_STEPS if bundled else 50),
            "guidance_scale": guidance if guidance is not None else (GUIDANCE_SCALE if bundled else 7.5),
        }
        rows = agreement(
            pipe,
            load_guide(reward, target, **options),
            load_preview(decoder or model, pipe),
            prompt or [line["prompt"] for line in evaluation_prompts(4)],
            images=images,
            **call,
        )
        write_json(
            out, {"model": model, "decoder": decoder or model, "reward": reward, "images": images, **call, "rows": rows}
        )
        shown = Table(*rows[0], box=None)
        for row in rows:
            shown.add_row(*(f"{value:.2f}" for value in row.values()))
        console.print(shown)


if __name__ == "__main__":
    app()
