"""What is used where nothing is said, for the command line too, which shows it without importing PyTorch."""

from __future__ import annotations


DEFAULT_PRESET = "finish"
"""That of `fk_steer.search`, which cannot be asked without PyTorch; a test holds them to one another."""

DEFAULT_REWARD = "clip-score"
"""Name of a reward, see `fk_steer.rewards.available_rewards`."""

DEFAULT_MODEL = "shapes"
"""Name of a pipeline that comes with the package, see `fk_steer.bundled`."""
