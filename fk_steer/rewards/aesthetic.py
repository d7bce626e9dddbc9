"""The LAION aesthetic predictor: how much people like an image, whatever the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Images
from .blip import Score
from .card import RewardCard
from .images import clip_pixels
from .loading import assign_weights, empty, fetch, load_pretrained, read_weights
from .local import LocalReward, check_variant, default_dtype, unit


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
        variants={"v2": RewardCard(summary="sac+logos+ava1-l14-linearMSE.")},
    )
    default_lmbda = 4.0
    model: AestheticModel

    def __init__(
        self,
        variant: str = "v2",
        path: str | None = None,
        clip: str | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        compile: bool = False,
    ) -> None:
        from transformers import CLIPVisionModelWithProjection

        check_variant(variant, self.card, self.name)
        if clip is None:
            clip = path if path and Path(path).is_dir() else CLIP[0]
        source, revision = self.card.source(path, revision)
        file = fetch(source, self.card.files[0], self.name, revision)
        dtype = default_dtype(device, dtype, torch.float16)
        vision = load_pretrained(
            CLIPVisionModelWithProjection,
            clip,
            self.name,
            revision=CLIP[1] if clip == CLIP[0] else None,
            dtype=dtype,
        )
        head = empty(lambda: Score(vision.config.projection_dim))
        assign_weights(head, read_weights(file, self.name), file, self.name)
        self._assemble(AestheticModel(vision, head), variant=variant, device=device, dtype=dtype, compile=compile)

    def _assemble(
        self,
        *modules: Any,
        variant: str,
        device: torch.device | str | None,
        dtype: torch.dtype | str | None,
        compile: bool,
    ) -> None:
        (model,) = modules
        dtype = default_dtype(device, dtype, torch.float16)
        self._set_up(model.clip, device, dtype, [model.clip] if compile else [])
        # The predictor's weights are never rounded to half precision.
        model.head.to(self.device, torch.promote_types(dtype, torch.float32))
        self.model = model.eval().requires_grad_(False)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised. PIL images become RGB last, as in the original."""
        side = self.model.clip.config.image_size
        return clip_pixels(images, side, self.device, self.dtype, exact, convert_last=True)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The ratings (B,)."""
        return self.model(inputs)
