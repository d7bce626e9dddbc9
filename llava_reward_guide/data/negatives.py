"""Hard negatives: the prompt, or the image, that is most easily taken for the right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from ..backbones import load_weights
from ..images import load_image


TextEmbedding = Callable[[Sequence[str]], Tensor]
"""Texts -> (N, d)."""

ImageEmbedding = Callable[[Sequence[str]], Tensor]
"""Paths -> (N, d)."""

CHUNK = 512
"""Rows of the similarity matrix in memory at a time."""


def hard_negative_prompts(best: Mapping[str, Sequence[str]], embed: TextEmbedding) -> list[dict[str, Any]]:
    """For the best images of each prompt: with it, they are preferred to themselves with the most similar other prompt.

    Args:
        best: prompt -> its best images (`best_images`).

    Returns:
        Pairs {prompt: [right, most similar other], chosen_path, reject_path}, both paths being the same.
    """
    prompts = [prompt for prompt, paths in best.items() if paths]
    nearest = nearest_other(embed(prompts), list(range(len(prompts))))
    return [
        {"prompt": [prompt, prompts[other]], "chosen_path": path, "reject_path": path}
        for prompt, other in zip(prompts, nearest)
        for path in best[prompt]
    ]


def hard_negative_images(
    best: Mapping[str, Sequence[str]], images: Sequence[tuple[str, str]], embed: ImageEmbedding
) -> list[dict[str, Any]]:
    """For the best images of each prompt: they are preferred to the most similar image made for another prompt.

    Args:
        best: prompt -> its best images.
        images: (path, prompt) of all images to look for negatives in.

    Returns:
        Pairs {prompt, chosen_path, reject_path}.
    """
    known = dict(images)
    known.update({path: prompt for prompt, paths in best.items() for path in paths})
    paths = list(known)
    groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(known.values()))}
    nearest = nearest_other(embed(paths), [groups[known[path]] for path in paths])
    other = dict(zip(paths, nearest))
    return [
        {"prompt": prompt, "chosen_path": path, "reject_path": paths[other[path]]}
        for prompt, chosen in best.items()
        for path in chosen
    ]


def nearest_other(embeddings: Tensor, groups: Sequence[int]) -> list[int]:
    """For each row of (N, d), the one of another group with the highest cosine similarity.

    Raises:
        ValueError: if all are of one group.
    """
    if len(set(groups)) < 2:
        raise ValueError("Expected at least two different prompts to find hard negatives among.")
    normalized = F.normalize(embeddings.float(), dim=-1)
    group = torch.tensor(groups, device=normalized.device)
    found: list[int] = []
    for start in range(0, len(group), CHUNK):
        similarity = normalized[start : start + CHUNK] @ normalized.T
        same = group[start : start + CHUNK, None] == group
        found += similarity.masked_fill(same, -torch.inf).argmax(1).tolist()
    return found


class CLIPEmbedding:
    """Texts and images as a CLIP sees them; `text` and `image` are what the functions above take.

    Args:
        name: folder or hub id of a CLIP with its tokenizer.
        images: what relative paths are relative to, or what makes an image of a path, such as `Items.open`.

    Raises:
        CheckpointError: if its weights are not whole.
    """

    def __init__(
        self,
        name: str,
        images: str | Path | Callable[[str], Image] = ".",
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        self.model = load_weights(CLIPModel, name).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        side = self.model.config.vision_config.image_size
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self.read = images if callable(images) else lambda path: load_image(Path(images) / path)
        self.batch_size = batch_size

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), self.batch_size):
            chunk = list(texts[start : start + self.batch_size])
            tokens = self.tokenizer(chunk, padding=True, truncation=True, max_length=77, return_tensors="pt")
            parts.append(self.model.get_text_features(**tokens.to(self.model.device)).pooler_output)
        return torch.cat(parts)

    @torch.no_grad()
    def image(self, paths: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(paths), self.batch_size):
            chunk = [self.read(path) for path in paths[start : start + self.batch_size]]
            pixels = self.processor(chunk, return_tensors="pt")["pixel_values"]
            parts.append(self.model.get_image_features(pixels.to(self.model.device)).pooler_output)
        return torch.cat(parts)
