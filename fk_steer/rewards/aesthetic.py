"""The LAION aesthetic predictor: how much people like an image, whatever the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Images
from .blip import Score
from .card import RewardCard
from .images import clip_pixels
from .loading import assign_weights, empty, fetch, load_pretrained, read_weights
from .local import LocalReward, Source, unit


CLIP = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")


class AestheticModel(nn.Module):
    """CLIP's image model and the predictor on its embeddings of length one."""

    def __init__(self, clip: Any, head: Score) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B,)."""
        return self.head(unit(self.clip(pixel_values=pixels).image_embeds))


class Aesthetic(LocalReward):
    """LAION aesthetic predictor v2 (LAION-5B, arXiv 2210.08402): the rating from 1 to 10 people would give an image,
    whatever the prompt; typically 4.5 to 7.

    Five linear layers on CLIP ViT-L/14's image embedding, trained on SAC, Logos and AVA. The published file is
    sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor, licence Apache-2.0;
    the same weights are on the hub as trl-lib/ddpo-aesthetic-predictor (aesthetic-model.pth), commit as pinned on the
    card. CLIP: openai/clip-vit-large-patch14.

    Args:
        variant: 'v2', of which the linear head on ViT-L/14 is the one in use.
        path: file, folder or hub id of the predictor; a folder has to hold the CLIP too unless `clip` is given.
        clip: hub id or folder of the CLIP.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: of CLIP; None for float16 on CUDA devices, as the original, and float32 elsewhere. The predictor runs in
            float32 or better.
        compile: run CLIP through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "aesthetic"
    card = RewardCard(
        summary="The rating from 1 to 10 people would give an image, whatever the prompt.",
        paper="arXiv 2210.08402",
        hub_id="trl-lib/ddpo-aesthetic-predictor",
        files=("aesthetic-model.pth",),
        revision="cf4bd10345610935a80a5d3be9a3133c50f121e4",
        licence="Apache-2.0; CLIP MIT",
        typical_range=(4.5, 7.0),
        default_lmbda=4.0,
        dtype="float16",
        weights=0.3,
        variants={"v2": RewardCard(summary="sac+logos+ava1-l14-linearMSE.")},
    )
    model: AestheticModel

    def load(self, source: Source, *, clip: str | None = None) -> tuple[Any, ...]:
        """See `LocalReward`."""
        from transformers import CLIPVisionModelWithProjection

        if clip is None:
            clip = source.path if source.given and Path(source.path).is_dir() else CLIP[0]
        file = fetch(source.path, self.card.files[0], self.name, source.revision)
        pinned = CLIP[1] if clip == CLIP[0] else None
        vision = load_pretrained(CLIPVisionModelWithProjection, clip, self.name, revision=pinned, dtype=source.dtype)
        head = empty(lambda: Score(vision.config.projection_dim))
        assign_weights(head, read_weights(file, self.name), file, self.name)
        return (AestheticModel(vision, head),)

    def place(self) -> None:
        """The predictor's weights are never rounded to half precision."""
        self.model.clip.to(self.device, self.dtype)
        self.model.head.to(self.device, torch.promote_types(self.dtype, torch.float32))

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """See `LocalReward`."""
        return (self.model.clip,)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised. PIL images become RGB last, as in the original."""
        side = self.model.clip.config.image_size
        return clip_pixels(images, side, self.device, self.dtype, exact, convert_last=True)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The ratings (B,)."""
        return self.model(inputs)
