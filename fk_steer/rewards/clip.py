"""What the rewards that compare CLIP's embeddings share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Images
from .images import clip_pixels
from .local import LocalReward, PromptCache, default_dtype, unit


class CLIPReward(LocalReward):
    """Cosine similarity of CLIP's image and text embeddings; subclasses say of which CLIP and what is made of it.

    Prompts are cut at the length of CLIP's text model (77 tokens), and their embeddings are kept.
    """

    original_dtype: ClassVar[torch.dtype] = torch.float16
    """What the original runs in on CUDA devices."""

    model: Any

    def _assemble(
        self,
        *modules: Any,
        variant: str,
        device: torch.device | str | None,
        dtype: torch.dtype | str | None,
        compile: bool,
    ) -> None:
        model, self.tokenizer = modules
        self.variant = variant
        dtype = default_dtype(device, dtype, self.original_dtype)
        self._set_up(model, device, dtype, [model.vision_model, model.text_model] if compile else [])
        self._text_features = PromptCache(self._encode)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised."""
        return clip_pixels(images, self.model.config.vision_config.image_size, self.device, self.dtype, exact)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines (B,)."""
        image_features = unit(self.model.get_image_features(pixel_values=inputs).pooler_output)
        return (image_features * torch.stack(self._text_features(prompts))).sum(1)

    def clean(self, prompt: str) -> str:
        """The text that is tokenised for a prompt."""
        return prompt

    def _encode(self, prompts: list[str]) -> Iterable[Tensor]:
        tokens = self.tokenizer(
            [self.clean(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        return unit(self.model.get_text_features(**tokens).pooler_output)
