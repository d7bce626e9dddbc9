"""What a LLaVA-Reward costs: FLOPs, memory, time; and what fewer crops do to the ranking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from .backbones import Backbone
from .backbones.cost import decoder_flops
from .config import RewardConfig
from .images import Images
from .model import LlavaReward
from .packages import require


TEXT_TOKENS = 40
"""Of a prompt of some 25 words in its template, on Phi-3.5-vision."""


def flops_per_image(
    backbone: Backbone,
    config: RewardConfig,
    width: int = 1024,
    height: int = 1024,
    num_crops: int | None = None,
    text_tokens: int = TEXT_TOKENS,
) -> int:
    """FLOPs to score one image, a multiplication with its addition counted as two.

    It does not depend on the batch, except that images padded to the length of a longer one cost as much as that one.

    Args:
        width, height: of the image in pixels.
        num_crops: most crops; None for the backbone's.
        text_tokens: of prompt and template, or of the longest of a batch.
    """
    vision, visual_tokens = backbone.vision_flops(width, height, num_crops)
    length = visual_tokens + text_tokens
    size = backbone.hidden_size
    queries = length if config.mean_pooling else 1
    readout = 2 * size * config.value_head_dim
    if config.add_cross_attention:
        readout += queries * (6 * size * size + 4 * visual_tokens * size)
    return vision + decoder_flops(backbone.config, length) + readout


def weight_bytes(reward: LlavaReward) -> int:
    """Of the backbone, with its adapters, and the active head."""
    return sum(parameter.numel() * parameter.element_size() for parameter in reward.parameters())


@dataclass(frozen=True)
class Speed:
    """One row of `measure`.

    Attributes:
        num_crops, batch_size: settings.
        tokens: of one image with its prompt.
        tflop_per_image: counted.
        images_per_second: measured, with the preparation of the images; the median of three runs.
    """

    num_crops: int | None
    batch_size: int
    tokens: int
    tflop_per_image: float
    images_per_second: float


def measure(
    reward: LlavaReward,
    num_crops: Sequence[int | None] = (16, 9, 4, 1),
    batch_sizes: Sequence[int] = (1, 4),
    width: int = 1024,
    height: int = 1024,
    prompt: str = "a photo of a brown oven and a purple train",
) -> list[Speed]:
    """Time `score` on images of noise."""
    noise = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy())
    rows = []
    for crops in num_crops:
        row = reward.backbone.prepare_row(image, prompt, crops)
        text_tokens = int((~row.image_mask).sum())
        flops = flops_per_image(reward.backbone, reward.config, width, height, crops, text_tokens)
        for batch_size in batch_sizes:
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                reward.embed([image] * batch_size, [prompt] * batch_size, crops, batch_size).cpu()
                seconds.append(time.perf_counter() - start)
            # The first run is for warming up.
            median = sorted(seconds[1:])[1]
            rows.append(Speed(crops, batch_size, len(row.input_ids), flops / 1e12, batch_size / median))
    return rows


@dataclass(frozen=True)
class CropsAgreement:
    """How the ranking by fewer crops agrees with that by the most.

    Attributes:
        num_crops: most crops of an image.
        kendall_tau: tau-b in [-1, 1].
        same_best: whether both put the same image first.
        tflop_per_image: mean over the images.
    """

    num_crops: int
    kendall_tau: float
    same_best: bool
    tflop_per_image: float


def crops_agreement(
    reward: LlavaReward, images: Images, prompts: Sequence[str], num_crops: Sequence[int] = (16, 9, 4, 1)
) -> list[CropsAgreement]:
    """Score the same images with several numbers of crops and compare each ranking with that of the largest.

    Raises:
        ValueError: for a backbone without crops, or fewer than two images.
    """
    require("scipy", "Comparing rankings")
    from scipy.stats import kendalltau

    from .images import to_pil

    if reward.backbone.num_crops is None:
        raise ValueError(f"Expected a backbone that cuts images into crops, but got {type(reward.backbone).__name__}.")
    if len(images) < 2:
        raise ValueError(f"Expected at least 2 images to rank, but got {len(images)}.")
    pictures = to_pil(images)
    scores = {crops: reward.score(pictures, prompts, crops).cpu() for crops in sorted(set(num_crops), reverse=True)}
    most = next(iter(scores.values()))
    rows = []
    for crops, score in scores.items():
        flops = [flops_per_image(reward.backbone, reward.config, *image.size, crops) for image in pictures]
        same_best = bool(score.argmax() == most.argmax())
        tau = float(kendalltau(score.numpy(), most.numpy()).statistic)
        rows.append(CropsAgreement(crops, tau, same_best, sum(flops) / len(flops) / 1e12))
    return rows
