"""HPSv3++: HPSv3 on Qwen3-VL, conditioned on how able the model is that made the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..published import Source as PublishedFile
from . import qwen_vl
from .card import RewardCard
from .hpsv3 import PIXELS, UNUSED, RubricReward, at_the_end, head
from .loading import assign_weights, empty, fetch, read_weights
from .local import Source
from .rubric import Rubric


BACKBONE = ("Qwen/Qwen3-VL-8B-Instruct", "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b")
"""Whose tokenizer is used."""

COMMIT = "7bdbebc921c1a2d746f1c3d27ccdb6e6fd6c5498"
RUBRIC = Rubric(
    PublishedFile(
        "the words of HPSv3++",
        f"https://raw.githubusercontent.com/PlantPotatoOnMoon/HPSv3-PlusPlus/{COMMIT}/hpsv3/dataset/data_collator_qwen.py",
        "d7babc902fcbbfecdbf47687866bf6d737bad56b7ba283685c03220836c0c9f1",
    ),
    "f6842f86b9917af8932f1969c40c590b66cfe63edb76e3065d8663957284798a",
    "hpsv3-plus.txt",
)
"""In the authors' repository."""

CONDITION = 256
"""Width of the condition's embedding."""

MIN_PIXELS, MAX_PIXELS = 65536, 16777216
"""Of Qwen3-VL's own preprocessing."""


class CapabilityEncoder(nn.Module):
    """How able the model is that made a group of images, from their hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, CONDITION)
        self.pool_attn = nn.Linear(CONDITION, 1)
        self.out_proj = nn.Linear(CONDITION, 1)

    def forward(self, groups: Tensor) -> Tensor:
        """G groups of K images each, (G, K, D) -> (G,) in [0, 1]."""
        projected = self.proj(groups)
        pooled = (projected * self.pool_attn(projected).softmax(1)).sum(1)
        return self.out_proj(pooled).sigmoid().squeeze(-1)


class HPSv3PlusModel(nn.Module):
    """A Qwen3-VL and the mean of its belief about a reward.

    Args:
        config: a `Qwen3VLConfig`.
    """

    def __init__(self, config: Any) -> None:
        from transformers import Qwen3VLModel

        super().__init__()
        width = config.text_config.hidden_size
        self.qwen = Qwen3VLModel(config)
        self.rm_head = head(width)
        self.cond_encoder = nn.Sequential(nn.Linear(2, CONDITION), nn.GELU(), nn.Linear(CONDITION, CONDITION))
        self.film_gen = nn.Sequential(nn.Linear(CONDITION, width), nn.ReLU(), nn.Linear(width, 2 * width))
        self.cap_encoder = CapabilityEncoder(width)

    def forward(
        self, patches: Tensor, grids: Tensor, rows: Sequence[Tensor], iteration: float, together: bool
    ) -> Tensor:
        """(N, P), (B, 3), B rows of ids, the last of each the token of the reward -> (B,).

        Args:
            iteration: the condition's second part, see `HPSv3Plus`.
            together: whether the capability is that of all images; else each has its own.
        """
        input_ids, mask = qwen_vl.padded(rows, "right", patches.device)
        hidden = self.qwen(
            input_ids=input_ids,
            attention_mask=mask,
            pixel_values=patches,
            image_grid_thw=grids,
            mm_token_type_ids=qwen_vl.is_image(input_ids, mask, self.qwen.config),
            use_cache=False,
        ).last_hidden_state
        pooled = at_the_end(hidden, mask, self.rm_head)
        capability = self.cap_encoder(pooled[None] if together else pooled[:, None]).expand(len(pooled))
        condition = self.cond_encoder(torch.stack([capability, torch.full_like(capability, iteration)], 1))
        # FiLM (Perez et al., arXiv 1709.07871).
        scale, shift = self.film_gen(condition).chunk(2, -1)
        return self.rm_head(pooled * (1 + scale) + shift)[:, 0]


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by `HPSv3PlusModel`'s names, from those of hpsv3++.pth, without those that scoring does not use."""
    return {
        f"qwen.{name.removeprefix('model.')}" if name.startswith("model.") else name: value
        for name, value in weights.items()
        if name not in UNUSED
    }


