"""What the latent reward knows of the final reward.

Over trajectories of the stochastic sampler that nothing steers, the rank correlation within each prompt of the final
images' CLIP reward with the CLIP reward of decoded x0 predictions, and with what the latent reward says of the noisy
latents, at several moments.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from scipy.stats import rankdata

from benchmarks.latent.encoder import DistilledReward
from fk_steer.bundled import bundled_options
from fk_steer.cli.options import PerTask, one_line_errors
from fk_steer.diffusion import steer
from fk_steer.evaluation.statistics import clustered_mean
from fk_steer.evaluation.world import SPLITS, Row, write_table
from fk_steer.files import check_settings, record_settings, write_json
from fk_steer.loading import load_guide, load_pipeline, quiet_libraries, set_scheduler
from fk_steer.rewards import Reward, WeightedSum
from fk_steer.search import preset
from fk_steer.shapes import GUIDANCE_SCALE


MODEL, GUIDE, LATENT = "shapes", "clip-score", "distilled"
MOMENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PARTICLES, STEPS, BATCH = 8, 25, 8


class Split(str, Enum):
    tuning = "tuning"
    held_out = "held-out"


Out = Annotated[Path, typer.Option(help="Keep the run in this folder.")]
Encoder = Annotated[Path, typer.Option(help="Read the weights from this file.")]


def clip() -> Reward:
    guide = load_guide(GUIDE, "cpu", **bundled_options(MODEL, GUIDE))
    assert isinstance(guide, Reward)
    return guide


@torch.no_grad()
def trajectories(lines: list[dict[str, Any]], seed: int, reward: Reward) -> list[dict[str, list[float]]]:
    """Of each prompt by the name of a moment or 'final' the scores of each particle by both."""
    pipe = load_pipeline(MODEL)
    pipe.set_progress_bar_config(disable=True)
    strategy = preset("adaptive", num_particles=PARTICLES, lmbda=0.0, tempering="constant", schedule=MOMENTS)
    set_scheduler(pipe, None, strategy, STEPS)
    output = steer(pipe, reward, strategy)(
        [line["prompt"] for line in lines],
        generator=[torch.Generator().manual_seed(seed + index) for index in range(len(lines))],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="pt",
    )
    found: list[dict[str, list[float]]] = [{} for _ in lines]
    for event in output.trace.events:
        moment = "final" if event.final else f"{event.progress:.2f}"
        for name, values in event.scores.items():
            for own, scores in zip(found, values):
                own[f"{moment} {name}"] = scores
    return found


def spearman(one: list[float], other: list[float]) -> float:
    """Rank correlation; 0 where one of them says nothing."""
    ranks = torch.stack([torch.from_numpy(rankdata(values)) for values in (one, other)])
    if (ranks.std(dim=1) == 0).any():
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def main(
    out: Out = Path("out/latent/correlations"),
    split: Annotated[Split, typer.Option(help="Take tuning or held-out prompts.")] = Split.held_out,
    per_task: PerTask = 40,
    encoder: Encoder = Path("out/latent/encoder.safetensors"),
) -> None:
    """Measure how early scores and the final reward rank the images of a prompt alike."""
    with one_line_errors():
        quiet_libraries()
        setup = {"split": split.value, "per_task": per_task, "particles": PARTICLES, "steps": STEPS}
        check_settings(out, setup)
        record_settings(out, setup)
        lines = SPLITS[split.value](per_task)
        reward = WeightedSum({clip(): 1.0, DistilledReward(encoder): 1.0})
        found: list[dict[str, list[float]]] = []
        for start in range(0, len(lines), BATCH):
            path = out / "scores" / f"{start:05d}.json"
            if not path.exists():
                write_json(path, trajectories(lines[start : start + BATCH], 70_000_000 + start, reward))
            found += json.loads(path.read_text())
        moments = [name.split()[0] for name in found[0] if name.endswith(LATENT) and not name.startswith("final")]
        rows: dict[str, Row] = {}
        for moment in moments:
            by = {
                name: [spearman(one[f"{moment} {name}"], one[f"final {GUIDE}"]) for one in found]
                for name in (GUIDE, LATENT)
            }
            gain = [b - a for a, b in zip(by[GUIDE], by[LATENT])]
            rows[moment] = {
                "CLIP of x0": clustered_mean([[value] for value in by[GUIDE]]),
                LATENT: clustered_mean([[value] for value in by[LATENT]]),
                "difference": clustered_mean([[value] for value in gain]),
            }
        write_table(
            out.with_name(f"{out.name}-{split.value}"), rows, [name.replace(" ", "_") for name in rows[moments[0]]]
        )


if __name__ == "__main__":
    typer.run(main)
