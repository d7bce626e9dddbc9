"""From prompts to a model that was trained on preferences, by the commands of docs/better-model.md at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import blocks, commands
from typer.testing import CliRunner

from fk_steer.cli import app


PAGE = "docs/better-model.md"

TOY = {
    "prefer": ["--particles", "2", "--seeds", "1", "--steps", "2"],
    "train": [
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--micro-batch-size",
        "2",
        "--warmup",
        "0",
        "--learning-rate",
        "0.01",
    ],
    "generate": ["--particles", "2", "--steps", "2"],
    "compare": ["--limit", "1", "--samples", "1", "--particles", "2", "--steps", "2", "--report-prompts", "1"],
}
"""Command -> options that take the place of the page's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all commands of the page have been run."""
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("better")
    (folder / "prompts.txt").write_text("a photo of a red star\na photo of two hearts\n")
    (study,) = blocks(PAGE, "yaml")
    (folder / "better.yaml").write_text(study)
    words = [words[1:] for words in commands(PAGE)]
    assert [some[0] for some in words] == list(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for some in words:
            result = CliRunner().invoke(app, [*some, *TOY[some[0]]])
            assert result.exit_code == 0, f"{some}: {result.output} {result.exception!r}"
    return folder


def test_preferences_of_every_prompt_are_made(folder):
    summary = json.loads((folder / "out/preferences/summary.json").read_text())
    assert summary["prompts"] == summary["rows"] == 2


def test_weights_are_left_that_generating_takes(folder):
    assert (folder / "out/dpo/final/pytorch_lora_weights.safetensors").stat().st_size > 1000
    settings = json.loads((folder / "out/three-hearts/settings.json").read_text())
    assert settings["lora"] == "out/dpo/final" and (folder / "out/three-hearts/report.html").exists()


def test_the_model_from_before_is_compared_with_the_one_from_after(folder):
    images = {
        label: sorted(folder.glob(f"out/better/**/{label}/none/*/samples/*.png")) for label in ("before", "after")
    }
    assert len(images["before"]) == len(images["after"]) == 1
    assert images["before"][0].read_bytes() != images["after"][0].read_bytes()
    report = Path(folder / "out/better/report.html").read_text()
    assert "before" in report and "after" in report
