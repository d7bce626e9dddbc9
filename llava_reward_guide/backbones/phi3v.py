"""Phi-3.5-vision: Phi-3 with a CLIP tower and the HD image embedding, under the names of the published weights.

`transformers` has no class for it, and the code published beside the weights does not run on `transformers` 5.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3Model

from ..hd import hd_crops, hd_layout, hd_transform
from .base import Backbone, BackboneInputs, BackboneOutput, Row, load_weights
from .cost import clip_flops
from .text import TextTokenizer


CLIP_VIT_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


class Phi3VConfig(Phi3Config):
    """The config.json of Phi-3.5-vision. `vision_config` and `num_crops` are not in that file: they default to CLIP
    ViT-L/14 at 336 and 16."""

    model_type = "phi3_v"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {"vision_config": CLIPVisionConfig}

    vision_config: Any = None
    embd_layer: dict | None = None
    img_processor: dict | None = None
    num_crops: int = 16

    def __post_init__(self, **kwargs: Any) -> None:
        rope = kwargs.get("rope_scaling")
        if rope and rope.get("type", rope.get("rope_type")) == "su":
            # The old name, and without a length that is now expected beside the factors.
            kwargs["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": rope["short_factor"],
                "long_factor": rope["long_factor"],
                "original_max_position_embeddings": self.original_max_position_embeddings,
            }
        if self.vision_config is None:
            self.vision_config = dict(CLIP_VIT_LARGE_336)
        super().__post_init__(**kwargs)


class LongRotaryEmbedding(nn.Module):
    """Rotary embedding with the short factors up to the original context length and the long ones beyond.

    The choice is made for each row by its own length, so that a row's result does not depend on the batch. The
    original chooses by the padded length of the batch; `by_padded_length` reproduces that.
    """

    by_padded_length = False

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        rope = config.rope_parameters
        dim = config.hidden_size // config.num_attention_heads
        base = [rope["rope_theta"] ** (index / dim) for index in range(0, dim, 2)]
        self.original_length = config.original_max_position_embeddings
        ones = [1.0] * len(base)
        # Kept as numbers, not as buffers: nothing to initialise, to store or to lose in a cast to bfloat16.
        self.frequencies = [
            [1.0 / (factor * value) for factor, value in zip(rope.get(name) or ones, base)]
            for name in ("short_factor", "long_factor")
        ]
        self.attention_scaling = 1.0
        growth = config.max_position_embeddings / self.original_length
        if rope["rope_type"] == "longrope" and growth > 1:
            self.attention_scaling = math.sqrt(1 + math.log(growth) / math.log(self.original_length))

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, L, head dim) for hidden states (B, L, D) at positions (B, L)."""
        length = position_ids.amax(1) + 1
        if self.by_padded_length:
            length = torch.full_like(length, x.shape[1])
        frequencies = torch.tensor(self.frequencies, device=x.device)[(length > self.original_length).long()]
        angles = position_ids[..., None].float() * frequencies[:, None]
        angles = torch.cat([angles, angles], dim=-1)
        return (
            (angles.cos() * self.attention_scaling).to(x.dtype),
            (angles.sin() * self.attention_scaling).to(x.dtype),
        )


class HDImageEmbedding(nn.Module):
    """CLIP patches of the crops and the global view, merged 2 x 2, with separators, projected to the text model."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision = CLIPVisionConfig(**{**config.vision_config.to_dict(), "attn_implementation": None})
        vision._attn_implementation = config.vision_config._attn_implementation
        # The features are those of the layer before the last, so the last is not built.
        vision.num_hidden_layers = config.vision_config.num_hidden_layers - 1
        merged = 4 * vision.hidden_size
        self.img_processor = nn.ModuleDict({"vision_model": CLIPVisionModel(vision)})
        self.img_processor["vision_model"].post_layernorm = nn.Identity()
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def features(self, views: Tensor) -> Tensor:
        """(n, side, side, 4 * width) of views (n, 3, crop, crop): CLIP patches, 2 x 2 of them side by side."""
        patches = self.img_processor["vision_model"](views).last_hidden_state[:, 1:]
        side = math.isqrt(patches.shape[1]) // 2
        blocks = patches.view(-1, side, 2, side, 2, patches.shape[-1])
        return blocks.transpose(2, 3).reshape(-1, side, side, 4 * patches.shape[-1])

    def merge(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (N, 4 * width) before the projection, from the features of one image: crops, then global view.

        Args:
            features: of the global view and then the crops; of one view where the two are the same.
        """
        rows, columns = grid
        side, width = features.shape[1], features.shape[3]
        crops = features[-rows * columns :].view(rows, columns, side, side, width).transpose(1, 2)
        crops = crops.reshape(rows * side, columns * side, width)
        return torch.cat([self._with_separators(crops), self.glb_GN[0], self._with_separators(features[0])])

    def _with_separators(self, tokens: Tensor) -> Tensor:
        """(rows, columns, width) -> (rows * (columns + 1), width), each row ended by the separator."""
        separators = self.sub_GN[0].expand(tokens.shape[0], 1, -1)
        return torch.cat([tokens, separators], dim=1).flatten(0, 1)


