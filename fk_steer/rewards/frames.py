"""Rewards of images as rewards of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .asking import encode_images
from .base import Images, Reward, RewardFunction
from .functions import as_reward


REDUCTIONS = {"mean": lambda scores: scores.mean(0), "min": lambda scores: scores.amin(0)}
"""Name -> what makes of the scores of frames (n, K) those of videos (K,)."""


class FrameReward(Reward):
    """Scores videos by their frames, each with a reward of images.

    ```py
    steer(WanPipeline.from_pretrained(...), FrameReward(load_reward("pickscore"), frames=8))
    ```

    Args:
        reward: of images; anything `as_reward` takes. It is shown the frames of several videos at once, each with the
            prompt of its video.
        frames: how many frames of a video are scored, spread evenly from the first to the last; all of a shorter one.
        reduce: 'mean' of their scores, or 'min': a video is as good as its worst frame.

    Raises:
        ValueError: for less than one frame, another reduction, or a reward of videos.
    """

    takes_videos = True

    def __init__(self, reward: RewardFunction, frames: int = 8, reduce: str = "mean") -> None:
        self.reward = as_reward(reward)
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise ValueError(f"Expected `frames` to be an integer of at least 1, but got {frames!r}.")
        if reduce not in REDUCTIONS:
            raise ValueError(f"Expected `reduce` to be 'mean' or 'min', but got {reduce!r}.")
        if self.reward.takes_videos:
            raise ValueError(f"'{self.reward.name}' scores videos itself: use it without `FrameReward`.")
        self.frames, self.reduce = frames, reduce
        self._at: dict[Reward, FrameReward] = {}
        self.name = f"{self.reward.name} of frames"
        self.default_lmbda = self.reward.default_lmbda
        self.relative, self.standardize = self.reward.relative, self.reward.standardize

    def at(self, progress: float) -> Reward:
        """The reward of the frames that is in force at a progress of the loop."""
        now = self.reward.at(progress)
        if now is self.reward:
            return self
        if now not in self._at:
            self._at[now] = FrameReward(now, self.frames, self.reduce)
        return self._at[now]

    def encode(self, images: Images, prompts: Sequence[str]) -> list[Any]:
        """What the leaves of the reward keep of the frames of each video."""
        if not isinstance(images, Tensor) or images.ndim != 5:
            raise ValueError("Expected videos (B, F, 3, H, W): `FrameReward` scores the frames of videos.")
        number = min(self.frames, images.shape[1])
        chosen = torch.linspace(0, images.shape[1] - 1, number).round().long().to(images.device)
        shown = images[:, chosen].flatten(0, 1)
        texts = [prompt for prompt in prompts for _ in range(number)]
        kept: list[dict[Reward, Any]] = [{} for _ in prompts]
        for leaf in self.reward.leaves:
            encodings = encode_images(leaf, shown, texts, "for frames")
            if isinstance(encodings, Tensor):
                encodings = encodings.to("cpu", torch.float64)
            for video, of_video in enumerate(kept):
                of_video[leaf] = encodings[video * number : (video + 1) * number]
        return kept

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        """Frame by frame what the reward makes of them, reduced."""
        reward, rewards = self.reward, []
        for group, prompt in zip(members, prompts):
            distinct, inverse = group.unique(return_inverse=True)
            videos: list[Any] = [encodings[video] for video in distinct.tolist()]
            scores = []
            for frame in range(len(next(iter(videos[0].values())))):
                of_leaves: dict[Reward, Tensor] = {}
                for leaf in reward.leaves:
                    of_frame = [video[leaf][frame] for video in videos]
                    together = torch.stack(of_frame) if isinstance(of_frame[0], Tensor) else of_frame
                    of_leaves[leaf] = leaf.of_particles(together, [inverse], [prompt])[0]
                scores.append(reward.combine(of_leaves))
            rewards.append(REDUCTIONS[self.reduce](torch.stack(scores)))
        return rewards
