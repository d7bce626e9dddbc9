"""What rewards that are asked in words ask with, in the records of runs: it decides over the scores as weights do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import differences, write_json
from ..records import read_record
from ..rewards.base import RewardFunction
from ..rewards.functions import as_reward


def asked_by(reward: RewardFunction | None) -> dict[str, Any]:
    """Name of each such reward -> what it asks with, where the text came from and its SHA-256."""
    leaves = () if reward is None else as_reward(reward).leaves
    return {leaf.name: record for leaf in leaves if (record := getattr(leaf, "record", None)) is not None}


def record_asked(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write what `asked_by` tells to asked.json, if it is anything.

    Raises:
        ValueError: if the folder was made with other questions, as where a published prompt could be had the first time
            and not the second.
    """
    if not asked:
        return
    path = folder / "asked.json"
    if not path.exists():
        write_json(path, dict(asked))
        return
    before = read_record(path, dict)
    if changes := differences(before, dict(asked)):
        raise ValueError(
            f"{folder} was made with other questions ({', '.join(changes)}). Choose another folder, or give the "
            "`template` that it was made with."
        )
