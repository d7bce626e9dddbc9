"""ImageReward: BLIP with a score on top, trained on people's ratings of generated images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Images
from .blip import TOKENIZER, ImageRewardModel, load_tokenizer, text_config, to_transformers, vision_config
from .card import RewardCard
from .images import clip_pixels
from .loading import RewardLoadError, assign_weights, empty, fetch, read_json, read_weights
from .local import LocalReward, Source


MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the model's outputs on its training data; ImageReward/ImageReward.py of the original."""

MAX_LENGTH = 35
"""Tokens of a prompt; the rest is cut off."""

SAFETENSORS = "ImageReward.safetensors"


class ImageReward(LocalReward):
    """ImageReward v1.0: general human preference (Xu et al., arXiv 2304.05977); typically -2.3 to 2.0, mean 0 and
    standard deviation 1 over its training data.

    The prompt, cut at 35 tokens, attends to the image in every layer of BLIP's text model. Weights: THUDM/ImageReward
    (ImageReward.pt, med_config.json), commit as pinned on the card, licence Apache-2.0; tokenizer
    google-bert/bert-base-uncased.

    Args:
        variant: 'v1.0', the only one published.
        path: folder or hub id of ImageReward.pt and med_config.json; 'shapes' for the bundled world's ImageReward. A
            folder may hold ImageReward.safetensors in place of the first, and vit_config.json for a vision model other
            than ViT-L/16; it has to hold vocab.txt or tokenizer.json unless `tokenizer` is given.
        tokenizer: hub id or folder of BERT's tokenizer.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for float32, as the original.
        compile: run the model through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "image-reward"
    card = RewardCard(
        summary="General human preference, by a BLIP trained on people's ratings of generated images.",
        paper="arXiv 2304.05977",
        hub_id="THUDM/ImageReward",
        files=("ImageReward.pt", "med_config.json"),
        revision="5736be03b2652728fb87788c9797b0570450ab72",
        licence="Apache-2.0",
        typical_range=(-2.3, 2.0),
        default_lmbda=10.0,
        dtype="float32",
        weights=0.45,
        variants={"v1.0": RewardCard(summary="The published model.")},
    )
    model: ImageRewardModel

    def load(self, source: Source, *, tokenizer: str | None = None) -> tuple[Any, ...]:
        """See `LocalReward`."""
        folder = Path(source.path)
        if source.given and folder.is_file():
            raise RewardLoadError(
                f"Expected `path` of the reward '{self.name}' to be a folder or hub id, as it takes "
                f"{' and '.join(self.card.files)}, but got the file {source.path!r}."
            )
        own = source.given and any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json"))
        weights_name, med_name = self.card.files
        if (folder / SAFETENSORS).exists():
            weights_name = SAFETENSORS
        file, med_file = (fetch(source.path, name, self.name, source.revision) for name in (weights_name, med_name))
        vit_file = file.parent / "vit_config.json"
        vision = vision_config(read_json(vit_file) if vit_file.exists() else {})
        text = text_config(read_json(med_file), vision.hidden_size)
        model = empty(lambda: ImageRewardModel(vision, text))
        weights = to_transformers(read_weights(file, self.name))
        assign_weights(model, weights, file, self.name, dtype=source.dtype)
        return model, load_tokenizer(tokenizer or (source.path if own else TOKENIZER[0]), self.name)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised. PIL images become RGB last, as in the original."""
        side = self.model.vision.config.image_size
        return clip_pixels(images, side, self.device, self.dtype, exact, convert_last=True)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,)."""
        input_ids, attention_mask = torch.stack(self.prompts(prompts), 1)
        return (self.model(inputs, input_ids, attention_mask) - MEAN) / STD

    def read(self, prompts: list[str]) -> Iterable[Tensor]:
        """(2, length) for each prompt: ids and mask."""
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]], 1).to(self.device)
