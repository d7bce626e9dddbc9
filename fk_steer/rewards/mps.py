"""MPS: a CLIP whose image attends to the words of the prompt that speak of what is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Images
from .card import RewardCard
from .images import clip_pixels
from .loading import assign_weights, empty, fetch, read_json, read_weights
from .local import LocalReward, Source, unit
from .open_clip import VIT_H_14, clip_config
from .pickscore import TOKENIZER, load_tokenizer


CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The words of the overall preference, as published."""

THRESHOLD = 0.3
"""What the published evaluation keeps of words, relative to the likest of a prompt; the model's own `forward`, of
training, has 0.01."""

HEADS, HEAD_SIZE, LAYERS = 16, 64, 4


class Attention(nn.Module):
    """Attention with one key and value for all heads, and a gated layer beside it: what both kinds of layers share.

    Args:
        width: of tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, heads * size), (B, L, size), (B, L, size) -> (B, N, heads * size); `mask` (B, L) is what is seen."""
        heads = query.unflatten(2, (-1, HEAD_SIZE)).transpose(1, 2)
        key, value = (one[:, None].expand(-1, heads.shape[1], -1, -1) for one in (key, value))
        seen = None if mask is None else mask[:, None, None]
        return F.scaled_dot_product_attention(heads, key, value, attn_mask=seen).transpose(1, 2).flatten(2)


class CrossAttention(Attention):
    """From an image's tokens to words."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width)
        self.to_q = nn.Linear(width, heads * HEAD_SIZE, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_SIZE, bias=False)
        self.to_out = nn.Linear(heads * HEAD_SIZE, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D), (B, L, D), (B, L) -> (B, N, D)."""
        normed = self.norm(tokens)
        key, value = self.to_kv(words).chunk(2, -1)
        attended = self.attend(self.to_q(normed), key, value, mask)
        return tokens + self.to_out(attended) + self.ff(normed)


class SelfAttention(Attention):
    """Among an image's tokens, with rotary positions (Su et al., arXiv 2104.09864) in their order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width)
        self.sizes = (heads * HEAD_SIZE, HEAD_SIZE, HEAD_SIZE, 8 * width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * HEAD_SIZE, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value, gated = self.fused_attn_ff_proj(self.norm(tokens)).split(self.sizes, -1)
        angles = _angles(tokens.shape[1], tokens.device)
        query = _rotated(query.unflatten(2, (-1, HEAD_SIZE)), angles[:, None]).flatten(2)
        attended = self.attend(query, _rotated(key, angles), value, None)
        return tokens + self.attn_out(attended) + self.ff_out(gated)


class SwiGLU(nn.Module):
    """(..., 2 D) -> (..., D): the first half times the SiLU of the second (Shazeer, arXiv 2002.05202)."""

    def forward(self, values: Tensor) -> Tensor:
        """See above."""
        first, gate = values.chunk(2, -1)
        return F.silu(gate) * first


def _angles(count: int, device: torch.device) -> Tensor:
    """(count, HEAD_SIZE) float32: of each position, twice over the frequencies."""
    powers = torch.arange(0, HEAD_SIZE, 2, device=device, dtype=torch.float32) / HEAD_SIZE
    return torch.outer(torch.arange(count, device=device, dtype=torch.float32), 10000.0**-powers).repeat(1, 2)


def _rotated(values: Tensor, angles: Tensor) -> Tensor:
    first, second = values.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return values * angles.cos().to(values.dtype) + turned * angles.sin().to(values.dtype)


class Layer(nn.ModuleList):
    """From the image to words, and among its tokens.

    Args:
        width: of tokens.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__([CrossAttention(width, heads), SelfAttention(width, heads)])

    def forward(self, tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D), (B, L, D), (B, L) -> (B, N, D)."""
        cross, among = self
        return among(cross(tokens, words, mask))


class MPSModel(nn.Module):
    """A CLIP, and layers in which its image's tokens attend to words.

    Args:
        config: a `CLIPConfig`.
        heads, layers: of these.
    """

    def __init__(self, config: Any, heads: int = HEADS, layers: int = LAYERS) -> None:
        from transformers import CLIPModel

        super().__init__()
        self.model = CLIPModel(config)
        width = config.projection_dim
        self.cross_model = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def words(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, L, D) of all tokens of texts (B, L), and (B, D) of the texts."""
        out = self.model.text_model(input_ids=input_ids)
        project = self.model.text_projection
        return project(out.last_hidden_state), project(out.pooler_output)

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) with regard to the words (B, L, D) that a mask (B, L) lets through."""
        tokens = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).last_hidden_state)
        for layer in self.cross_model:
            tokens = layer(tokens, words, mask)
        return tokens[:, 0]


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by `MPSModel`'s names, from those of the published file, without its constants but the biases of norms,
    which are 0."""
    converted = {}
    for name, value in weights.items():
        name = name.removeprefix("mps.").replace("cross_model.layers.", "cross_model.").replace(".fn.", ".")
        if not name.endswith((".inv_freq", ".position_ids")):
            converted[name] = value
    return converted


