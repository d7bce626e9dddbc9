"""What the rewards that compare CLIP's embeddings share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .base import Images
from .images import clip_pixels
from .local import LocalReward, unit


class CLIPReward(LocalReward):
    """Cosine similarity of CLIP's image and text embeddings; subclasses say of which CLIP and what is made of it.

    Prompts are cut at the length of CLIP's text model (77 tokens), and their embeddings are kept.
    """

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """See `LocalReward`."""
        return self.model.vision_model, self.model.text_model

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised."""
        return clip_pixels(images, self.model.config.vision_config.image_size, self.device, self.dtype, exact)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines (B,)."""
        image_features = unit(self.model.get_image_features(pixel_values=inputs).pooler_output)
        return (image_features * torch.stack(self.prompts(prompts))).sum(1)

    def clean(self, prompt: str) -> str:
        """The text that is tokenised for a prompt."""
        return prompt

    def read(self, prompts: list[str]) -> Iterable[Tensor]:
        """Embeddings of length one."""
        tokens = self.tokenizer(
            [self.clean(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        return unit(self.model.get_text_features(**tokens).pooler_output)
