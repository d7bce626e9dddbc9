"""`shapes-oracle`: the detector as a reward, to measure the ceiling that a perfect reward would reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluation.geneval.rules import Verdict, evaluate
from ..rewards.base import Images, Reward, check_one_prompt_per_image, device_of
from ..rewards.card import RewardCard
from ..rewards.images import to_uint8
from .captions import parse
from .detector import detect


class ShapesOracle(Reward):
    """How far an image of the bundled world does what its prompt says, by exact detection: no guide, but the ceiling.

    0.9 times the mean degree to which GenEval's conditions are met, plus 0.1 times the mean confidence of the
    detections of the shapes asked for: above 0.9 if and only if the image is correct.

    Raises:
        ValueError: when called with a prompt that is not a caption of the world.
    """

    name = "shapes-oracle"
    card = RewardCard(
        summary="How far an image of the bundled world does what its prompt says, by exact detection: no guide, but "
        "the ceiling.",
        typical_range=(0.0, 1.0),
        default_lmbda=20.0,
    )
    default_lmbda = card.default_lmbda

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """The scores (B,) of images for their prompts.

        Raises:
            ValueError: unless there is one prompt per image, in GenEval's wording.
        """
        check_one_prompt_per_image(images, prompts)
        scores = [score(pixels, prompt) for pixels, prompt in zip(to_uint8(images, "cpu"), prompts)]
        return torch.tensor(scores, device=device_of(images, torch.device("cpu")))


def score(pixels: Tensor, prompt: str) -> float:
    """The reward of one image (3, H, W) uint8."""
    line = parse(prompt)
    detections = detect(pixels.permute(1, 2, 0).numpy())
    verdict = evaluate(line, detections)
    asked = [detection.score for entry in line["include"] for detection in detections.get(entry["class"], ())]
    degree = sum(condition.degree for condition in verdict.conditions) / len(verdict.conditions)
    return 0.9 * degree + 0.1 * (sum(asked) / len(asked) if asked else 0.0)


def judge(pixels: Tensor, prompt: str) -> Verdict:
    """GenEval's verdict on one image (3, H, W) uint8."""
    return evaluate(parse(prompt), detect(pixels.permute(1, 2, 0).numpy()))
