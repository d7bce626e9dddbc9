"""CLIP-FlanT5, the model VQAScore was published with, on transformers' T5 and CLIP.

Prompts, preprocessing and names: linzhiqiu/t2v_metrics before commit 74c7208, t2v_metrics/models/vqascore_models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Images
from .images import batched, normalize, resize, to_float, to_pixels
from .loading import assign_weights, empty, fetch, load_pretrained, read_json, read_sharded
from .local import Source


TOKENIZER = ("google/flan-t5-xxl", "ae7c9136adc7555eeccc78cdd960dfd60fb346ce")

BEFORE_IMAGE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
AFTER_IMAGE = '\nDoes this figure show "{}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"
BACKGROUND = (122, 116, 104)
"""CLIP's mean colour, around images that are not square."""

MAX_LENGTH = 2048
"""Tokens of the whole text, the image counting as one."""

VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

_RENAMED = [
    (r"^vision_tower\.vision_tower\.vision_model\.", "vision."),
    (r"^mm_projector\.", "projector."),
    (r"^(encoder|decoder|shared|lm_head)\.", r"t5.\1."),
]


class ClipFlanT5(nn.Module):
    """An encoder-decoder that reads an image between two pieces of text.

    Args:
        config: of a clip-flant5 checkpoint: a T5 config, with `vision_config` if the vision model is not ViT-L/14 at
            336 pixels.
    """

    differentiable = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

        super().__init__()
        vision = CLIPVisionConfig(**config.get("vision_config", VIT_L_14_336))
        # The image's features are those before the last layer.
        vision.num_hidden_layers -= 1
        text = {name: value for name, value in config.items() if not name.startswith(("mm_", "vision_", "model_type"))}
        t5 = T5Config.from_dict({**text, "tie_word_embeddings": False})
        self.vision = CLIPVisionModel(vision)
        self.projector = nn.Sequential(
            nn.Linear(vision.hidden_size, t5.d_model), nn.GELU(), nn.Linear(t5.d_model, t5.d_model)
        )
        self.t5 = T5ForConditionalGeneration(t5)
        # One embedding wherever the module goes; transformers would tie the output layer too, which is another here.
        for stack in (self.t5.encoder, self.t5.decoder):
            stack.set_input_embeddings(self.t5.shared)

    @property
    def compiled(self) -> list[nn.Module]:
        return [self.vision, self.t5.encoder, self.t5.decoder]

    def preprocess(self, images: Images, exact: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(B, 3, side, side): made square with CLIP's mean colour, scaled, normalised."""
        side = self.vision.config.image_size
        pixels = to_pixels(images, device, exact)
        return normalize(to_float(batched(pixels, lambda image: resize(_square(image), (side, side))))).to(dtype)

    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor, Tensor]:
        """Ids before the image, after it, and of the answer; each piece ends with end-of-text, as in the original."""
        before, after, answer = (
            torch.tensor(tokenizer(text).input_ids) for text in (BEFORE_IMAGE, AFTER_IMAGE.format(prompt), ANSWER)
        )
        return before, after[: MAX_LENGTH - 1 - len(before)], answer

    def answer_probability(self, inputs: Tensor, tokens: Sequence[tuple[Tensor, ...]], plain: bool) -> Tensor:
        """(B,): the geometric mean of the probabilities of the answer's tokens and end-of-text; if `plain`, the product
        of those of the answer alone.
        """
        image = self.projector(self.vision(pixel_values=inputs).last_hidden_state[:, 1:])
        embed = self.t5.shared
        rows = [
            torch.cat([embed(before.to(inputs.device)), row, embed(after.to(inputs.device))])
            for row, (before, after, _) in zip(image, tokens)
        ]
        mask = nn.utils.rnn.pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        answer = torch.stack([answer for _, _, answer in tokens]).to(inputs.device)
        logits = self.t5(
            inputs_embeds=nn.utils.rnn.pad_sequence(rows, batch_first=True), attention_mask=mask, labels=answer
        ).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probability = logits.log_softmax(-1).gather(-1, answer[..., None])[..., 0]
        return log_probability[:, :-1].sum(1).exp() if plain else log_probability.mean(1).exp()


def _square(images: Tensor) -> Tensor:
    """(..., 3, H, W) in the middle of a square of the background's colour."""
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    colour = torch.tensor(BACKGROUND, device=images.device).view(3, 1, 1)
    background = (colour / 255 if images.is_floating_point() else colour).to(images.dtype)
    inside = torch.zeros(side, side, dtype=torch.bool, device=images.device)
    inside[top : top + height, left : left + width] = True
    padded = F.pad(images, (left, side - width - left, top, side - height - top))
    return torch.where(inside, padded, background)


def to_transformers(weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by `ClipFlanT5`'s names, from those of a checkpoint, cast to `dtype`."""
    layers = config.get("vision_config", VIT_L_14_336)["num_hidden_layers"]
    unused = re.compile(
        rf"^vision\.encoder\.layers\.{layers - 1}\.|\.position_ids$|^(t5\.(encoder|decoder)\.)?embed_tokens\.|"
        r"^t5\.decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\."
    )
    converted = {}
    for name, value in weights.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if not unused.search(name):
            converted[name] = value.to(dtype)
    if "t5.shared.weight" in converted:
        # One tensor under the three names T5 gives it.
        for stack in ("encoder", "decoder"):
            converted[f"t5.{stack}.embed_tokens.weight"] = converted["t5.shared.weight"]
    return converted


def load(source: Source, tokenizer: str | None, reward: str) -> tuple[ClipFlanT5, Any]:
    """The model and its tokenizer, of another place if `tokenizer` says so."""
    from transformers import AutoTokenizer

    config_file = fetch(source.path, "config.json", reward, source.revision)
    config = read_json(config_file)
    model = empty(lambda: ClipFlanT5(config))
    weights = to_transformers(read_sharded(source.path, reward, source.revision), config, source.dtype)
    assign_weights(model, weights, source.path, reward)
    tokenizer = tokenizer or (source.path if source.given else TOKENIZER[0])
    pinned = TOKENIZER[1] if tokenizer == TOKENIZER[0] else None
    return model, load_pretrained(AutoTokenizer, tokenizer, reward, revision=pinned, trust_remote_code=False)
