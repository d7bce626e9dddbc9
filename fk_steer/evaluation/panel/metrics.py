"""What a panel measures: rewards under a label of their own, and diversity."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...bundled import fitted_options
from ...files import is_file_name
from ...loading import load_guide
from ...options import reward_options
from ...rewards.chat import check_recordable
from ...rewards.clip import CLIPReward
from ...rewards.judge import scores_or_none
from ...rewards.latent import LatentReward, check_scores_images
from ...rewards.local import unit
from ...rewards.registry import reward_factory
from ...smc import brief


DIVERSITY = "diversity"
PANEL = ("hps", "clip-score", "vqa-score", "llava-reward", "image-reward", DIVERSITY)
"""The default: the metrics of the LLaVA-Reward paper (arXiv 2507.21391, table 9) in its order, and diversity."""

Scorer = Callable[[Sequence[Image.Image], Sequence[str]], list[float | None]]
"""Images and their prompts -> scores; None where there is none to be had. A metric that depends on a prompt's other
images is given the names of their groups instead of the prompts."""


@dataclass(frozen=True)
class Metric:
    """One column.

    Attributes:
        label: its name, also that of its file.
        reward: the reward's name, or 'diversity'.
        options: of the reward; of diversity those of the `CLIPScore` whose image embeddings are compared.
        of_guide: whether it is here only because it guides: it then has no scores if it only compares or reads
            latents, where a metric that was asked for is an error.
    """

    label: str
    reward: str
    options: Mapping[str, Any] = field(default_factory=dict)
    of_guide: bool = field(default=False, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What a score depends on; metrics with the same settings are the same."""
        return {"reward": self.reward, "options": dict(self.options)}

    @property
    def of_groups(self) -> bool:
        """Whether a score depends on the prompt's other images."""
        return self.reward == DIVERSITY


def parse_metrics(texts: Iterable[str], options: Sequence[str] = ()) -> list[Metric]:
    """Metrics as the command line names them.

    Args:
        texts: NAME, NAME:VARIANT, NAME=PATH or NAME:VARIANT=PATH, several separated by commas. With a variant or
            several of a name, that is part of the label.
        options: [NAME:]KEY=VALUE, see `reward_options`.

    Raises:
        ValueError: for an unknown reward or a label twice.
    """
    entries = [entry.strip() for text in texts for entry in text.split(",") if entry.strip()]
    parts = []
    for entry in entries:
        label, equals, path = entry.partition("=")
        reward, _, variant = label.partition(":")
        parts.append((label.replace(":", "-"), reward, {"variant": variant} if variant else {}, path if equals else ""))
    names = [reward for _, reward, _, _ in parts]
    if DIVERSITY in names:
        # Its options may be given by name like those of a reward.
        names.append("clip-score")
    metrics = []
    for label, reward, own, path in parts:
        given = reward_options(list(options), reward, names)
        metrics.append(Metric(label, reward, {**own, **({"path": path} if path else {}), **given}))
    return check_metrics(metrics)


def read_metrics(entries: Mapping[str, Any] | Sequence[str]) -> list[Metric]:
    """Metrics as a YAML file names them: a list of names, or label -> options of the reward, which is the label's or
    the entry `metric`'s.

    Raises:
        ValueError: for an unknown reward or anything of another form.
    """
    if isinstance(entries, str):
        entries = [entries]
    if isinstance(entries, Sequence) and all(isinstance(name, str) for name in entries):
        return parse_metrics(entries)
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(
            f"Expected metrics as a list of names or a mapping from labels to options, but got {brief(entries)}."
        )
    metrics = []
    for label, given in entries.items():
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ValueError(f"Expected the options of the metric {label!r} as a mapping, but got {given!r}.")
        options = {name: value for name, value in given.items() if name != "metric"}
        metrics.append(Metric(label, given.get("metric", label), options))
    return check_metrics(metrics)


