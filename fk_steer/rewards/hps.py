"""HPSv2 and HPSv2.1: a CLIP trained on people's rankings of generated images."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .base import Images
from .card import RewardCard
from .clip import CLIPReward
from .images import batched, normalize, to_float, to_pixels
from .loading import assign_weights, empty, fetch, read_weights
from .local import Source
from .open_clip import VIT_H_14, clip_config, to_transformers
from .pickscore import TOKENIZER, load_tokenizer


class HPS(CLIPReward):
    """Human Preference Score v2 (Wu et al., arXiv 2306.09341): the cosine of a ViT-H/14 finetuned on HPD v2; typically
    0.20 to 0.35.

    Images are not cropped: the longer side is scaled to 224 and the rest is padded with black. The resizing works on
    floats and antialiases, as with torchvision 0.17 or newer; older releases did not, hence `antialias=False`. Unlike
    the original this pads images whose longer side already is 224 (the original fails on them unless square).

    Variants, both from xswu/HPSv2, commit as pinned on the card, licence Apache-2.0:
        - 'v2.1': HPS_v2.1_compressed.pt, trained on more data; what steering papers report as HPS.
        - 'v2': HPS_v2_compressed.pt.

    Args:
        variant: 'v2.1' or 'v2'.
        path: file, folder or hub id of the checkpoint; a folder may hold an open_clip_config.json for a model other
            than ViT-H/14, and has to hold the tokenizer unless `tokenizer` is given.
        tokenizer: hub id or folder; None for laion/CLIP-ViT-H-14-laion2B-s32B-b79K unless `path` is a folder.
        antialias: of the resizing.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for float16 on CUDA devices, where the original runs in mixed precision, and float32 elsewhere.
        compile: run the models through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "hps"
    card = RewardCard(
        summary="Human Preference Score v2: the cosine of a CLIP finetuned on people's rankings of generated images.",
        paper="arXiv 2306.09341",
        typical_range=(0.20, 0.35),
        hub_id="xswu/HPSv2",
        revision="697403c78157020a1ae59d23f111aa58ced35b0a",
        licence="Apache-2.0",
        default_lmbda=100.0,
        dtype="float16",
        weights=0.99,
        variants={
            "v2.1": RewardCard(summary="Trained on more data.", files=("HPS_v2.1_compressed.pt",)),
            "v2": RewardCard(summary="The first release.", files=("HPS_v2_compressed.pt",)),
        },
    )
    antialias = True

    def load(self, source: Source, *, tokenizer: str | None = None, antialias: bool = True) -> tuple[Any, ...]:
        """See `LocalReward`."""
        from transformers import CLIPModel

        self.antialias = antialias
        file = fetch(source.path, source.card.files[0], self.name, source.revision)
        config_file = file.parent / "open_clip_config.json"
        config = json.loads(config_file.read_text()) if config_file.exists() else VIT_H_14
        model = empty(lambda: CLIPModel(clip_config(config)))
        assign_weights(model, to_transformers(read_weights(file, self.name)), file, self.name, dtype=source.dtype)
        own = source.path if source.given and Path(source.path).is_dir() else TOKENIZER[0]
        return model, load_tokenizer(tokenizer or own, self.name)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), letterboxed and normalised."""
        side = self.model.config.vision_config.image_size
        pixels = batched(to_pixels(images, self.device, exact), lambda image: self._letterbox(to_float(image), side))
        return normalize(pixels).to(self.dtype)

    def _letterbox(self, images: Tensor, side: int) -> Tensor:
        """Scale (..., 3, H, W) so that the longer side becomes `side` and pad with black around the middle."""
        scale = side / max(images.shape[-2:])
        # At least one pixel, where the original fails: the shorter side of extreme formats rounds to nothing.
        height, width = (max(1, round(length * scale)) for length in images.shape[-2:])
        batch = images if images.ndim == 4 else images[None]
        if batch.shape[-2:] != (height, width):
            batch = F.interpolate(batch, (height, width), mode="bicubic", antialias=self.antialias)
        top, left = (side - height) // 2, (side - width) // 2
        batch = F.pad(batch, (left, side - width - left, top, side - height - top))
        return batch if images.ndim == 4 else batch[0]

    def clean(self, prompt: str) -> str:
        """The text that is tokenised for a prompt: broken Unicode repaired, HTML entities resolved, spaces single."""
        import ftfy

        return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