class MPS(LocalReward):
    """Multi-dimensional Preference Score, overall (Zhang et al., CVPR 2024, arXiv 2405.14705): 100 times a cosine, the
    image's features having attended to the words of the prompt that are like a list of what is judged.

    Image tokens of CLIP ViT-H/14 attend in four layers to those tokens of the prompt whose likeness to any word of the
    list (light, color, clarity, ...) is above 0.3 of the prompt's largest, as in the published evaluation. Weights:
    RE-N-Y/mpsv1 (model.safetensors), a copy of the authors' checkpoint, which itself is a pickle of code and refused;
    licence MIT. Tokenizer: laion/CLIP-ViT-H-14-laion2B-s32B-b79K. 1.1 billion weights take 2.2 GB in float16.

    Args:
        variant: 'overall', the only one published.
        path: file, folder or hub id of the weights; a folder may hold an open_clip_config.json for a CLIP other than
            ViT-H/14, and has to hold the tokenizer unless `tokenizer` is given.
        tokenizer: hub id or folder.
        condition: what is judged, in words.
        threshold: see above; 0.01 is what the model's own `forward` has.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for float16 on CUDA devices, as the original, and float32 elsewhere.
        compile: run the model through `torch.compile`.

    Raises:
        ValueError: for an unknown variant.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "mps"
    card = RewardCard(
        summary="Multi-dimensional Preference Score: a CLIP whose image attends to what the prompt says of the judged.",
        paper="arXiv 2405.14705",
        hub_id="RE-N-Y/mpsv1",
        files=("model.safetensors",),
        licence="MIT",
        typical_range=(5.0, 20.0),
        default_lmbda=1.0,
        dtype="float16",
        weights=1.1,
        variants={"overall": RewardCard(summary="Overall preference.")},
    )
    model: MPSModel
    # 0.16 MB each at full size.
    kept_prompts = 256
    condition, threshold = CONDITION, THRESHOLD

    def load(
        self,
        source: Source,
        *,
        tokenizer: str | None = None,
        condition: str = CONDITION,
        threshold: float = THRESHOLD,
    ) -> tuple[Any, ...]:
        """See `LocalReward`."""
        self.condition, self.threshold = condition, threshold
        file = fetch(source.path, self.card.files[0], self.name, source.revision)
        config_file = file.parent / "open_clip_config.json"
        config = read_json(config_file) if config_file.exists() else VIT_H_14
        weights = to_transformers(read_weights(file, self.name))
        heads = len(weights.get("cross_model.0.0.to_q.weight", ())) // HEAD_SIZE
        model = empty(lambda: MPSModel(clip_config(config), heads))
        assign_weights(model, weights, file, self.name, dtype=source.dtype)
        own = source.path if source.given and Path(source.path).is_dir() else TOKENIZER[0]
        return model, load_tokenizer(tokenizer or own, self.name)

    def read(self, prompts: list[str]) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Of each prompt the features of its tokens (L, D), which of them count (L,), and its own of length one."""
        texts = self.tokenizer(
            [self.condition, *prompts],
            padding="max_length",
            truncation=True,
            max_length=self.model.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids.to(self.device)
        words, own = self.model.words(texts)
        likeness = (words[1:] @ words[0].T).amax(2)
        seen = likeness / likeness.amax(1, keepdim=True) > self.threshold
        return zip(words[1:], seen, unit(own[1:]))

    def preprocess(self, images: Images, exact: bool = True) -> Tensor:
        """(B, 3, side, side), normalised."""
        side = self.model.model.config.vision_config.image_size
        return clip_pixels(images, side, self.device, self.dtype, exact, down=True)

    def rate(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores (B,)."""
        words, seen, texts = (torch.stack(part) for part in zip(*self.prompts(prompts)))
        scale = self.model.model.logit_scale.exp()
        return scale * (unit(self.model(inputs, words, seen)) * texts).sum(1)