def check_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics, diversity with the options of CLIPScore if it has none of its own and that is among them.

    Raises:
        ValueError: for an unknown reward or option, a label twice or one that is no name of a file, or a password among
            the options.
    """
    seen: set[str] = set()
    clip = next((dict(metric.options) for metric in metrics if metric.reward == "clip-score"), {})
    checked = []
    for metric in metrics:
        parameters = inspect.signature(_factory(metric.reward)).parameters
        any_option = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        unknown = [name for name in metric.options if name not in parameters]
        if unknown and not any_option:
            raise ValueError(
                f"Metric '{metric.label}' has no option {unknown[0]!r}. It takes: {', '.join(parameters)}."
            )
        check_recordable(metric.options)
        if not metric.of_guide:
            check_scores_images(metric.reward, _factory(metric.reward))
        if not is_file_name(metric.label):
            raise ValueError(f"Expected a metric's label to be usable as the name of a file, but got {metric.label!r}.")
        if metric.label in seen:
            raise ValueError(f"Expected each metric once, but got '{metric.label}' twice; label them in a YAML file.")
        seen.add(metric.label)
        if metric.reward == DIVERSITY and not metric.options:
            metric = Metric(metric.label, metric.reward, clip)
        checked.append(metric)
    return checked


def in_world(metric: Metric) -> Metric:
    """The metric as the bundled world has it: with its own weights, unless others are given."""
    return replace(metric, options=world_options(metric.reward, metric.options))


def world_options(reward: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a reward with the bundled world's weights in place of published ones, if it has weights and none
    are given."""
    return fitted_options("shapes", "clip-score" if reward == DIVERSITY else reward, options)


def load_metric(metric: Metric, device: torch.device | str) -> Scorer:
    """
    Raises:
        RewardLoadError: if weights cannot be loaded.
        ValueError: for an unknown option, or a reward that only compares the images of a prompt with one another,
            unless it is here as a guide.
    """
    if metric.reward == DIVERSITY:
        return _diversity(load_guide("clip-score", device, **metric.options))
    reward = load_guide(metric.reward, device, **metric.options)
    if metric.of_guide and (getattr(reward, "relative", False) or isinstance(reward, LatentReward)):
        return lambda images, prompts: [None] * len(images)
    if getattr(reward, "relative", False):
        raise ValueError(
            f"'{metric.label}' says only how the images of a prompt compare with one another, so it is no metric; "
            "choose a task, variant or checkpoint that scores single images."
        )

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | None]:
        return scores_or_none(reward, images, prompts, "in a panel")

    return score


class LazyScorer:
    """A metric that is loaded when first called."""

    def __init__(self, metric: Metric, device: torch.device | str) -> None:
        self.metric, self._device = metric, device
        self._scorer: Scorer | None = None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | None]:
        if self._scorer is None:
            self._scorer = load_metric(self.metric, self._device)
        return self._scorer(images, prompts)

    def free(self) -> None:
        """Give the memory back."""
        if self._scorer is None:
            return
        self._scorer = None
        gc.collect()
        if torch.device(self._device).type == "cuda":
            torch.cuda.empty_cache()


def pairwise_distances(features: Tensor) -> list[float | None]:
    """Mean squared distance of each of N >= 2 unit vectors (N, D) to the others, 2 - 2 cos, in [0, 4]; None for a lone
    one. Their mean is the mean over pairs, which steering papers call diversity (Singhal et al., arXiv 2501.06848)."""
    number = len(features)
    if number < 2:
        return [None] * number
    distances = 2 - 2 * features.double() @ features.double().T
    return (distances.fill_diagonal_(0).sum(1) / (number - 1)).clamp(min=0).tolist()


def _diversity(clip: Any, batch_size: int = 16) -> Scorer:
    assert isinstance(clip, CLIPReward)

    @torch.no_grad()
    def score(images: Sequence[Image.Image], groups: Sequence[str]) -> list[float | None]:
        features = []
        for start in range(0, len(images), batch_size):
            inputs = clip.preprocess(images[start : start + batch_size])
            features.append(unit(clip.model.get_image_features(pixel_values=inputs).pooler_output).cpu())
        embedded = torch.cat(features)
        scores: list[float | None] = [None] * len(groups)
        for group in dict.fromkeys(groups):
            members = [index for index, other in enumerate(groups) if other == group]
            for index, value in zip(members, pairwise_distances(embedded[members])):
                scores[index] = value
        return scores

    return score


def _factory(reward: str) -> Any:
    return reward_factory("clip-score" if reward == DIVERSITY else reward)