class Phi3VModel(Phi3Model):
    """Phi-3.5-vision without its language-model head. Names are those of the published files below `model.`."""

    config_class = Phi3VConfig
    config: Phi3VConfig
    # Not used by the reward: the head, a copy of the embeddings, and the end of the tower (of which features are taken
    # one layer before the last).
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"lm_head\.",
        r"vision_embed_tokens\.wte\.",
        r"img_processor\.vision_model\.(post_layernorm|embeddings\.position_ids)",
    ]

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = LongRotaryEmbedding(config)
        self.vision_embed_tokens = HDImageEmbedding(config)
        last = config.vision_config.num_hidden_layers - 1
        self._keys_to_ignore_on_load_unexpected = [  # type: ignore[misc]
            *self._keys_to_ignore_on_load_unexpected,
            rf"img_processor\.vision_model\.encoder\.layers\.{last}\.",
        ]
        self.post_init()


class Phi3V(Backbone):
    """Phi-3.5-vision-instruct.

    Args:
        model: a `Phi3VModel`.
        tokenizer: of the Llama family, with the special tokens of Phi-3.
        num_crops: most crops of an image; None for that of the config, 16 as published. Fewer cost less.
    """

    model_type = "phi3_v"
    default_id = "microsoft/Phi-3.5-vision-instruct"
    projector_name = "vision_embed_tokens.img_projection"
    projector_prefixes = ("model.vision_embed_tokens.img_projection.",)
    adapter_prefixes: ClassVar[dict[str, str]] = {"model.": ""}

    def __init__(self, model: Phi3VModel, tokenizer: TextTokenizer, num_crops: int | None = None) -> None:
        super().__init__(model, tokenizer.id_of("<|endoftext|>"))
        self.tokenizer = tokenizer
        self.num_crops: int = model.config.num_crops if num_crops is None else num_crops
        vision = model.config.vision_config
        self.crop = vision.image_size
        self.crop_tokens = vision.image_size // vision.patch_size // 2
        # Newer releases of the tokenizer's own class lose the bare "▁" after a special token.
        user, end = tokenizer.id_of("<|user|>"), tokenizer.id_of("<|endoftext|>")
        tokenizer.expect("<|user|>\n", [user, tokenizer.id_of("\u2581"), tokenizer.id_of("<0x0A>")])
        tokenizer.expect("<|endoftext|>", [end])

    @classmethod
    def from_pretrained(
        cls, path: str, num_crops: int | None = None, vision_config: dict[str, Any] | None = None, **options: Any
    ) -> Phi3V:
        """See `Backbone`; `vision_config` for a tower other than CLIP ViT-L/14 at 336."""
        revision = options.get("revision")
        config = Phi3VConfig.from_pretrained(
            path, revision=revision, **({} if vision_config is None else {"vision_config": vision_config})
        )
        tokenizer = TextTokenizer.from_pretrained(path, revision)
        return cls(load_weights(Phi3VModel, path, config=config, **options), tokenizer, num_crops)

    @property
    def text_model(self) -> Phi3VModel:
        return self.model

    def prepare_row(self, image: Image, prompt: str, num_crops: int | None = None) -> Row:
        """`<|user|>`, the image and the prompt, then the end of text at once; each chunk of text begins with BOS."""
        num_crops = self.num_crops if num_crops is None else num_crops
        pixels = hd_transform(image, num_crops, self.crop)
        layout = hd_layout(*image.size, num_crops, self.crop, self.crop_tokens)
        bos = self.config.bos_token_id
        before = [bos, *self.tokenizer.encode("<|user|>\n")]
        after = [bos, *self.tokenizer.encode(f"\n{prompt}<|endoftext|>")]
        ids = torch.tensor([*before, *[-1] * layout.num_tokens, *after])
        return Row(ids, ids < 0, pixels, layout.grid)

    def vision_features(self, inputs: BackboneInputs) -> Tensor:
        views = [hd_crops(pixels, self.crop) for pixels in inputs.pixels]
        views = [seen[: _num_views(grid)] for seen, grid in zip(views, inputs.image_sizes)]
        return self.model.vision_embed_tokens.features(torch.cat(views).to(self.model.dtype))

    def embed_images(self, inputs: BackboneInputs) -> Tensor:
        embedding = self.model.vision_embed_tokens
        features = self.vision_features(inputs) if inputs.features is None else inputs.features
        per_image = features.split([_num_views(grid) for grid in inputs.image_sizes])
        merged = [embedding.merge(views, grid) for views, grid in zip(per_image, inputs.image_sizes)]
        return embedding.img_projection(torch.cat(merged))

    def forward(
        self,
        inputs: BackboneInputs,
        hidden_layer: int | None = None,
        visual_layer: int | None = None,
        as_coded: bool = False,
    ) -> BackboneOutput:
        self.model.rotary_emb.by_padded_length = as_coded
        return super().forward(inputs, hidden_layer, visual_layer, as_coded)

    def visual_tokens(
        self, inputs: BackboneInputs, visual: Tensor, embeddings: Tensor, as_coded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As coded, tokens that pad shorter images take part in the softmax with key and value zero."""
        tokens, mask = super().visual_tokens(inputs, visual, embeddings, as_coded)
        return tokens, None if as_coded else mask

    def vision_flops(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        num_crops = self.num_crops if num_crops is None else num_crops
        layout = hd_layout(width, height, num_crops, self.crop, self.crop_tokens)
        vision = self.model.vision_embed_tokens.img_processor["vision_model"].config
        size, merged = self.hidden_size, 4 * vision.hidden_size
        projector = 2 * layout.num_tokens * (merged * size + size * size)
        return _num_views(layout.grid) * clip_flops(vision) + projector, layout.num_tokens


def _num_views(grid: tuple[int, int]) -> int:
    """Passes through the tower. A single crop is the global view, pixel for pixel, and is seen once."""
    return 1 if grid == (1, 1) else 1 + grid[0] * grid[1]
