"""What chat judges ask with, in the records of runs: the text decides over the scores as weights do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import differences, write_json
from ..records import read_record
from ..rewards.base import RewardFunction, as_reward


def record_asked(folder: Path, reward: RewardFunction) -> None:
    """Write what the chat judges of a reward ask with, where the text came from and its SHA-256, to asked.json; nothing
    for other rewards.

    Raises:
        ValueError: if the folder was made with other questions, as where a published prompt could be had the first time
            and not the second.
    """
    asked: dict[str, Any] = {
        leaf.name: record for leaf in as_reward(reward).leaves if (record := getattr(leaf, "record", None)) is not None
    }
    if not asked:
        return
    path = folder / "asked.json"
    if not path.exists():
        write_json(path, asked)
        return
    before = read_record(path, dict)
    if changes := differences(before, asked):
        raise ValueError(
            f"{folder} was made with other questions ({', '.join(changes)}). Choose another folder, or give the "
            "`template` that it was made with."
        )
