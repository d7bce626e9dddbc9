"""Outputs of the released LLaVA-Reward code on small random weights: where they are, and models that read them."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from llava_reward_guide.images import load_image
from llava_reward_guide.model import LlavaReward


REPOSITORY = Path(__file__).parents[2]
SHIPPED = Path(__file__).parents[1] / "golden"

REWARD_TOLERANCE = 5e-5
HIDDEN_TOLERANCE = 2e-4


def folders(backbone: str) -> list:
    """Test parameters: every fixture of a backbone, from FK_STEER_GOLDEN or beside the repository, or those shipped."""
    root = Path(os.environ.get("FK_STEER_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    found = sorted(root.glob(f"llava_reward_{backbone}_*/expected.json"))
    places = [path.parent for path in found] or sorted(SHIPPED.glob(f"llava_reward_{backbone}_*.zip"))
    if not places:
        reason = f"no fixture llava_reward_{backbone}_* in {root} or {SHIPPED}"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(place, id=place.stem) for place in places]


class Golden:
    """One fixture."""

    def __init__(self, place: Path) -> None:
        if place.suffix == ".zip":
            self._unpacked = tempfile.TemporaryDirectory()
            zipfile.ZipFile(place).extractall(self._unpacked.name)
            place = Path(self._unpacked.name)
        self.folder = place
        self.expected = json.loads((place / "expected.json").read_text())
        self.arrays = np.load(place / "expected.npz")

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def image(self, name: str):
        return load_image(self.folder / (name if name.endswith(".png") else f"images/{name}.png"))

    def load(self, **options) -> LlavaReward:
        """The fixture's checkpoint on its backbone."""
        (base,) = self.folder.glob("*_base")
        if (self.folder / "clip_vision_config.json").exists():
            vision = json.loads((self.folder / "clip_vision_config.json").read_text())
            options = {
                "num_crops": self.expected["num_crops"],
                "backbone_options": {"vision_config": vision},
                **options,
            }
        if not (base / "tokenizer.json").exists():
            base = _with_tokenizer(base)
        return LlavaReward.from_pretrained(self.folder / "adapter", backbone=base, device="cpu", **options)


@functools.cache
def golden(place: Path) -> Golden:
    return Golden(place)


@functools.cache
def loaded(place: Path, **options) -> tuple[Golden, LlavaReward]:
    return golden(place), golden(place).load(**options)


_copies: list[tempfile.TemporaryDirectory] = []


def _with_tokenizer(base: Path) -> Path:
    """A copy of a backbone that comes without a tokenizer, with one that knows the special tokens of Qwen2."""
    special = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|image_pad|>": 151655}
    tokenizer = Tokenizer(models.BPE(vocab=special, merges=[]))
    tokenizer.add_special_tokens(list(special))
    _copies.append(tempfile.TemporaryDirectory())
    copy = Path(_copies[-1].name)
    for file in base.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    tokenizer.save(str(copy / "tokenizer.json"))
    return copy
