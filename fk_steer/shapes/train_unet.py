"""Train the world's Stable Diffusion, or its SDXL twin, on latents of rendered scenes.

    python -m fk_steer.shapes.train_unet --clip runs/clip/model --vae runs/vae/model --out runs/sd
    python -m fk_steer.shapes.train_unet --sdxl --second-clip runs/clip2/model ... --out runs/sdxl

v-prediction (epsilon for the twin) on SD v2.1's noise schedule, 10% of the captions dropped for guidance, averaged
weights. The twin learns size and crop conditioning from images that were scaled down or cropped. The pipeline lands in
OUT/pipeline, in float16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from .captions import sample_pair
from .models import assemble, assemble_xl, make_unet, make_unet_xl, save_half
from .train_clip import pixels_of
from .training import train
from .world import SIZE, render


NO_CONDITION = (SIZE, SIZE, 0, 0, SIZE, SIZE)
"""SDXL's time ids of an image that was neither scaled nor cropped."""


@torch.no_grad()
def cached_latents(
    folder: Path, vae: AutoencoderKL, count: int, seed: int, sdxl: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Latents of `count` scenes and their captions, made once per folder.

    Returns:
        {"latents": (N, 4, 8, 8) float16, scaled; "caption": (N,) index into the captions; "time_ids": (N, 6), SDXL's
        original size, crop and target size}, and the distinct captions.
    """
    tensors, captions = folder / "latents.safetensors", folder / "captions.json"
    if tensors.exists():
        return load_file(tensors), json.loads(captions.read_text())
    index: dict[str, int] = {}
    parts: dict[str, list[Tensor]] = {"latents": [], "caption": [], "time_ids": []}
    for start in tqdm(range(0, count, 100), desc="latents"):
        rng = np.random.default_rng([seed, start])
        pairs = [sample_pair(rng) for _ in range(min(100, count - start))]
        drawn = [render(scene) for scene, _ in pairs]
        images = [conditioned_image(image, rng) if sdxl else (image, NO_CONDITION) for image in drawn]
        pixels = pixels_of([image for image, _ in images])
        latents = vae.encode(2 * pixels - 1).latent_dist.mean * vae.config.scaling_factor
        parts["latents"].append(latents.half())
        parts["caption"].append(torch.tensor([index.setdefault(text, len(index)) for _, text in pairs]))
        parts["time_ids"].append(torch.tensor([time_ids for _, time_ids in images], dtype=torch.int16))
    made = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    captions.write_text(json.dumps(list(index)))
    save_file(made, tensors.with_suffix(".tmp"))
    tensors.with_suffix(".tmp").rename(tensors)
    return made, list(index)


def conditioned_image(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, ...]]:
    """A quarter of the images from a smaller original, a quarter cropped, with SDXL's time ids for that."""
    original, top, left = SIZE, 0, 0
    how = rng.random()
    if how < 0.25:
        original = int(rng.integers(28, 60))
        image = image.resize((original, original), Image.Resampling.BICUBIC).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
    elif how < 0.5:
        grown = SIZE + int(rng.integers(4, 16))
        top, left = (int(value) for value in rng.integers(1, grown - SIZE + 1, 2))
        image = image.resize((grown, grown), Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE))
    return image, (original, original, top, left, SIZE, SIZE)


def main(
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the pipeline lands in OUT/pipeline.")],
    clip: Annotated[Path, typer.Option(help="Take the text encoder from this trained CLIP.")],
    vae: Annotated[Path, typer.Option(help="Take this trained autoencoder.")],
    second_clip: Annotated[
        Path | None,
        typer.Option(help="Take the SDXL twin's second text encoder from this trained CLIP.", show_default="none"),
    ] = None,
    sdxl: Annotated[bool, typer.Option(help="Train the SDXL twin.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Train for this many steps.")] = 30_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Take this many images for a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Train at this learning rate.")] = 6e-4,
    scenes: Annotated[int, typer.Option(min=1, help="Draw and encode this many scenes.")] = 150_000,
    ema: Annotated[float, typer.Option(help="Average the weights with this decay.")] = 0.9995,
    dropout: Annotated[float, typer.Option(help="Drop this share of the captions, for guidance.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train the diffusion model."""
    torch.manual_seed(seed)
    clip_model, autoencoder = CLIPModel.from_pretrained(clip), AutoencoderKL.from_pretrained(vae)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    unet = make_unet_xl() if sdxl else make_unet()
    pipe: Any
    if sdxl:
        if second_clip is None:
            raise typer.BadParameter("The SDXL twin needs --second-clip.")
        pipe = assemble_xl(clip_model, CLIPModel.from_pretrained(second_clip), tokenizer, autoencoder, unet)
    else:
        pipe = assemble(clip_model, tokenizer, autoencoder, unet)
    data, captions = cached_latents(out, autoencoder, scenes, seed, sdxl)
    embeddings, pooled = embed(pipe, captions, sdxl)
    scheduler = pipe.scheduler
    alphas = scheduler.alphas_cumprod

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(data["latents"]), (batch_size,))
        latents, text = data["latents"][rows].float(), data["caption"][rows].long()
        # The last embedding is that of no caption.
        text = torch.where(torch.rand(batch_size) < dropout, len(captions), text)
        noise = torch.randn_like(latents)
        # One timestep from each of as many equal strata; the last may be rounded up to the end.
        t = ((torch.randperm(batch_size) + torch.rand(batch_size)) * (len(alphas) / batch_size)).long()
        t = t.clamp(max=len(alphas) - 1)
        signal, level = (value[:, None, None, None] for value in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        conditions = {}
        if sdxl:
            conditions = {"text_embeds": pooled[text], "time_ids": data["time_ids"][rows].float()}
        predicted = unet(
            signal * latents + level * noise, t, encoder_hidden_states=embeddings[text], added_cond_kwargs=conditions
        ).sample
        target = noise if sdxl else signal * noise - level * latents
        return F.mse_loss(predicted, target), {}

    train(
        unet,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        out=out,
        warmup=min(500, steps // 10),
        ema=ema,
        seed=seed,
    )
    save_half(pipe, out / "pipeline")


@torch.no_grad()
def embed(pipe: Any, captions: list[str], sdxl: bool) -> tuple[Tensor, Tensor]:
    """Text embeddings (N + 1, L, D) as the pipeline makes them, the last for no caption, and pooled ones for SDXL."""
    if not sdxl:
        embeddings, _ = pipe.encode_prompt([*captions, ""], "cpu", 1, False)
        return embeddings, torch.zeros(0)
    embeddings, nothing, pooled, pooled_nothing = pipe.encode_prompt(
        captions, device="cpu", do_classifier_free_guidance=True
    )
    return torch.cat([embeddings, nothing[:1]]), torch.cat([pooled, pooled_nothing[:1]])


if __name__ == "__main__":
    typer.run(main)
