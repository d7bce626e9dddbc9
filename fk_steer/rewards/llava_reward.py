"""LLaVA-Reward as a reward to steer by."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..bundled import BUNDLED_LLAVA_REWARD, BUNDLED_REWARDS
from .base import Images, Reward, device_of
from .card import RewardCard
from .general_preference import GeneralPreferenceReward
from .loading import RewardLoadError
from .pairwise import check_statistic


if TYPE_CHECKING:
    from llava_reward_guide import LlavaReward

DEFAULT_CHECKPOINT = "smz8599/LLaVA-Reward/alignment/llavareward_phi_alignment"
CARD = RewardCard(
    summary="What a multimodal LLM, fine-tuned on preferences with one adapter per perspective, makes of the image.",
    paper="arXiv 2507.21391",
    hub_id="smz8599/LLaVA-Reward",
    files=(
        "alignment/llavareward_phi_alignment/reward_config.yaml",
        "alignment/llavareward_phi_alignment/pytorch_model.bin",
        "alignment/llavareward_phi_alignment/lora/adapter_config.json",
        "alignment/llavareward_phi_alignment/lora/adapter_model.bin",
    ),
    licence="Apache-2.0 (code); the backbone's own: MIT for Phi-3.5-vision",
    typical_range=(-0.1, 0.4),
    default_lmbda=60.0,
    dtype="bfloat16",
    weights=4.1,
)


class LLaVAReward(Reward):
    """A LLaVA-Reward (arXiv 2507.21391): a multimodal LLM with an adapter per perspective.

    Rewards of the published checkpoints lie within a few tenths of zero; the paper steers with lambda 60. Images are
    taken through 8-bit pixels as a saved image would be, so rewards are not differentiable in them. Weights:
    smz8599/LLaVA-Reward on the hub, for the backbones Phi-3.5-vision, Qwen2.5-VL-7B and LLaVA-v1.6-vicuna-13b.

    ```py
    reward = load_reward("llava-reward", path="alignment-checkpoint", backbone="microsoft/Phi-3.5-vision-instruct")
    Cascade(reward.view(num_crops=1), reward)  # a cheap look early on, by the same weights
    ```

    Args:
        model: a `llava_reward_guide.LlavaReward`.
        perspective: one of the model's; None for the active one.
        num_crops: most crops of an image; None for the model's.
        offload: keep the model in host memory but during calls. For a card that cannot hold it beside the pipeline.
    """

    card = CARD
    name = "llava-reward"
    default_lmbda = CARD.default_lmbda

    def __init__(
        self,
        model: LlavaReward,
        perspective: str | None = None,
        num_crops: int | None = None,
        offload: bool = False,
    ) -> None:
        self.model = model
        self.device = model.device
        self.perspective = model.active if perspective is None else perspective
        self.num_crops = num_crops
        self.offload = offload
        model.set_perspective(self.perspective)
        if offload:
            model.to("cpu")

    def view(self, perspective: str | None = None, num_crops: int | None = None) -> LLaVAReward:
        """The same model from another perspective, or with another number of crops.

        Raises:
            ValueError: for a perspective that the model does not have.
        """
        other = copy.copy(self)
        if perspective is not None:
            self.model.set_perspective(perspective)
            other.perspective, other.name = perspective, f"llava-reward ({perspective})"
        if num_crops is not None:
            other.num_crops, other.name = num_crops, f"{other.name} at {num_crops} crops"
        return other

    def embed(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """(B, value_head_dim) float32 on the device of the model; see `LlavaReward.embed`."""
        if self.model.active != self.perspective:
            self.model.set_perspective(self.perspective)
        if not self.offload:
            return self.model.embed(images, prompts, self.num_crops)
        self.model.to(self.device)
        try:
            return self.model.embed(images, prompts, self.num_crops)
        finally:
            self.model.to("cpu")

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        return self.embed(images, prompts)[:, 0].to(device_of(images, self.device))


def load_llava_reward(
    path: str | Mapping[str, str] = DEFAULT_CHECKPOINT,
    backbone: str | None = None,
    perspective: str | None = None,
    objective: str | None = None,
    num_crops: int | None = None,
    batch_size: int = 4,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    quantize: str | None = None,
    compile: bool = False,
    offload: bool = False,
    revision: str | None = None,
    as_coded: bool | None = None,
    full_finetune: bool = False,
    statistic: str = "win-probability",
) -> LLaVAReward | GeneralPreferenceReward:
    """A LLaVA-Reward. A general preference checkpoint, which gives an image no reward of its own, becomes a reward that
    compares the particles of a prompt with one another.

    Args:
        path: folder of a checkpoint, 'owner/repository[/folder]' on the hub, or several of them by perspective.
        statistic: of a general preference checkpoint, see `GeneralPreferenceReward`.
        offload: keep the model in host memory but during calls.
        **others: of `llava_reward_guide.loading.load`.

    Raises:
        RewardLoadError: if checkpoint or backbone cannot be loaded.
        ImportError: if an option needs a package that is not installed.
        ValueError: for an unknown option or statistic.
    """
    from llava_reward_guide import CheckpointError, LlavaReward

    check_statistic(statistic)
    if quantize is not None and offload:
        raise ValueError("Expected `offload` or `quantize`, but got both: quantized weights stay on their device.")
    bundled = isinstance(path, str) and path in BUNDLED_REWARDS["llava-reward"]
    if bundled:
        backbone = backbone or str(BUNDLED_LLAVA_REWARD / "backbone")
        perspective = perspective or "alignment"
        path = _bundled(perspective, objective)
    options: dict[str, Any] = {
        "backbone": backbone,
        "perspective": perspective,
        "objective": objective,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "quantize": quantize,
        "compile": compile,
        "revision": revision,
        "as_coded": as_coded,
        "full_finetune": full_finetune,
    }
    try:
        model = LlavaReward.from_pretrained(path, **options)
    except CheckpointError as error:
        raise RewardLoadError(f"Could not load the weights of the reward '{LLaVAReward.name}'. {error}") from error
    reward = LLaVAReward(model, num_crops=num_crops, offload=offload)
    if bundled:
        # Samples of a prompt have a standard deviation of 0.07, about that of the world's CLIP.
        reward.default_lmbda = 20.0
    if model.config.objective != "general-preference":
        return reward
    return GeneralPreferenceReward(reward.embed, model.config.tau, statistic, name=reward.name)


def _bundled(perspective: str, objective: str | None) -> str:
    folder = BUNDLED_LLAVA_REWARD / (perspective + ("-gpm" if objective == "general-preference" else ""))
    if not (folder / "llava_reward.json").is_file():
        if not BUNDLED_LLAVA_REWARD.is_dir():
            raise RewardLoadError(
                f"Expected the bundled LLaVA-Reward in '{BUNDLED_LLAVA_REWARD}', but there is none. Train it as "
                f"docs/training.md says and put it there with `python -m fk_steer.shapes.package`."
            )
        known = sorted(path.parent.name for path in BUNDLED_LLAVA_REWARD.glob("*/llava_reward.json"))
        raise ValueError(
            f"Expected a perspective of the bundled LLaVA-Reward, {', '.join(known)} ('-gpm' by "
            f'`objective="general-preference"`), but got {folder.name!r}.'
        )
    return str(folder)


load_llava_reward.card = CARD  # type: ignore[attr-defined]
