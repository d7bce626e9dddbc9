"""Train the world's ImageReward: a BLIP that tells whether a caption is true, then preferences.

    python -m fk_steer.shapes.train_blip --preferences runs/preferences --out runs/blip

1. Image-text matching on renders: every image meets its caption, edited versions of it and another image's caption;
   binary cross-entropy on which are true. As in `train_clip`, images are blurred and noised at random.
2. ImageReward's head on the same network, -log sigmoid(r_chosen - r_rejected) on all pairs of a group of images at once
   (Xu et al., arXiv 2304.05977, section 3).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel

from ..rewards.blip import ImageRewardModel
from ..rewards.images import normalize
from . import WEIGHTS
from .blip import make_model, make_tokenizer, med_config, save_reward
from .train_clip import EDITS, augment, batch, pixels_of
from .training import train
from .world import render


WITHOUT_PREFIX = 0.2
"""Share of captions that say 'a star' for 'a photo of a star', as some prompts do."""


class Matching(nn.Module):
    """ImageReward's network with BLIP's head in place of its own: the logit of a caption being true."""

    def __init__(self, model: ImageRewardModel) -> None:
        super().__init__()
        self.vision, self.text = model.vision, model.text
        self.head = nn.Linear(model.text.config.hidden_size, 1)

    def forward(self, pixels: Tensor, images: Tensor, tokens: Any) -> Tensor:
        """(B, 3, H, W), (P,) numbers of images, P captions -> (P,)."""
        return self.head(read(self, pixels, images, tokens)).squeeze(-1)


def read(model: Any, pixels: Tensor, images: Tensor, tokens: Any) -> Tensor:
    """What the first token of each caption is after it has seen its image: (P, width). Every image is seen once."""
    seen = model.vision(pixel_values=pixels).last_hidden_state[images]
    hidden = model.text(
        tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen, is_decoder=False
    ).last_hidden_state
    return hidden[:, 0]


class Groups:
    """The pairs of a preference file by group of images.

    Args:
        file: a JSON file of `preferences`.
    """

    def __init__(self, file: Path) -> None:
        by_group: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for item in json.loads(file.read_text()):
            by_group[item["group"]].append(item)
        self.groups = list(by_group.values())
        paths = sorted(
            {item[side] for group in self.groups for item in group for side in ("chosen_path", "reject_path")}
        )
        self.number = {path: index for index, path in enumerate(paths)}
        self.images = np.stack([np.asarray(Image.open(file.parent / path).convert("RGB")) for path in paths])

    def take(self, chosen: Any) -> tuple[Tensor, list[str], Tensor]:
        """Images (B, 3, H, W) in [0, 1] of some groups, a prompt for each, and pairs (P, 2), preferred first."""
        prompts: dict[int, str] = {}
        pairs = []
        for index in chosen:
            for item in self.groups[index]:
                pair = [self.number[item["chosen_path"]], self.number[item["reject_path"]]]
                prompts.update(dict.fromkeys(pair, item["prompt"]))
                pairs.append(pair)
        places = {number: place for place, number in enumerate(prompts)}
        pixels = torch.from_numpy(self.images[list(prompts)]).permute(0, 3, 1, 2).float() / 255
        return pixels, list(prompts.values()), torch.tensor([[places[number] for number in pair] for pair in pairs])


def matching_loss(
    model: Matching, tokenizer: Any, rng: np.random.Generator, size: int
) -> tuple[Tensor, dict[str, float]]:
    """Of one batch; and how often the own caption is above edited ones that are false."""
    scenes, lines, true = batch(rng, size, everything=True)
    own = torch.arange(size)
    columns = torch.cat([own, *(own + k * size for k in range(1, EDITS + 1)), own.roll(1)])
    images = own.repeat(EDITS + 2)
    texts = [lines[column]["prompt"] for column in columns.tolist()]
    short = np.repeat(rng.random(size) < WITHOUT_PREFIX, EDITS + 2).reshape(size, -1).T.flatten()
    texts = [text.removeprefix("a photo of ") if cut else text for text, cut in zip(texts, short)]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    pixels = normalize(augment(pixels_of([render(scene) for scene in scenes])))
    logits = model(pixels, images, tokens)
    labels = true[images, columns]
    by_kind = logits.unflatten(0, (-1, size))
    wrong = ~labels.unflatten(0, (-1, size))[1 : EDITS + 1]
    told_apart = (by_kind[:1] > by_kind[1 : EDITS + 1])[wrong].float().mean().item()
    return F.binary_cross_entropy_with_logits(logits, labels.float()), {"edits told apart": told_apart}


def main(
    preferences: Annotated[Path, typer.Option(help="Folder made by `fk_steer.shapes.preferences`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the reward lands in OUT/model.")],
    steps: Annotated[int, typer.Option(min=1, help="Of image-text matching.")] = 2000,
    preference_steps: Annotated[int, typer.Option(min=1)] = 600,
    batch_size: Annotated[int, typer.Option(min=2, help="Images in matching.")] = 48,
    groups: Annotated[int, typer.Option(min=1, help="Groups of images in a batch of preferences.")] = 16,
    perspective: str = "overall",
    learning_rate: float = 7e-4,
    preference_learning_rate: float = 2e-4,
    seed: int = 0,
) -> None:
    """Train an ImageReward on the world."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    med = med_config(tokenizer)
    model = make_model(med, CLIPModel.from_pretrained(WEIGHTS / "guide"))
    matching = Matching(model)
    train(
        matching,
        lambda step: matching_loss(matching, tokenizer, np.random.default_rng([seed, step]), batch_size),
        steps=steps,
        learning_rate=learning_rate,
        out=out / "matching",
        weight_decay=0.05,
        warmup=min(200, steps // 10),
        seed=seed,
    )

    data = Groups(preferences / f"{perspective}.json")

    def rate(pixels: Tensor, prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        return model.mlp(read(model, normalize(pixels), torch.arange(len(prompts)), tokens))

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        # Every group once in an epoch, each epoch in an order of its own.
        epoch, place = divmod(step * groups, len(data.groups))
        order = np.concatenate(
            [np.random.default_rng([seed, number]).permutation(len(data.groups)) for number in (epoch, epoch + 1)]
        )
        pixels, prompts, pairs = data.take(order[place : place + groups])
        scores = rate(pixels, prompts)
        margin = scores[pairs[:, 0]] - scores[pairs[:, 1]]
        return -F.logsigmoid(margin).mean(), {"accuracy": (margin > 0).float().mean().item()}

    train(
        model,
        loss_at,
        steps=preference_steps,
        learning_rate=preference_learning_rate,
        out=out / "preferences",
        weight_decay=0.05,
        warmup=min(50, preference_steps // 10),
        seed=seed,
    )
    # The scale is that of the weights as they are saved.
    model.half().float()
    with torch.no_grad():
        some = [data.take([index]) for index in range(min(800, len(data.groups)))]
        scores = torch.cat([rate(pixels, prompts) for pixels, prompts, _ in some])
    save_reward(model, tokenizer, med, scores, out / "model")


if __name__ == "__main__":
    typer.run(main)
