"""The examples run as they stand, on the bundled model."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest


EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
CHEAP = {
    "steer_sdxl": ["--steps", "4", "--prompt", "a photo of a red star"],
    "any_pipeline": ["--steps", "4", "--tour"],
    "steer_video": ["--steps", "3", "--particles", "2"],
    "your_own_reward": ["--steps", "4"],
    "your_own_search": ["--steps", "10"],
    "compare_presets": ["--steps", "6", "--prompt", "a photo of a red star", "--particles", "2"],
    "llava_reward_scoring": ["--steps", "2"],
    "geneval_run": ["--steps", "2", "--limit", "6"],
    "compare_rewards": ["--steps", "2", "--limit", "2", "--reward", "none", "clip-score"],
}
"""Fewer steps and prompts than by default."""

SAYS = {
    "steer_sdxl": r"a photo of a red star: rewards [-0-9., ]+",
    "any_pipeline": r"(?s)step 1: best reward 0\.\d+, ancestors \[.*modular-flux-best of 3.*qwen-image-best of 3"
    r".*sd3-img2img-best of 3.*inpainting-best of 3",
    "steer_video": r"2 videos of 17 frames, best first: -?0\.\d+, -?0\.\d+",
    "your_own_reward": r"a function of PIL images: 0\.\d+",
    "your_own_search": r"SecondThoughts: best reward 0\.\d+, scored at steps 5, 6",
    "compare_presets": r"evolution +0\.\d+ +\d+",
    "llava_reward_scoring": r"fidelity: an image of the prompt -?\d\.\d+",
    "geneval_run": r"Overall score",
    "compare_rewards": r"0 failures; open .*report\.html",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name, *CHEAP[path.stem]])
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(SAYS[path.stem], capsys.readouterr().out)


def test_all_are_listed():
    readme = (EXAMPLES[0].parent / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.py\)", readme)) == {path.stem for path in EXAMPLES}
