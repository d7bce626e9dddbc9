"""The pictures of docs/concepts.md, from real runs of the bundled model: `python docs/site/pictures.py`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fk_steer import FKSteering, Look, Plan, Strategy, load_reward, steer
from fk_steer.shapes import load_pipeline
from fk_steer.smc import effective_sample_size, multinomial, normalize, ssp, systematic


FOLDER = Path(__file__).parent.parent / "pictures"
PROMPT = "a photo of a blue triangle and a purple star"
STEPS, SEED = 25, 1
LIT, GREY = "#1b7f3b", "#9a9a9a"


@dataclass(frozen=True)
class Watch(Strategy):
    """Look at the x0 predictions of some steps and change nothing."""

    steps_seen: tuple[int, ...] = field(default=(0, 4, 8, 12, 16, 20), kw_only=True)

    def events(self, num_steps: int) -> Iterable[int]:
        return self.steps_seen

    def copying(self, num_steps: int) -> list[int]:
        return []

    def step(self, look: Look) -> Plan:
        return Plan(look.everyone)


def save(figure: Figure, name: str) -> None:
    """Write a PNG of 256 colours, which is a third as large."""
    held = io.BytesIO()
    figure.savefig(held, dpi=110, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)
    FOLDER.mkdir(exist_ok=True)
    picture = Image.open(held).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)


def show(axes: Any, image: Tensor, title: str = "", colour: str = "black", frame: str | None = None) -> None:
    """An image (3, H, W) in [0, 1] with a line above it."""
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).float().numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, color=colour, pad=3)
    for spine in axes.spines.values():
        spine.set(color=frame or "#cccccc", linewidth=2.5 if frame else 0.5)


def predictions(pipe: Any, reward: Any) -> None:
    """One particle along the loop: what the loop holds, above what the model says it will become."""
    noisy: dict[int, Tensor] = {}
    seen: list[tuple[int, Tensor, float]] = []

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents = values["latents"][:1] / pipe.vae.config.scaling_factor
        noisy[step] = pipe.vae.decode(latents).sample[0] / 2 + 0.5
        return {}

    def look(event: Any) -> None:
        seen.append((event.step, event.predictions()[0, 0], event.rewards[0, 0].item()))

    watch = Watch(num_particles=2)
    with torch.no_grad():
        steer(pipe, reward, watch)(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(SEED),
            callback_on_step_end=keep,
            on_event=look,
        )
    figure, axes = plt.subplots(2, len(seen), figsize=(1.25 * len(seen), 3.0))
    for column, (step, image, score) in enumerate(seen):
        last = step == STEPS
        show(axes[0, column], noisy[STEPS - 1 if last else step], "the end" if last else f"step {step + 1} of {STEPS}")
        show(axes[1, column], image, f"reward {score:.2f}")
    axes[0, 0].set_ylabel("in the loop", fontsize=9)
    axes[1, 0].set_ylabel("x0 prediction", fontsize=9)
    save(figure, "predictions")


def population(pipe: Any, reward: Any) -> list[float]:
    """Four particles and who continued whom; returns the rewards at the first event."""
    pictures: list[Tensor] = []

    def look(event: Any) -> None:
        pictures.append(event.predictions()[0])

    output = steer(pipe, reward, FKSteering(num_particles=4))(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(SEED),
        on_event=look,
    )
    events = output.trace.events
    # From the best final image back to the first event: where its lineage stood.
    slot = events[-1].slots_before[0][max(range(4), key=lambda k: events[-1].rewards[0][k])]
    line = [slot]
    for event in reversed(events[:-1]):
        slot = event.parents[0][event.slots[0].index(slot)]
        line.insert(0, slot)
    figure, axes = plt.subplots(4, len(events), figsize=(1.45 * len(events), 5.6), gridspec_kw={"wspace": 0.55})
    centres = {}
    for column, (event, images) in enumerate(zip(events, pictures)):
        for place, (row, score) in enumerate(zip(event.slots_before[0], event.rewards[0])):
            lit = line[column] == row
            head = "final images\n" if event.final else f"step {event.step + 1}, ESS {event.ess[0]:.1f}\n"
            title = (head if row == 0 else "") + f"{score:.2f}"
            show(axes[row, column], images[place], title, LIT if lit else "black", LIT if lit else None)
            centres[column, row] = axes[row, column]
    figure.canvas.draw()
    to_figure = figure.transFigure.inverted()
    for column, event in enumerate(events[:-1]):
        for child, parent in zip(event.slots[0], event.parents[0]):
            lit = line[column] == parent and line[column + 1] == child
            left, right = centres[column, parent].get_window_extent(), centres[column + 1, child].get_window_extent()
            ends = to_figure.transform(
                [(left.x1 + 3, (left.y0 + left.y1) / 2), (right.x0 - 3, (right.y0 + right.y1) / 2)]
            )
            figure.add_artist(
                plt.Line2D(*ends.T, color=LIT if lit else GREY, linewidth=2.5 if lit else 1.2, zorder=3 if lit else 1)
            )
    save(figure, "population")
    return events[0].rewards[0]


def weights(rewards: list[float]) -> None:
    """What lambda makes of the same four rewards."""
    strengths = (0.0, 10.0, 40.0, 160.0)
    figure, axes = plt.subplots(1, len(strengths), figsize=(8.2, 2.1), sharey=True)
    for one, lmbda in zip(axes, strengths):
        log_weights = lmbda * torch.tensor([rewards], dtype=torch.float64)
        W, ess = normalize(log_weights)[0], effective_sample_size(log_weights).item()
        one.bar(range(len(rewards)), W.tolist(), color="#4051b5")
        one.set_xticks(range(len(rewards)), [f"{score:.2f}" for score in rewards])
        one.set_title(f"lambda {lmbda:g}: ESS {ess:.1f}", fontsize=9)
        one.tick_params(labelsize=8)
        one.set_xlabel("reward", fontsize=8)
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("weight", fontsize=8)
    axes[0].set_ylim(0, 1)
    save(figure, "weights")


def resampling(rewards: list[float]) -> None:
    """How often the best of the four is continued by three ways to draw from the same weights."""
    log_weights = 40.0 * torch.tensor([rewards], dtype=torch.float64)
    W = normalize(log_weights)[0]
    best, draws = int(W.argmax()), 4000
    many = log_weights.expand(draws, -1)
    figure, axes = plt.subplots(1, 3, figsize=(8.2, 2.1), sharey=True)
    for one, scheme in zip(axes, (multinomial, systematic, ssp)):
        counts = (scheme(many, 4, torch.Generator().manual_seed(0)) == best).sum(1)
        share = torch.bincount(counts, minlength=5) / draws
        one.bar(range(5), share.tolist(), color="#4051b5")
        one.set_title(scheme.__name__, fontsize=9)
        one.set_xlabel(f"copies of the best ({4 * W[best]:.1f} expected)", fontsize=8)
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of the draws", fontsize=8)
    save(figure, "resampling")


def main() -> None:
    """Draw all of them."""
    pipe, reward = load_pipeline("shapes-xl"), load_reward("clip-score", path="shapes")
    pipe.set_progress_bar_config(disable=True)
    predictions(pipe, reward)
    rewards = population(pipe, reward)
    weights(rewards)
    resampling(rewards)


if __name__ == "__main__":
    main()
