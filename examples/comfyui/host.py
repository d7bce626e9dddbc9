"""What ComfyUI offers to a node while it runs; outside of it everything works without."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fk_steer.rewards.loading import default_device


PREVIEW_SIDE = 512
"""Longer side, in pixels, of the pictures that are shown while a node runs."""


def _part(name: str) -> Any:
    """A module of ComfyUI, which has imported it before any node runs; None elsewhere. It is not imported here, as
    other packages have the same names."""
    return sys.modules.get(name)


def device() -> torch.device:
    """Where ComfyUI computes, else a CUDA device if there is one."""
    management = _part("comfy.model_management")
    return default_device(None) if management is None else management.get_torch_device()


def make_room() -> None:
    """Take ComfyUI's own models off the device, before a pipeline or reward comes to it."""
    if management := _part("comfy.model_management"):
        management.unload_all_models()
        management.soft_empty_cache()


def check_interrupted() -> None:
    """Raise what ComfyUI raises if the user has pressed its button."""
    if management := _part("comfy.model_management"):
        management.throw_exception_if_processing_interrupted()


def output_folder() -> Path:
    """Where ComfyUI keeps what it makes, else a folder for temporary files."""
    paths = _part("folder_paths")
    return Path(tempfile.gettempdir() if paths is None else paths.get_output_directory()) / "fk-steer"


def find_pipeline(model: str) -> str:
    """The folder of a pipeline in one of ComfyUI's folders `models/diffusers`; another name as it is."""
    paths = _part("folder_paths")
    for folder in paths.get_folder_paths("diffusers") if paths else ():
        place = Path(folder) / model
        if model and (place / "model_index.json").is_file():
            return str(place)
    return model


class Progress:
    """The bar of a node. Every update is where a run can be interrupted.

    Args:
        total: units of work.
    """

    def __init__(self, total: int) -> None:
        utils = _part("comfy.utils")
        self._bar = None if utils is None else utils.ProgressBar(total)
        self._done, self._total = 0, total
        check_interrupted()

    def update(self, done: int, total: int, picture: Any = None) -> None:
        """So much is done.

        Args:
            picture: a PIL image to show; None to leave the last one.

        Raises:
            Exception: ComfyUI's own, if the run was interrupted.
        """
        self._done, self._total = done, total
        if self._bar is not None:
            preview = None if picture is None else ("JPEG", picture.convert("RGB"), PREVIEW_SIDE)
            self._bar.update_absolute(done, total, preview)
        check_interrupted()

    def show(self, picture: Any) -> None:
        """A picture of what is being made."""
        self.update(self._done, self._total, picture)

    @contextmanager
    def steps_of(self, pipe: Any) -> Iterator[None]:
        """Take the place of a pipeline's own bar, if it has one that can be replaced (modular pipelines have not)."""
        if not callable(getattr(pipe, "progress_bar", None)):
            yield
            return

        def progress_bar(iterable: Any = None, total: int | None = None) -> _Steps:
            return _Steps(iterable, total=total, told=self.update)

        pipe.progress_bar = progress_bar
        try:
            yield
        finally:
            del pipe.progress_bar


class _Steps(tqdm):
    """A pipeline's bar, which tells somebody instead of drawing."""

    monitor_interval = 0

    def __init__(self, *arguments: Any, told: Callable[[int, int], None], **options: Any) -> None:
        self._told, self._last = told, 0
        super().__init__(*arguments, **options, file=io.StringIO(), mininterval=0.0, miniters=1)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        # It is drawn at the beginning and once more at the end, too.
        if self.total and self.n > self._last:
            self._last = self.n
            self._told(self.n, self.total)
        return True
