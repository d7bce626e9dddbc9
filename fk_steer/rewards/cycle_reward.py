"""CycleReward: a BLIP trained on which of two images, or captions, leads back to where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Images
from .blip import TOKENIZER, ImageRewardModel, load_tokenizer, text_config, to_transformers, vision_config
from .card import RewardCard
from .images import clip_pixels
from .loading import assign_weights, empty, fetch, read_json, read_weights
from .local import LocalReward, Source


MED = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
"""The text model: BERT's base size. What the published med_config.json says, which copies of the weights lack."""

MAX_LENGTH = 128
"""Tokens of a prompt; the rest is cut off."""


class Head(nn.Module):
    """Five linear layers with GELU in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 1024, 128, 64, 16, 1]
        parts: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            parts += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        return self.layers(features).squeeze(-1)


class CycleReward(LocalReward):
    """CycleReward (Bahng et al., arXiv 2506.02095): how well image and prompt describe each other, learnt from cycle
    consistency, without people; meant for long, dense prompts.

    The network is ImageReward's but for a GELU between the layers of the head; prompts are cut at 128 tokens, nothing
    is standardised. Weights, licence MIT: NagaSaiAbhinay/CycleReward-Combo and its siblings (model.safetensors), copies
    of the authors' CycleReward-Combo.pth, CycleReward-T2I.pth and CycleReward-I2T.pth (release v1.0.0 of
    github.com/hjbahng/cyclereward), which `path` takes as well; tokenizer google-bert/bert-base-uncased. 0.45 billion
    weights take 1.8 GB in float32. The typical range and lambda are guesses, not measured.

    Variants:
        - 'combo': trained on both kinds of pairs; what the authors recommend.
        - 't2i': on images for a text; NagaSaiAbhinay/CycleReward-T2I.
        - 'i2t': on texts for an image; NagaSaiAbhinay/CycleReward-I2T.

    Args:
        variant: see above.
        path: file, folder or hub id of the weights. A folder may hold a med_config.json, and a vit_config.json for a
            vision model other than ViT-L/16, and vocab.txt or tokenizer.json.
        tokenizer: hub id or folder of BERT's tokenizer.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for float32, as the original.
        compile: run the model through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "cycle-reward"
    card = RewardCard(
        summary="How well image and prompt describe each other, learnt from cycle consistency; for dense prompts.",
        paper="arXiv 2506.02095",
        files=("model.safetensors",),
        licence="MIT",
        typical_range=(-3.0, 3.0),
        default_lmbda=2.0,
        dtype="float32",
        weights=0.45,
        variants={
            "combo": RewardCard(summary="Trained on both kinds of pairs.", hub_id="NagaSaiAbhinay/CycleReward-Combo"),
            "t2i": RewardCard(summary="Trained on images for a text.", hub_id="NagaSaiAbhinay/CycleReward-T2I"),
            "i2t": RewardCard(summary="Trained on texts for an image.", hub_id="NagaSaiAbhinay/CycleReward-I2T"),
        },
    )
    model: ImageRewardModel

    def load(self, source: Source, *, tokenizer: str | None = None) -> tuple[Any, ...]:
        """See `LocalReward`."""
        folder = Path(source.path)
        authors = f"{str(source.card.hub_id).split('/')[1]}.pth"
        name = authors if (folder / authors).exists() else source.card.files[0]
        file = fetch(source.path, name, self.name, source.revision)
        beside = {name: file.parent / name for name in ("vit_config.json", "med_config.json")}
        vit, med = (read_json(path) if path.exists() else {} for path in beside.values())
        vision = vision_config(vit)
        text = text_config({**MED, **med}, vision.hidden_size)
        model = empty(lambda: ImageRewardModel(vision, text, Head(text.hidden_size)))
        assign_weights(model, to_transformers(read_weights(file, self.name)), file, self.name, dtype=source.dtype)
        own = source.given and any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json"))
        return model, load_tokenizer(tokenizer or (source.path if own else TOKENIZER[0]), self.name)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised. PIL images become RGB last, as in the original."""
        side = self.model.vision.config.image_size
        return clip_pixels(images, side, self.device, self.dtype, exact, convert_last=True)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,)."""
        return self.model(inputs, *torch.stack(self.prompts(prompts), 1))

    def read(self, prompts: list[str]) -> Iterable[Tensor]:
        """(2, length) for each prompt: ids and mask."""
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]], 1).to(self.device)