class HPSv3Plus(RubricReward):
    """HPSv3++ (arXiv 2606.14657): human preference, by a Qwen3-VL-8B that takes into account how able the model behind
    the image is and how far its training on a reward has gone; the authors report 9.8% more than HPSv3 on HPDv3.

    The image, scaled to about 200,704 pixels, and the prompt in a rubric of visual quality; the state at the token
    <|Reward|> is scaled and shifted by the condition before HPSv3's head of three layers. Weights:
    Junjun2333/HPSv3-PlusPlus (hpsv3++.pth, 17.6 GB), licence Apache-2.0 by the model's card; tokenizer of
    Qwen/Qwen3-VL-8B-Instruct, Apache-2.0. 8.2 billion weights, without the output layer, take 16.4 GB in bfloat16. The
    typical range is a guess from HPSv3's.

    The published code estimates one capability from all images of a call, so that its scores depend on which images are
    scored together; here each image has its own by default, as the published code gives for one image at a time. The
    second of the two resizings is Pillow's; the original's, torchvision's, rounds a little differently.

    The words of the rubric are not part of this package: they are read from a script in the authors' repository,
    fetched once with a checksum.

    Args:
        variant: 'v3++', the only one published.
        iteration: steps of training on rewards that the model behind the images has had, divided by 1000, at most 1.
        capability: 'image', or 'batch' for one of all images of a call.
        path: file, folder or hub id of the weights; a folder may hold a config.json for a backbone of another size, and
            a tokenizer in place of Qwen3-VL's.
        tokenizer: hub id or folder.
        template: what to ask with, see `Rubric.template`: None or 'published' for the published words, 'ours' for our
            own, with which it is another reward, or a file.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: of the backbone; None for bfloat16 on CUDA devices, as the original, and float32 elsewhere. The rest runs
            in float32 or better.
        compile: run the language model through `torch.compile`.

    Attributes:
        template: the `Template` that is asked with.

    Raises:
        ValueError: for an unknown variant or capability, an iteration outside [0, 1], a template without the
            placeholder, or when called, for an image more than 200 times as long as wide.
        RewardLoadError: if the weights or the published words cannot be had.
    """

    name = "hpsv3-plus"
    card = RewardCard(
        summary="HPSv3++: human preference by a Qwen3-VL, aware of how able the model is that made the image.",
        paper="arXiv 2606.14657",
        hub_id="Junjun2333/HPSv3-PlusPlus",
        files=("hpsv3++.pth",),
        licence="Apache-2.0",
        typical_range=(-1.0, 12.0),
        default_lmbda=1.0,
        dtype="bfloat16",
        weights=8.18,
        variants={"v3++": RewardCard(summary="The published model.")},
    )
    rubric = RUBRIC
    model: HPSv3PlusModel
    iteration, capability = 0.0, "image"

    def load(
        self,
        source: Source,
        *,
        tokenizer: str | None = None,
        template: str | Path | None = None,
        iteration: float = 0.0,
        capability: Literal["image", "batch"] = "image",
    ) -> tuple[Any, ...]:
        """See `LocalReward`."""
        from transformers import Qwen3VLConfig

        if not 0.0 <= iteration <= 1.0:
            raise ValueError(f"Expected `iteration` to be between 0.0 and 1.0, but got {iteration}.")
        if capability not in ("image", "batch"):
            raise ValueError(f"Expected `capability` to be 'image' or 'batch', but got {capability!r}.")
        self.iteration, self.capability = iteration, capability
        self.template = self.words(source, template)
        file = fetch(source.path, self.card.files[0], self.name, source.revision)
        weights = to_transformers(read_weights(file, self.name))
        vocabulary = len(weights.get("qwen.language_model.embed_tokens.weight", ()))
        config = qwen_vl.config_for(Qwen3VLConfig, file.parent, qwen_vl.QWEN3_VL_8B, vocabulary)
        model = empty(lambda: HPSv3PlusModel(config))
        assign_weights(model, weights, file, self.name)
        return model, self.load_words(source, tokenizer, BACKBONE, vocabulary)

    @property
    def sizes(self) -> list[Any]:
        """See `qwen_vl.image_inputs`: once in squares of 28 pixels, Qwen2-VL's, and then in Qwen3-VL's of 32."""
        factor = qwen_vl.factor_of(self.model.qwen.config)
        return [
            partial(qwen_vl.smart_size, factor=28, min_pixels=PIXELS, max_pixels=PIXELS),
            partial(qwen_vl.smart_size, factor=factor, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS),
        ]

    def rate(self, inputs: tuple[Tensor, Tensor], prompts: Sequence[str]) -> Tensor:
        """The rewards (B,)."""
        rows = qwen_vl.with_image_tokens(inputs[1], self.prompts(prompts), self.model.qwen.config)
        return self.model(*inputs, rows, self.iteration, self.capability == "batch")
