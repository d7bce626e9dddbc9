"""PickScore: a CLIP trained on which of two images people picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .base import Images
from .card import RewardCard
from .clip import CLIPReward
from .images import clip_pixels
from .loading import load_pretrained
from .local import Source


TOKENIZER = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
"""Hub id and commit of the tokenizer of ViT-H/14, the same for HPSv2."""


class PickScore(CLIPReward):
    """PickScore v1: how likely people are to pick an image for a prompt (Kirstain et al., arXiv 2305.01569).

    exp(logit scale) * cosine of a ViT-H/14 finetuned on Pick-a-Pic; typically 18 to 24. The probability that one image
    is picked over others of the same prompt is the softmax of their scores. Some papers print the score divided by 100.

    Weights: yuvalkirstain/PickScore_v1 (config.json, model.safetensors), commit as pinned on the card; licence MIT for
    the code, none stated for the weights. Tokenizer: laion/CLIP-ViT-H-14-laion2B-s32B-b79K.

    Args:
        variant: 'v1', the only one published.
        path: hub id or folder of the `CLIPModel`; a folder has to hold the tokenizer too unless `tokenizer` is given.
        tokenizer: hub id or folder of the tokenizer.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for float32, as the original.
        compile: run the models through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "pickscore"
    card = RewardCard(
        summary="How likely people are to pick an image for a prompt, by a CLIP finetuned on Pick-a-Pic.",
        paper="arXiv 2305.01569",
        hub_id="yuvalkirstain/PickScore_v1",
        files=("config.json", "model.safetensors"),
        revision="a4e4367c6dfa7288a00c550414478f865b875800",
        licence="MIT (code); not stated for the weights",
        typical_range=(18.0, 24.0),
        default_lmbda=2.0,
        dtype="float32",
        weights=0.99,
        variants={"v1": RewardCard(summary="The published model.")},
    )

    def load(self, source: Source, *, tokenizer: str | None = None) -> tuple[Any, ...]:
        """See `LocalReward`."""
        from transformers import CLIPModel

        model = load_pretrained(CLIPModel, source.path, self.name, revision=source.revision, dtype=source.dtype)
        if source.given and not tokenizer:
            return model, load_tokenizer(source.path, self.name, source.revision)
        return model, load_tokenizer(tokenizer or TOKENIZER[0], self.name)

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised; of an odd margin the crop begins where transformers' processor lets it."""
        side = self.model.config.vision_config.image_size
        return clip_pixels(images, side, self.device, self.dtype, exact, down=True)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores (B,)."""
        return self.model.logit_scale.exp() * super().rate(inputs, prompts)


def load_tokenizer(path: str, reward: str, revision: str | None = None) -> Any:
    """CLIP's tokenizer, at the pinned commit if it is that of ViT-H/14 and no other is asked for."""
    from transformers import CLIPTokenizer

    pinned = TOKENIZER[1] if path == TOKENIZER[0] else None
    return load_pretrained(CLIPTokenizer, path, reward, revision=revision or pinned)
