"""Data sets on the hub: had within seconds or not at all, and read without bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..hub import ask_about, check_id
from ..packages import require


def load_hub_set(name: str, config: str | None = None, split: str | None = None) -> Any:
    """A split of a data set on the hub, or where the hub does not have it or cannot be reached, of what the cache of
    `datasets` has of it.

    Args:
        name: 'OWNER/NAME', or a folder of files.
        config: configuration; None for the only one.
        split: None for 'train'.

    Raises:
        ImportError: without the package `datasets`.
        OSError: if it can be had from neither.
        ValueError: if it has no such configuration or split.
    """
    require("datasets")
    import datasets

    split = split or "train"
    if Path(name).is_dir():
        return datasets.load_dataset(name, config, split=split)
    check_id(name, "data set")
    problem = ask_about(name, "dataset")
    if problem is None:
        return datasets.load_dataset(name, config, split=split)
    with _from_the_cache():
        try:
            return datasets.load_dataset(name, config, split=split)
        except OSError as error:
            raise OSError(
                f"Found no data set {name!r}: it is no folder here, not in the cache of `datasets`, and {problem}."
            ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Let `datasets` draw no bars meanwhile, unless HF_DATASETS_DISABLE_PROGRESS_BARS=0 asks for them."""
    require("datasets")
    from datasets import config, utils

    if utils.are_progress_bars_disabled() or config.HF_DATASETS_DISABLE_PROGRESS_BARS is False:
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _from_the_cache() -> Iterator[None]:
    """Let `datasets` ask nobody meanwhile. It reads HF_HUB_OFFLINE when it is imported, and without it asks a hub that
    cannot be reached again and again for half a minute before it looks into its cache."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
