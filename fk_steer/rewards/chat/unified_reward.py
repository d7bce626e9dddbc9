"""UnifiedReward: a vision-language model that scores images or videos, or compares two."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_reward_guide.images import to_pil

from ...smc import integer, unknown
from ..base import Images, Reward
from ..card import RewardCard
from ..judge import JudgeCounts
from ..local import check_variant
from ..pairwise import WIN_LMBDA, PairwiseReward
from .client import Answer, Chat
from .frames import frames_of
from .judge import TEMPLATES, Asker, ChatJudge, Task, parse_text, read_template, server
from .verdicts import (
    AXES,
    VIDEO_AXES,
    axis_scores,
    better_image,
    better_image_in_answer,
    better_video,
    final_score,
)


FILES = (
    "config.json",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
BACKENDS = ("server", "transformers")


class UnifiedReward(Reward):
    """UnifiedReward (Wang et al., arXiv 2503.05236), a vision-language model that judges images in words.

    Variants:
        - 'point': a score in 1 to 5 of alignment with the prompt and quality; typically 2 to 4.5.
        - 'axes': alignment, coherence and style, each in 1 to 5; their mean, or one of them (`axis`). The publication
          defines no aggregate; the mean is ours. For the v1.5, 2.0 and Qwen models.
        - 'pair': which of two images is better; the reward is the mean win probability over the other particles of the
          prompt, in [0, 1].
        - 'think': the same with reasoning before the verdict (UnifiedReward-Think, arXiv 2505.03318).
        - 'video': of a video, a score in 1 to 10 that weighs quality, consistency, motion, alignment and facts.
        - 'video-axes': of a video, alignment, physics and style, each in 1 to 5; their mean, or one of them (`axis`).
          For the 2.0 models.
        - 'video-pair': which of two videos is better; the reward is as with 'pair'.

    Of a video the model is shown `frames` frames as images, in their order; a server has to take that many per request
    (twice as many with 'video-pair').

    Weights: CodeGoat24/UnifiedReward-qwen-7b, also -qwen-3b and -32b (Qwen2.5-VL), UnifiedReward-7b-v1.5
    (LLaVA-OneVision; through a server only), and CodeGoat24/UnifiedReward-Think-qwen-7b for 'think'. MIT licence; the
    base of the 3b has a research licence. See the model cards. The typical ranges here are of the scales, not measured.

    What cannot be read or had is asked again, and then takes the mean of the prompt's other particles (comparisons
    count as ties); see `ChatJudge` and `PairwiseReward`. `counts` says how often.

    Args:
        variant: 'point', 'axes', 'pair' or 'think' of images; 'video', 'video-axes' or 'video-pair'.
        axis: with 'axes', one of 'alignment', 'coherence' and 'style' alone, with 'video-axes' one of 'alignment',
            'physics' and 'style'; None for the mean.
        backend: 'server', or 'transformers' to run a Qwen2.5-VL model in this process.
        path: with 'transformers', hub id or folder of the model.
        model: with 'server', the name under which it is served; None for 'UnifiedReward'.
        template: a text file with the placeholder {prompt} to ask with instead of ours.
        attempts: how often a question is asked at most if the reply cannot be read.
        max_tokens: of a reply; None for 512, or 4096 with 'think' (a reply cut before its verdict is lost).
        opponents, both_orders: with 'pair', 'think' and 'video-pair', see `PairwiseReward`.
        frames: of a video, evenly spaced from the first on.
        device: with 'transformers', None for a CUDA device if there is one.
        **options: of the server, see `ChatClient`; with 'transformers', see `QwenChat`.

    Raises:
        ValueError: for an unknown variant, axis, backend or option, or a template without the placeholder.
        RewardLoadError: if the model cannot be loaded.
        RewardError: when called, if no score of a prompt could be had, or the server refuses the key or the model.
    """

    name = "unified-reward"
    card = RewardCard(
        summary="A vision-language model trained to judge images scores them in words, or says which of two is better.",
        paper="arXiv 2503.05236; 'think' arXiv 2505.03318",
        hub_id="CodeGoat24/UnifiedReward-qwen-7b",
        files=FILES,
        licence="MIT; see the model cards for their bases",
        default_lmbda=2.0,
        variants={
            "point": RewardCard(summary="A score of alignment and quality.", typical_range=(2.0, 4.5)),
            "axes": RewardCard(summary="Mean of alignment, coherence and style.", typical_range=(2.0, 4.5)),
            "pair": RewardCard(
                summary="Mean win probability against the others.", typical_range=(0.0, 1.0), default_lmbda=WIN_LMBDA
            ),
            "think": RewardCard(
                summary="Mean win probability against the others, with reasoning.",
                hub_id="CodeGoat24/UnifiedReward-Think-qwen-7b",
                typical_range=(0.0, 1.0),
                default_lmbda=WIN_LMBDA,
            ),
            "video": RewardCard(
                summary="A score of a video's quality, motion and alignment.",
                typical_range=(4.0, 8.0),
                default_lmbda=1.0,
            ),
            "video-axes": RewardCard(
                summary="Mean of a video's alignment, physics and style.", typical_range=(2.0, 4.5)
            ),
            "video-pair": RewardCard(
                summary="Mean win probability against the others, of videos.",
                typical_range=(0.0, 1.0),
                default_lmbda=WIN_LMBDA,
            ),
        },
    )

    def __init__(
        self,
        variant: str = "point",
        axis: str | None = None,
        backend: str = "server",
        path: str | None = None,
        model: str | None = None,
        template: str | Path | None = None,
        attempts: int = 2,
        max_tokens: int | None = None,
        opponents: int | None = None,
        both_orders: bool = False,
        frames: int = 8,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        check_variant(variant, self.card, self.name)
        axes = VIDEO_AXES if variant == "video-axes" else AXES
        for kind, value, known in (("backend", backend, BACKENDS), ("axis", axis, (*axes, None))):
            if value not in known:
                raise unknown(kind, value, known, of=f" of {self.name}")
        if axis is not None and variant not in ("axes", "video-axes"):
            raise ValueError(
                f"`axis` is only used by the variants 'axes' and 'video-axes', but the variant is {variant!r}."
            )
        self.frames: int = integer("frames", frames, 1)
        self.takes_videos = variant.startswith("video")
        if (backend == "transformers") != (path is not None):
            raise ValueError(f"`path` goes with the backend 'transformers', but got {backend!r} and {path!r}.")
        question = _task(
            variant, axis, read_template(template or TEMPLATES / f"unified-reward-{variant}.txt"), max_tokens
        )
        self.ask = Asker(_chat(backend, path, model, device, options), attempts)
        self.chat = self.ask.chat
        if variant in ("pair", "think", "video-pair"):
            comparer = PairComparer(self.ask, question)
            self._method: ChatJudge | PairwiseReward = PairwiseReward(comparer, opponents, both_orders, name=self.name)
        else:
            self._method = ChatJudge(self.ask, question, self.name)
        self.relative = self._method.relative
        self.default_lmbda = self.card.variant(variant).default_lmbda

    @property
    def judge(self) -> ChatJudge | None:
        """See `scores_or_none`."""
        return self._method if isinstance(self._method, ChatJudge) else None

    @property
    def pairwise(self) -> PairwiseReward | None:
        """What compares two images or videos; None for the variants that score each."""
        return self._method if isinstance(self._method, PairwiseReward) else None

    @property
    def counts(self) -> JudgeCounts:
        """What the judge has been through so far."""
        return self.ask.counts

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """What is kept of each image; of a video, its frames or what the model says of them."""
        if not self.takes_videos:
            return self._method.encode(images, prompts)
        shown = frames_of(images, self.frames)
        return self._method.ask(self._method.task, shown, prompts) if isinstance(self._method, ChatJudge) else shown

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        return self._method.of_particles(encodings, members, prompts)


class PairComparer:
    """A `Comparer` that shows a chat model both images of a pair, or the frames of both videos."""

    def __init__(self, ask: Asker, task: Task) -> None:
        self.ask, self.task, self.name = ask, task, ask.chat.model

    def __call__(self, first: Images, second: Images, prompts: Sequence[str]) -> list[float | None]:
        """1.0 where the first image is better, 0.0 where the second is, 0.5 for ties, None for no verdict."""
        if len(first) and isinstance(first[0], tuple):
            return self.ask(self.task, [(*one, *other) for one, other in zip(first, second)], prompts)
        return self.ask(self.task, list(zip(to_pil(first), to_pil(second))), prompts)

    @property
    def failure(self) -> str:
        """Why the last comparison failed."""
        return self.ask.last_failure


def _chat(backend: str, path: str | None, model: str | None, device: Any, options: dict[str, Any]) -> Chat:
    if backend == "server":
        return server({"model": model or "UnifiedReward", **options})
    from .qwen_chat import QwenChat

    assert path is not None
    known = [name for name in inspect.signature(QwenChat).parameters if name not in ("path", "reward", "device")]
    if strange := [name for name in options if name not in known]:
        raise unknown("option", strange[0], known, of=f" of the backend 'transformers' of {UnifiedReward.name}")
    return QwenChat(path, UnifiedReward.name, device=device, **options)


def _task(name: str, axis: str | None, template: str, max_tokens: int | None) -> Task:
    if name == "video":
        return Task(
            template,
            parse_text(partial(final_score, highest=10.0)),
            "Reply with the single line 'Final Score: s' only, s being a number from 1 to 10.",
            max_tokens or 512,
        )
    if name == "point":
        return Task(
            template,
            parse_text(final_score),
            "Reply with the single line 'Final Score: s' only, s being a number from 1 to 5.",
            max_tokens or 512,
        )
    if name in ("axes", "video-axes"):
        axes = AXES if name == "axes" else VIDEO_AXES
        lines = [f"'{one.capitalize()} Score (1-5): {letter}'" for one, letter in zip(axes, "XYZ")]

        def parse(answer: Answer) -> float | None:
            scores = axis_scores(answer.text or "", axes)
            wanted = [scores[axis]] if axis else list(scores.values())
            known = [score for score in wanted if score is not None]
            return sum(known) / len(known) if len(known) == len(wanted) else None

        return Task(
            template,
            parse,
            f"Reply with the three lines {lines[0]}, {lines[1]} and {lines[2]} only.",
            max_tokens or 512,
        )
    if name in ("pair", "video-pair"):
        what = "Image" if name == "pair" else "Video"
        return Task(
            template,
            parse_text(better_image if name == "pair" else better_video),
            f"Reply with '{what} 1 is better than {what} 2.', '{what} 2 is better than {what} 1.' or 'Both "
            f"{what.lower()}s are equally good.' only.",
            max_tokens or 512,
        )
    return Task(
        template,
        parse_text(better_image_in_answer),
        "Reply with '<answer>Image 1 is better</answer>' or '<answer>Image 2 is better</answer>' only.",
        max_tokens or 4096,
    )
