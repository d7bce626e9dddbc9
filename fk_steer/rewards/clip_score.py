"""CLIPScore: cosine similarity of CLIP's image and text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..shapes import BUNDLED_CLIPS, resolve
from .base import Images, device_of
from .images import clip_pixels
from .loading import default_device, load_pretrained


VARIANTS: dict[str, tuple[str, str, float]] = {
    # name -> (hub id, prefix of the prompt, default lambda)
    "cosine": ("openai/clip-vit-large-patch14", "", 20.0),
    "hessel": ("openai/clip-vit-base-patch32", "A photo depicts ", 8.0),
}


class CLIPScore:
    """Cosine similarity between an image and its prompt under CLIP.

    Variants:
        - 'cosine': the raw cosine of ViT-L/14, as steering papers and ImageReward's code use it; typically 0.15 to
          0.35.
        - 'hessel': 2.5 * max(cosine, 0) of ViT-B/32 on "A photo depicts {prompt}" (Hessel et al., arXiv 2104.08718);
          typically 0.5 to 0.9.

    Images are scaled to the model's input as Pillow does and centre-cropped, prompts are cut at 77 tokens, and prompt
    embeddings are kept for the prompts of the last calls. Weights: MIT licence.

    Args:
        variant: 'cosine' or 'hessel'.
        path: hub id or folder of a `CLIPModel` with its tokenizer; 'shapes' for the bundled world's CLIP; None for the
            variant's own.
        revision: of a hub id.
        device: None for a CUDA device if there is one.
        dtype: None for float16 on CUDA devices, as the original, and float32 elsewhere.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "clip-score"

    def __init__(
        self,
        variant: str = "cosine",
        path: str | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        if variant not in VARIANTS:
            raise ValueError(f"Unknown variant {variant!r} of {self.name}. Known: {', '.join(VARIANTS)}.")
        default_path, self._prefix, self.default_lmbda = VARIANTS[variant]
        self.variant = variant
        self.device = default_device(device)
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        path = resolve(path or default_path, BUNDLED_CLIPS)
        self.model = load_pretrained(CLIPModel, path, self.name, revision=revision, dtype=self.dtype)
        self.model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = load_pretrained(CLIPTokenizer, path, self.name, revision=revision)
        self._text_features: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """See `Reward`."""
        pixels = clip_pixels(images, self.model.config.vision_config.image_size, self.device, self.dtype)
        image_features = _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)
        cosine = (image_features * self._encode(prompts)).sum(1)
        scores = 2.5 * cosine.clamp(min=0) if self.variant == "hessel" else cosine
        return scores.to(device_of(images, self.device))

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Unit text features (B, D)."""
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._text_features))
        if new:
            if len(self._text_features) > 4096:
                self._text_features.clear()
                return self._encode(prompts)
            tokens = self.tokenizer(
                [self._prefix + prompt for prompt in new],
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.device)
            features = _unit(self.model.get_text_features(**tokens).pooler_output)
            self._text_features.update(zip(new, features))
        return torch.stack([self._text_features[prompt] for prompt in prompts])


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)
