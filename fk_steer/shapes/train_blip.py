"""Train the world's ImageReward: a BLIP that tells whether a caption is true, then preferences.

    python -m fk_steer.shapes.train_blip --preferences runs/preferences --backbone runs/llava/backbone --out runs/blip

1. Image-text matching on the images and captions of `train_llava`, from whose vision tower it starts: binary
   cross-entropy on which captions are true.
2. ImageReward's head on the same network, begun as the logit of matching: -log sigmoid(r_chosen - r_rejected) on all
   pairs of a group of images at once (Xu et al., arXiv 2304.05977, section 3).
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

from llava_reward_guide.backbones.phi3v import Phi3V

from ..rewards.blip import ImageRewardModel, Score
from ..rewards.images import normalize
from . import WEIGHTS
from .blip import make_model, make_tokenizer, med_config, save_reward
from .train_llava import CAPTIONS, Examples, told_right
from .training import train


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


@torch.no_grad()
def begin_as(score: Score, head: nn.Linear) -> None:
    """Give ImageReward's head weights by which it is nearly `head`, so that preferences go on from matching.

    Every unit of the first layer gets that logit, every unit after it the mean of those before, which dropout barely
    changes; a tenth of the random weights tells units apart.
    """
    first, *others = (layer for layer in score.layers if isinstance(layer, nn.Linear))
    for layer in (first, *others):
        layer.weight.mul_(0.1)
        layer.bias.zero_()
    first.weight.add_(head.weight)
    first.bias.add_(head.bias)
    for layer in others:
        layer.weight.add_(1 / layer.in_features)


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


def main(
    preferences: Annotated[
        Path, typer.Option(help="Read preferences from this folder, which fk_steer.shapes.preferences has made.")
    ],
    backbone: Annotated[Path, typer.Option(help="Start from the vision tower of the multimodal LLM in this folder.")],
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the reward lands in OUT/model.")],
    steps: Annotated[int, typer.Option(min=1, help="Train matching of images and texts for this many steps.")] = 8000,
    preference_steps: Annotated[int, typer.Option(min=1, help="Train on preferences for this many steps.")] = 800,
    batch_size: Annotated[int, typer.Option(min=2, help="Take this many images for a step of matching.")] = 24,
    groups: Annotated[int, typer.Option(min=1, help="Take this many groups of images for a step on preferences.")] = 16,
    perspective: Annotated[
        str, typer.Option(help="Train on this perspective: alignment, fidelity or overall.")
    ] = "overall",
    bf16: Annotated[bool, typer.Option(help="Compute matrix products in bfloat16.")] = False,
    learning_rate: Annotated[float, typer.Option(help="Train at this learning rate.")] = 7e-4,
    preference_learning_rate: Annotated[float, typer.Option(help="Train on preferences at this learning rate.")] = 5e-5,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train an ImageReward on the world."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    med = med_config(tokenizer)
    clip = CLIPModel.from_pretrained(WEIGHTS / "guide")
    # All but what comes after the last layer, which the tower lacks.
    tower = Phi3V.from_pretrained(str(backbone)).model.vision_embed_tokens.img_processor["vision_model"]
    clip.vision_model.load_state_dict(tower.state_dict(), strict=False)
    model = make_model(med, clip)
    matching = Matching(model)
    examples = Examples(preferences, seed)

    def matching_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, lines, labels, _ = examples(step, batch_size)
        texts = [line["prompt"] for several in lines for line in several]
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            images = torch.arange(len(pixels)).repeat_interleave(CAPTIONS)
            logits = matching(normalize(pixels), images, tokens).float().view_as(labels)
        return F.binary_cross_entropy_with_logits(logits, labels), told_right(logits, labels)

    train(
        matching,
        matching_loss,
        steps=steps,
        learning_rate=learning_rate,
        out=out / "matching",
        weight_decay=0.05,
        warmup=min(200, steps // 10),
        seed=seed,
    )

    begin_as(model.mlp, matching.head)
    data = Groups(preferences / f"{perspective}.json")

    def rate(pixels: Tensor, prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and torch.is_grad_enabled()):
            return model.mlp(read(model, normalize(pixels), torch.arange(len(prompts)), tokens)).float()

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
