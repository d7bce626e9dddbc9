"""UnifiedReward: a vision-language model that scores images, edited images, videos or texts about them, or compares
two."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava_reward_guide.images import load_image, to_pil

from ...smc import integer, unknown
from ..base import Images, Reward, RewardError
from ..card import RewardCard
from ..judge import JudgeCounts
from ..local import check_variant
from ..pairwise import WIN_LMBDA, PairwiseReward
from .client import Chat
from .frames import frames_of
from .judge import Asker, ChatJudge, Task, server
from .unified import CHECKPOINTS, OWNER, TASKS, UnifiedTask, template_of
from .unified.checkpoints import check_task
from .unified.tasks import ANSWER, EDITED, VIDEO, VIDEO_ANSWER


FILES = (
    "config.json",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
BACKENDS = ("server", "transformers")
QWEN, SECOND, THINK, FLEX, EDIT = (
    f"{OWNER}/{name}"
    for name in (
        "UnifiedReward-qwen-7b",
        "UnifiedReward-2.0-qwen3vl-8b",
        "UnifiedReward-Think-qwen-7b",
        "UnifiedReward-Flex-qwen3vl-8b",
        "UnifiedReward-Edit-qwen3vl-8b",
    )
)


def _card(
    summary: str, scores: tuple[float, float], hub_id: str | None = None, lmbda: float | None = None
) -> RewardCard:
    return RewardCard(summary=summary, hub_id=hub_id, typical_range=scores, default_lmbda=lmbda)


def _wins(summary: str, hub_id: str | None = None) -> RewardCard:
    return _card(f"Mean win probability against the others, {summary}.", (0.0, 1.0), hub_id, WIN_LMBDA)


class UnifiedReward(Reward):
    """UnifiedReward (Wang et al., arXiv 2503.05236), a vision-language model that judges images in words.

    Variants of images:
        - 'point': a score in 1 to 5 of alignment with the prompt and quality; typically 2 to 4.5.
        - 'axes': alignment, coherence and style, each in 1 to 5; their mean, or one of them (`axis`). The publication
          defines no aggregate; the mean is ours.
        - 'pair': which of two images is better; the reward is the mean win probability over the other particles of the
          prompt, in [0, 1].
        - 'pair-scores': how two images share a point on each of the three axes, a soft preference, which tells more
          than a verdict; the mean of the axes or one `axis`, and the reward as with 'pair'. For the 2.0 models.
        - 'think': 'pair' with reasoning before the verdict (UnifiedReward-Think, arXiv 2505.03318).
        - 'flex': 'pair' by aspects that the model chooses (UnifiedReward-Flex, arXiv 2602.02380); with the axis
          'points', the share of the points over all aspects instead of the verdict.

    Of images that were edited by an instruction, which is the prompt; `source` is the image before:
        - 'edit': the lower of success and preservation, each in 0 to 25, or one of them (`axis`).
        - 'edit-quality': the lower of naturalness and artifacts (25 is none), each in 0 to 25, or one of them; the
          image before is not shown.
        - 'edit-pair' and 'edit-pair-scores': which of two is better, and a score of either sign for each of two, of
          whose difference the preference is the sigmoid; the reward is as with 'pair'.

    Of videos: 'video' (a score in 1 to 10), 'video-axes' (alignment, physics and style), 'video-pair',
    'video-pair-scores', 'video-think' and 'video-flex', as of images. The model is shown `frames` frames as images, in
    their order; a server has to take that many per request (twice as many where it compares).

    Of texts about images, which `judge_answers` judges and steering cannot: 'answer' (0 to 100), 'answer-pair',
    'answer-think'; about videos: 'video-answer' (1 to 5), 'video-answer-pair', 'video-answer-think'.

    Weights: CodeGoat24/UnifiedReward-qwen-7b, CodeGoat24/UnifiedReward-2.0-qwen3vl-8b,
    CodeGoat24/UnifiedReward-Think-qwen-7b, CodeGoat24/UnifiedReward-Flex-qwen3vl-8b,
    CodeGoat24/UnifiedReward-Edit-qwen3vl-8b, and others; `fk-steer rewards show unified-reward` lists them with the
    variants that each knows. MIT licence; the bases of the 3b have a research licence. See the model cards. The typical
    ranges here are of the scales, not measured.

    What cannot be read or had is asked again, and then takes the mean of the prompt's other particles (comparisons
    count as ties); see `ChatJudge` and `PairwiseReward`. `counts` says how often.

    Args:
        variant: see above.
        axis: one of the variant's axes alone; None for all.
        checkpoint: id of the model that is served, so that it is asked in the words it was trained with; None for
            `path` or `model` where these are such an id, else for the variant's usual one.
        backend: 'server', or 'transformers' to run a Qwen2.5-VL or Qwen3-VL model in this process.
        path: with 'transformers', hub id or folder of the model.
        model: with 'server', the name under which it is served; None for 'UnifiedReward'.
        template: what to ask with, see `template_of`: a text file with the placeholder {prompt}, a published script,
            'ours', 'published', or None for the published prompt if it can be had, else ours.
        source: with a variant of edited images, the image before, or its path; or a mapping of prompts to such.
        attempts: how often a question is asked at most if the reply cannot be read.
        max_tokens: of a reply; None for 512, or 4096 where the reply reasons (one cut before its verdict is lost).
        opponents, both_orders: of variants that compare, see `PairwiseReward`.
        frames: of a video, evenly spaced; None for 8, or 16 with 'video-axes'.
        device: with 'transformers', None for a CUDA device if there is one.
        **options: of the server, see `ChatClient`; with 'transformers', see `QwenChat`.

    Attributes:
        template: the `Template` that is asked with.
        source: see above; it may be changed between calls.
        takes_answers: whether it judges texts.
        takes_edits: whether it judges edited images.

    Raises:
        ValueError: for an unknown variant, axis, backend or option, a template without the placeholder, or a checkpoint
            that does not know the variant.
        RewardLoadError: if the model cannot be loaded.
        RewardError: when called, if no score of a prompt could be had, or the server refuses the key or the model.
    """

    name = "unified-reward"
    card = RewardCard(
        summary="A vision-language model trained to judge images scores them in words, or says which of two is better.",
        paper="arXiv 2503.05236; 'think' arXiv 2505.03318; 'flex' arXiv 2602.02380",
        hub_id=QWEN,
        files=FILES,
        licence="MIT; see the model cards for their bases",
        default_lmbda=2.0,
        variants={
            "point": _card("A score of alignment and quality.", (2.0, 4.5)),
            "axes": _card("Mean of alignment, coherence and style.", (2.0, 4.5)),
            "pair": _wins("by verdicts"),
            "pair-scores": _wins("by shares on three axes", SECOND),
            "think": _wins("with reasoning", THINK),
            "flex": _wins("by aspects of the model's choice", FLEX),
            "edit": _card("Success and preservation of an edit, the lower.", (5.0, 24.0), EDIT, 0.5),
            "edit-quality": _card("Naturalness and lack of artifacts, the lower.", (5.0, 24.0), EDIT, 0.5),
            "edit-pair": _wins("of edited images", EDIT),
            "edit-pair-scores": _wins("of edited images by scores of either sign", EDIT),
            "video": _card("A score of a video's quality, motion and alignment.", (4.0, 8.0), None, 1.0),
            "video-axes": _card("Mean of a video's alignment, physics and style.", (2.0, 4.5), SECOND),
            "video-pair": _wins("of videos"),
            "video-pair-scores": _wins("of videos by shares on three axes", SECOND),
            "video-think": _wins("of videos with reasoning", THINK),
            "video-flex": _wins("of videos by aspects of the model's choice", FLEX),
            "answer": _card("A score of a text about an image.", (20.0, 95.0), None, 0.1),
            "answer-pair": _wins("of texts about an image"),
            "answer-think": _wins("of texts about an image, with reasoning", THINK),
            "video-answer": _card("A score of a text about a video.", (2.0, 4.5)),
            "video-answer-pair": _wins("of texts about a video"),
            "video-answer-think": _wins("of texts about a video, with reasoning", THINK),
        },
        checkpoints={checkpoint: family.tasks for checkpoint, family in CHECKPOINTS.items()},
    )

    def __init__(
        self,
        variant: str = "point",
        axis: str | None = None,
        checkpoint: str | None = None,
        backend: str = "server",
        path: str | None = None,
        model: str | None = None,
        template: str | Path | None = None,
        source: Image.Image | str | Path | Mapping[str, Image.Image | str | Path] | None = None,
        attempts: int = 2,
        max_tokens: int | None = None,
        opponents: int | None = None,
        both_orders: bool = False,
        frames: int | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        check_variant(variant, self.card, self.name)
        task = TASKS[variant]
        _check_axis(axis, variant, task)
        if backend not in BACKENDS:
            raise unknown("backend", backend, BACKENDS, of=f" of {self.name}")
        if (backend == "transformers") != (path is not None):
            raise ValueError(f"`path` goes with the backend 'transformers', but got {backend!r} and {path!r}.")
        if source is not None and task.subject != EDITED:
            raise ValueError(f"`source` goes with the variants of edited images, but the variant is {variant!r}.")
        self.variant, self.source = variant, source
        self.frames: int = integer("frames", task.frames if frames is None else frames, 1)
        self.takes_videos, self.takes_edits = task.subject == VIDEO, task.subject == EDITED
        self.takes_answers, self.of_videos = task.subject in (ANSWER, VIDEO_ANSWER), task.subject in (VIDEO, VIDEO_ANSWER)
        if checkpoint is not None and checkpoint not in CHECKPOINTS and f"{OWNER}/{checkpoint}" not in CHECKPOINTS:
            raise unknown("checkpoint", checkpoint, CHECKPOINTS, of=f" of {self.name}")
        usual = str(self.card.variant(variant).hub_id)
        families = [check_task(name, variant) for name in (checkpoint, path, model)]
        self.family = next((family for family in families if family is not None), CHECKPOINTS[usual])
        self.template = template_of(variant, self.family.prompts, task.fields, template)
        # Servers of models that may think are asked not to; others refuse the field and are asked without it.
        optional = {"chat_template_kwargs": {"enable_thinking": False}} if self.family.base == "Qwen3.5" else None
        self._task, self._question = task, task.asked(self.template.text, axis, max_tokens, optional)
        self.ask = Asker(_chat(backend, path, model, device, options), attempts)
        self.chat = self.ask.chat
        self.both_orders = both_orders
        if task.compares:
            comparer = PairComparer(self.ask, self._question, task.shows_source)
            self._method: ChatJudge | PairwiseReward = PairwiseReward(comparer, opponents, both_orders, name=self.name)
        else:
            self._method = ChatJudge(self.ask, self._question, self.name)
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

    @property
    def record(self) -> dict[str, str]:
        """What it asks with, for the records of runs."""
        return {
            "variant": self.variant,
            "family": self.family.title,
            "template": self.template.origin,
            "template sha256": self.template.sha256,
        }

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """What is kept of each image, or what the model says of it; of a video, its frames."""
        if self.takes_answers:
            raise RewardError(
                f"The variant {self.variant!r} of '{self.name}' judges texts about images, not images: `fk-steer judge` "
                "takes it, and so does `judge_answers`."
            )
        if self.takes_videos:
            shown: list[tuple[Any, ...]] = list(frames_of(images, self.frames, self._task.to_the_end))
        elif self._task.shows_source:
            shown = [(self._before(prompt), image) for image, prompt in zip(to_pil(images), prompts)]
        elif isinstance(self._method, ChatJudge):
            shown = [(image,) for image in to_pil(images)]
        else:
            return self._method.encode(images, prompts)
        return self.ask(self._question, shown, prompts) if isinstance(self._method, ChatJudge) else shown

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        return self._method.of_particles(encodings, members, prompts)

    def judge_answers(
        self, shown: Sequence[tuple[Image.Image, ...]], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float | None]]:
        """Judge texts about images.

        Args:
            shown: for each question the images it is about, or the frames of the video, see `frames_of`.
            questions: about them.
            answers: to each question; two where the variant compares.

        Returns:
            for each question a score of each answer, or of two the probability that it is better than the other; None
            where it could not be had.

        Raises:
            ValueError: if the variant judges no texts, or compares and there are not two.
        """
        if not self.takes_answers:
            raise ValueError(f"Expected a variant that judges texts, such as 'answer-pair', but it is {self.variant!r}.")
        if not self._task.compares:
            flat = [(i, {"question": questions[i], "answer": text}) for i, some in enumerate(answers) for text in some]
            scores = iter(self.ask(self._question, [shown[i] for i, _ in flat], [values for _, values in flat]))
            return [[next(scores) for _ in some] for some in answers]
        if any(len(some) != 2 for some in answers):
            raise ValueError(f"Expected two answers to each question, which {self.variant!r} compares.")
        orders = [(0, 1), (1, 0)] if self.both_orders else [(0, 1)]
        asked = [
            (i, {"question": questions[i], "first": some[a], "second": some[b]})
            for a, b in orders
            for i, some in enumerate(answers)
        ]
        found = self.ask(self._question, [shown[i] for i, _ in asked], [values for _, values in asked])
        probabilities: list[float | None] = list(found[: len(answers)])
        if self.both_orders:
            probabilities = [
                # One order alone would bring back the preference for a place.
                None if p is None or q is None else (p + 1.0 - q) / 2
                for p, q in zip(probabilities, found[len(answers) :])
            ]
        return [[None, None] if p is None else [p, 1.0 - p] for p in probabilities]

    def _before(self, prompt: str) -> Image.Image:
        source = self.source.get(prompt) if isinstance(self.source, Mapping) else self.source
        if source is None:
            raise RewardError(
                f"The variant {self.variant!r} of '{self.name}' has no image from before the edit {prompt!r}. Give it "
                "as `source`."
            )
        return source if isinstance(source, Image.Image) else load_image(source)


def _check_axis(axis: str | None, variant: str, task: UnifiedTask) -> None:
    if axis is not None and not task.axes:
        takers = ", ".join(repr(name) for name, one in TASKS.items() if one.axes)
        raise ValueError(f"`axis` is only used by the variants {takers}, but the variant is {variant!r}.")
    if axis not in (*task.axes, None):
        raise unknown("axis", axis, (*task.axes, None), of=f" of {UnifiedReward.name}")


class PairComparer:
    """A `Comparer` that shows a chat model both images of a pair, or the frames of both videos; of edited images, the
    one before first."""

    def __init__(self, ask: Asker, task: Task, shows_source: bool = False) -> None:
        self.ask, self.task, self.shows_source, self.name = ask, task, shows_source, ask.chat.model

    def __call__(self, first: Images, second: Images, prompts: Sequence[str]) -> list[float | None]:
        """How probable it is that the first image is better, 1.0 or 0.0 for verdicts and 0.5 for ties; None for no
        verdict."""
        if len(first) and isinstance(first[0], tuple):
            # Of edited images each comes with the one before.
            start = 1 if self.shows_source else 0
            return self.ask(self.task, [(*one, *other[start:]) for one, other in zip(first, second)], prompts)
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
