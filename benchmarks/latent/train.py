"""Distil the image side of the bundled CLIP into the encoder of the latent reward.

The images are pictures of the world, drawn by its renderer, and samples of the bundled model for training prompts,
which benchmarks/dpo has stored. What an image looks like when noised is distributed as the states of a stochastic
sampler are, so no trajectory has to be stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save
from torch import Tensor

from benchmarks.dpo.candidates import read_candidates
from benchmarks.latent.encoder import LatentEncoder
from fk_steer.bundled import resolve_reward
from fk_steer.cli.options import one_line_errors
from fk_steer.console import progress_bar
from fk_steer.files import check_settings, record_settings, write_atomically
from fk_steer.loading import load_pipeline, quiet_libraries
from fk_steer.rewards.clip_score import CLIPScore
from fk_steer.rewards.local import unit
from fk_steer.shapes.captions import sample_pair
from fk_steer.shapes.training import train
from fk_steer.shapes.world import render


WEIGHTS = Path("out/latent/encoder.safetensors")
BATCH = 192
CHUNK = 1000
"""Pictures per file."""

REWARD = 20.0
"""What the error of the reward counts beside that of the whole embedding: particles of a prompt differ little."""

VALIDATION = 1000
"""Samples of the model, of prompts of their own, that training does not see."""


@torch.no_grad()
def stored(images: list[Tensor], out: Path, name: str) -> tuple[Tensor, Tensor]:
    """(N, 4, 8, 8) latents and (N, 128) embeddings of length one of images (3, 64, 64) uint8; what is there is read."""
    pipe = load_pipeline("shapes")
    clip = CLIPScore(path=resolve_reward("clip-score", "shapes"), device="cpu")
    parts = []
    with progress_bar() as bar:
        task = bar.add_task(name, total=len(images))
        for start in range(0, len(images), CHUNK):
            path = out / f"{name}-{start:06d}.safetensors"
            if not path.exists():
                latents, embeddings = [], []
                for some in torch.stack(images[start : start + CHUNK]).split(100):
                    mode = pipe.vae.encode(some.float() / 127.5 - 1).latent_dist.mode()
                    latents.append(mode * pipe.vae.config.scaling_factor)
                    pixels = clip.preprocess(some.float() / 255)
                    embeddings.append(unit(clip.model.get_image_features(pixel_values=pixels).pooler_output))
                found = {"latents": torch.cat(latents).contiguous(), "embeddings": torch.cat(embeddings)}
                write_atomically(path, save(found))
            parts.append(load_file(path))
            bar.advance(task, CHUNK)
    return torch.cat([part["latents"] for part in parts]), torch.cat([part["embeddings"] for part in parts])


def drawn(count: int) -> tuple[list[Tensor], list[str]]:
    """Pictures (3, 64, 64) uint8 of the world, and their captions."""
    rng = np.random.default_rng(77)
    pairs = [sample_pair(rng, everything=True) for _ in range(count)]
    pictures = (np.asarray(render(scene)) for scene, _ in pairs)
    return [torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in pictures], [text for _, text in pairs]


@torch.no_grad()
def read(texts: list[str]) -> Tensor:
    """(N, 128) embeddings of length one of texts."""
    clip = CLIPScore(path=resolve_reward("clip-score", "shapes"), device="cpu")
    distinct = list(dict.fromkeys(texts))
    known = dict(zip(distinct, clip.prompts(distinct)))
    return torch.stack([known[text] for text in texts])


def noised(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`latents` with noise of levels drawn uniformly in their angle, and alpha and sigma of each."""
    angle = torch.rand(len(latents)) * (torch.pi / 2)
    # The clean ones are scored, too.
    angle = torch.where(torch.rand(len(latents)) < 0.05, 0.0, angle)
    signal, noise = angle.cos(), angle.sin()
    mixed = signal[:, None, None, None] * latents + noise[:, None, None, None] * torch.randn_like(latents)
    return mixed, signal, noise


def errors(student: LatentEncoder, latents: Tensor, embeddings: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares of the error of the embeddings of noised latents, and of their products with their own texts'."""
    error = student(*noised(latents), texts) - embeddings
    return error.square().sum(1).mean(), (error * texts).sum(1).square().mean()


def main(
    candidates: Annotated[Path, typer.Option(help="Read the images that benchmarks/dpo made from this folder.")],
    out: Annotated[Path, typer.Option(help="Keep the run in this folder.")] = Path("out/latent/training"),
    prompts: Annotated[int, typer.Option(help="Take the samples of this many prompts.")] = 944,
    pictures: Annotated[int, typer.Option(help="Draw this many pictures beside them.")] = 20_000,
    steps: Annotated[int, typer.Option(help="Take this many steps.")] = 4000,
    encoder: Annotated[Path, typer.Option(help="Write the weights to this file.")] = Path(
        "out/latent/encoder.safetensors"
    ),
) -> None:
    """Train the encoder of the latent reward."""
    with one_line_errors():
        quiet_libraries()
        setup = {"prompts": prompts, "pictures": pictures, "steps": steps}
        check_settings(out, setup)
        record_settings(out, setup)
        lines, found = read_candidates(candidates, prompts)
        each = found["images"].shape[1]
        captions = [line["prompt"] for line in lines for _ in range(each)]
        of_model = (*stored(list(found["images"].flatten(0, 1)), out, "samples"), read(captions))
        images, captions = drawn(pictures)
        of_world = (*stored(images, out, "pictures"), read(captions))
        unseen = [one[-VALIDATION:] for one in of_model]
        latents, embeddings, texts = (
            torch.cat([one[:-VALIDATION], other]) for one, other in zip(of_model, of_world, strict=True)
        )
        student = LatentEncoder()

        def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
            # Half of them samples of the model, which are fewer.
            own = torch.randint(len(of_model[0]) - VALIDATION, (BATCH // 2,))
            rows = torch.cat([own, torch.randint(len(latents), (BATCH // 2,))])
            everything, reward = errors(student, latents[rows], embeddings[rows], texts[rows])
            loss = everything + REWARD * reward
            figures = {"loss": float(loss.detach()), "reward": float(reward.detach())}
            if step % 50 == 0:
                with torch.no_grad():
                    everything, reward = errors(student, *unseen)
                figures |= {"validation": float(everything + REWARD * reward), "validation reward": float(reward)}
            return loss, figures

        train(student, loss_at, steps=steps, learning_rate=1.5e-3, out=out / "encoder", ema=0.998, weight_decay=0.02)
        encoder.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(encoder, save({name: value.half() for name, value in student.state_dict().items()}))


if __name__ == "__main__":
    typer.run(main)
