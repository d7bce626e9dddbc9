"""What comes with the package: names of bundled models and rewards, and the folders of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .combinations import by_reward, joined


WEIGHTS = Path(__file__).parent / "shapes" / "weights"

BUNDLED = {"shapes": "sd", "shapes-xl": "sdxl"}
"""Name of a bundled pipeline, usable wherever a hub id is -> its folder in `WEIGHTS`."""

SHARED = {
    "shapes-xl": {"vae": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer", "tokenizer_2": "tokenizer"}
}
"""Name of a bundled pipeline -> component -> the folder of the same component of 'shapes', which is stored once."""

BUNDLED_PREVIEWS = dict.fromkeys(BUNDLED, "preview")
"""Name of a bundled pipeline -> the folder of its preview decoder. Both have the same latents."""

BUNDLED_REWARDS: Mapping[str, Mapping[str, str]] = {
    "clip-score": {**dict.fromkeys(BUNDLED, "guide"), "shapes-held-out": "judge"},
    "image-reward": dict.fromkeys(BUNDLED, "image-reward"),
    "llava-reward": dict.fromkeys(BUNDLED, "llava-reward"),
}
"""Reward that has bundled weights -> what its `path` takes for them, names of pipelines -> their folder in `WEIGHTS`.

One CLIP guides either pipeline; the other, smaller and trained from another seed, judges what the first has guided.
The ImageReward is trained on preferences about what 'shapes' draws. The LLaVA-Reward is a folder per perspective
(alignment, fidelity, overall; '-gpm' for general preference) and `backbone`, which they share."""

BUNDLED_LLAVA_REWARD = WEIGHTS / "llava-reward"


def resolve(name: str, bundled: Mapping[str, str] = BUNDLED) -> str:
    """The folder of a bundled model; anything else, a hub id or a path, as it is."""
    return str(WEIGHTS / bundled[name]) if name in bundled else name


def resolve_reward(reward: str, path: str) -> str:
    """The folder of a reward's bundled weights if `path` names them; anything else as it is."""
    return resolve(path, BUNDLED_REWARDS.get(reward, {}))


def bundled_options(model: str, reward: str | None) -> dict[str, Any]:
    """The options with which a reward fits a pipeline: its bundled weights, if both are bundled."""
    return {"path": model} if model in BUNDLED and model in BUNDLED_REWARDS.get(reward or "", {}) else {}


def fitted_options(model: str, reward: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a reward, or of several combined, with those of `bundled_options` where they are not given.

    Args:
        reward: a name, or names combined, see `combinations.combination`; None for no reward.
        options: of the reward; of a combination by the names of its rewards.

    Raises:
        ValueError: for a text that is none of these, or options of a reward that is not in it.
    """
    if reward is None:
        return dict(options)
    given = by_reward(reward, options)
    return joined(reward, {name: {**bundled_options(model, name), **own} for name, own in given.items()})
