"""CLIPScore: cosine similarity of CLIP's image and text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .card import RewardCard
from .clip import CLIPReward
from .loading import load_pretrained
from .local import Source


FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")


class CLIPScore(CLIPReward):
    """Cosine similarity between an image and its prompt under CLIP.

    Variants:
        - 'cosine': the raw cosine of ViT-L/14, as steering papers and ImageReward's code use it; typically 0.15 to
          0.35. Weights openai/clip-vit-large-patch14.
        - 'hessel': 2.5 * max(cosine, 0) of ViT-B/32 on "A photo depicts {prompt}" (Hessel et al., arXiv 2104.08718);
          typically 0.5 to 0.9. Weights openai/clip-vit-base-patch32.

    Images are scaled to the model's input as Pillow does and centre-cropped, prompts are cut at 77 tokens, and prompt
    embeddings are kept for the prompts of the last calls. Files: config.json, model.safetensors and the tokenizer's;
    licence MIT; commits as pinned on the card.

    Args:
        variant: 'cosine' or 'hessel'.
        path: hub id or folder of a `CLIPModel` with its tokenizer; 'shapes' for the bundled world's CLIP; None for the
            variant's own.
        revision: of a hub id.
        device: None for a CUDA device if there is one.
        dtype: None for float16 on CUDA devices, as the original, and float32 elsewhere.
        compile: run the models through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "clip-score"
    card = RewardCard(
        summary="Cosine similarity between an image and its prompt under CLIP.",
        paper="arXiv 2103.00020; 'hessel' arXiv 2104.08718",
        licence="MIT",
        dtype="float16",
        variants={
            "cosine": RewardCard(
                summary="The raw cosine of ViT-L/14.",
                hub_id="openai/clip-vit-large-patch14",
                files=FILES,
                revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
                typical_range=(0.15, 0.35),
                default_lmbda=20.0,
                weights=0.43,
            ),
            "hessel": RewardCard(
                summary='2.5 * max(cosine, 0) of ViT-B/32 on "A photo depicts {prompt}".',
                hub_id="openai/clip-vit-base-patch32",
                files=FILES,
                revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
                typical_range=(0.5, 0.9),
                default_lmbda=8.0,
                weights=0.15,
            ),
        },
    )

    def load(self, source: Source) -> tuple[Any, ...]:
        """See `LocalReward`."""
        from transformers import CLIPModel, CLIPTokenizer

        model = load_pretrained(CLIPModel, source.path, self.name, revision=source.revision, dtype=source.dtype)
        return model, load_pretrained(CLIPTokenizer, source.path, self.name, revision=source.revision)

    def clean(self, prompt: str) -> str:
        """The text that is tokenised for a prompt."""
        return f"A photo depicts {prompt}" if self.variant == "hessel" else prompt

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores (B,)."""
        cosine = super().rate(inputs, prompts)
        return 2.5 * cosine.clamp(min=0) if self.variant == "hessel" else cosine
