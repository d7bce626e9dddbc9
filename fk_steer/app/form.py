"""What is filled in on the page, as the settings of a run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..bundled import BUNDLED, BUNDLED_REWARDS, bundled_options
from ..generate import Generation
from ..options import reward_options
from ..rewards import available_rewards
from ..rewards.chat import check_recordable
from ..rewards.registry import reward_factory
from ..search import DEFAULT_PRESET
from ..smc import unknown
from .limits import Limits, decimal, whole


MOST_REWARDS = 4
"""That can be combined."""

PROMPTS = (
    "a photo of three hearts",
    "a photo of a heart and a moon",
    "a photo of a blue triangle and a purple star",
    "a photo of four triangles",
    "a photo of a green star above a red circle",
)
"""To begin with: captions that the bundled models know."""

FIXED_REWARDS = (*BUNDLED_REWARDS, "shapes-oracle")
"""Rewards that need no download and no options."""


def offered_rewards(limits: Limits) -> list[str]:
    """Names of the rewards that can be chosen."""
    return sorted(name for name in available_rewards() if not limits.fixed or name in FIXED_REWARDS)


def prompt_of(text: object, limits: Limits) -> str:
    """A prompt as it was typed, in one line.

    Raises:
        ValueError: if there is none, or it is too long.
    """
    prompt = " ".join(str(text or "").split())
    if not prompt:
        raise ValueError("Prompt: say what the picture should show, for example: a photo of three hearts.")
    if len(prompt) > limits.letters:
        raise ValueError(f"Prompt: expected at most {limits.letters} letters, but got {len(prompt)}.")
    return prompt


def options_of(names: Sequence[str], text: object, bundled: str | None, limits: Limits) -> dict[str, dict[str, Any]]:
    """The options of each reward.

    Args:
        names: of the rewards.
        text: as typed, a line each: KEY=VALUE, or NAME:KEY=VALUE for one of several rewards.
        bundled: the bundled model whose weights the rewards take where they have some; None for the published ones.

    Raises:
        ValueError: for a line of another form, a password among them, an unknown reward, or options where there may be
            none.
    """
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    if limits.fixed and lines:
        raise ValueError("Options of rewards cannot be set on this page.")
    found = {}
    for name in names:
        if limits.fixed and name not in FIXED_REWARDS:
            raise unknown("reward", name, FIXED_REWARDS)
        reward_factory(name)
        given = reward_options(lines, name, list(names))
        check_recordable(given)
        found[name] = {**(bundled_options(bundled, name) if bundled else {}), **given}
    return found


def weights_of(names: Sequence[str] | None, typed: Sequence[object]) -> dict[str, float]:
    """Rewards and how much each counts beside the others; 1 where nothing was typed.

    Raises:
        ValueError: for no reward, too many of them, or a weight that is no number or 0.
    """
    chosen = list(dict.fromkeys(names or []))
    if not 0 < len(chosen) <= MOST_REWARDS:
        raise ValueError(f"Rewards: choose from one to {MOST_REWARDS} of them.")
    weights = {}
    for name, text in zip(chosen, typed):
        value = decimal(f"Weight of {name}", text)
        if value == 0.0:
            raise ValueError(f"Weight of {name}: expected a number other than 0. Leave the reward out instead.")
        weights[name] = 1.0 if value is None or len(chosen) == 1 else value
    return weights


def spelled(weights: Mapping[str, float]) -> str:
    """Weighted rewards as one name: 'a', 'a+b' or '2*a+b'."""
    return "+".join(name if weight == 1.0 else f"{weight:g}*{name}" for name, weight in weights.items())


def settings_of(form: Mapping[str, Any], limits: Limits) -> tuple[Generation, dict[str, float], int | None]:
    """The settings that a form asks for, the rewards with their weights, and the rows at a time.

    Args:
        form: what was typed and chosen, by the names of the page's fields.

    Raises:
        ValueError: for the first field that is wrong, naming it and saying what it may be.
    """
    prompt = prompt_of(form["prompt"], limits)
    model = str(form["model"] or "").strip() or next(iter(BUNDLED))
    if limits.fixed and model not in BUNDLED:
        raise unknown("model", model, BUNDLED)
    weights = weights_of(form["rewards"], form["weights"])
    options = options_of(list(weights), form["options"], model, limits)
    own = {name: value for name, value in options.items() if value}
    seed = whole("Seed", form["seed"], 0, 2**32 - 1, "or nothing for any")
    settings = Generation.of(
        [prompt],
        model,
        reward=spelled(weights),
        reward_options=own if len(weights) > 1 else options[next(iter(weights))],
        preset=form["preset"] or DEFAULT_PRESET,
        particles=whole("Candidates", form["particles"], 1, limits.particles, "or nothing for the preset's"),
        budget=whole("Budget", form["budget"], 1, limits.budget, "or nothing for none"),
        lmbda=decimal("Lambda", form["lmbda"], "or nothing for the reward's own"),
        scheduler=str(form["scheduler"] or "").strip() or None,
        steps=whole("Steps", form["steps"], 1, limits.steps, "or nothing for the model's usual number"),
        guidance=decimal("Guidance", form["guidance"], "or nothing for the model's usual scale"),
        negative_prompt=str(form["negative"] or "").strip() or None,
        height=whole("Height", form["height"], 8, limits.side, "or nothing for the model's"),
        width=whole("Width", form["width"], 8, limits.side, "or nothing for the model's"),
        seed=random.randrange(2**31) if seed is None else seed,
        compare=bool(form["compare"]),
    )
    if settings.negative_prompt and len(settings.negative_prompt) > limits.letters:
        raise ValueError(f"Keep out: expected at most {limits.letters} letters.")
    return settings, weights, whole("Rows at a time", form["batch_size"], 1, 4096, "or nothing for all")
