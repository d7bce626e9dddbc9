"""The colours of detected objects, told as GenEval's evaluator tells them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...rewards.images import clip_pixels
from ...rewards.loading import load_pretrained
from ..prompts import COLOURS
from .rules import Box


CLIP = "openai/clip-vit-large-patch14"
BACKGROUND = "#999999"
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


def cutout(image: Image.Image, box: Box, mask: np.ndarray) -> Image.Image:
    """An object, given by its box in pixels and its pixels (H, W) bool, on a grey background, cropped to its box."""
    blank = Image.new("RGB", image.size, BACKGROUND)
    isolated = Image.composite(image.convert("RGB"), blank, Image.fromarray(mask))
    left, top, right, bottom = (round(side) for side in box)
    return isolated.crop((left, top, right, bottom))


class ColourClassifier:
    """Tells the colour of an object by CLIP, as GenEval does: the nearest of ten colours, each the mean of three
    prompts' embeddings.

    Args:
        path: hub id or folder of a `CLIPModel` with its tokenizer.
        device: where it runs.

    Raises:
        RewardLoadError: if the weights cannot be loaded.
    """

    def __init__(self, path: str = CLIP, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.device = torch.device(device)
        self.model = load_pretrained(CLIPModel, path, "geneval", dtype=torch.float32)
        self.model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = load_pretrained(CLIPTokenizer, path, "geneval")
        self._embeddings: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, cutout: Image.Image, name: str) -> str:
        """The colour of an object of a class."""
        side = self.model.config.vision_config.image_size
        pixels = clip_pixels([cutout], side, self.device, torch.float32)
        features = self.model.get_image_features(pixel_values=pixels).pooler_output[0]
        return COLOURS[int((self.embeddings(name) @ features).argmax())]

    @torch.no_grad()
    def embeddings(self, name: str) -> Tensor:
        """Unit embeddings (10, D) of the colours of a class."""
        if name not in self._embeddings:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            longest = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            features = F.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output, dim=-1)
            means = features.unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
            self._embeddings[name] = F.normalize(means, dim=-1)
        return self._embeddings[name]
