from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.cli import app
from fk_steer.console import reward_options
from fk_steer.rewards import available_rewards
from fk_steer.testing_rewards import TINY_REWARDS


PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name in ("pickscore", "aesthetic"):
        (folder / name).mkdir()
        TINY_REWARDS[name].save(folder / name)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    Image.new("RGBA", (20, 50), "#00ff0080").save(folder / "green.png")
    Image.effect_noise((40, 40), 50).save(folder / "whole.png")
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:500])
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture
def options(folder):
    rewards = ("pickscore", "aesthetic")
    return [word for name in rewards for word in ("--reward-option", f"{name}:path={folder / name}")]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_score_table(folder, options):
    images = [folder / "red.png", folder / "green.png"]
    result = invoke(
        "score", *images, "--prompt", PROMPT, "--reward", "pickscore,aesthetic", *options, "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["image", "pickscore", "aesthetic"]
    for path in images:
        for name in ("pickscore", "aesthetic"):
            reward = load_reward(name, path=str(folder / name), device="cpu")
            score = reward([Image.open(path)], [PROMPT]).item()
            assert any(path.name in line and f"{score:.4f}" in line for line in lines)


def test_score_json_continues_past_broken_images(folder, options):
    images = [folder / name for name in ("text.png", "red.png", "half.png", "nowhere.png", "green.png")]
    result = invoke("score", *images, "--prompt", PROMPT, "--reward", "pickscore,aesthetic", *options, "--json")
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert [entry["image"] for entry in scored["results"]] == [str(folder / "red.png"), str(folder / "green.png")]
    assert all(set(entry["scores"]) == {"pickscore", "aesthetic"} for entry in scored["results"])
    assert {entry["image"]: bool(entry["error"]) for entry in scored["errors"]} == {
        str(folder / name): True for name in ("text.png", "half.png", "nowhere.png")
    }
    table = invoke("score", *images, "--prompt", PROMPT, "--reward", "aesthetic", *options[2:])
    assert "UnidentifiedImageError" in table.output


def test_score_fails_if_no_image_can_be_read(folder, options):
    result = invoke("score", folder / "text.png", "--prompt", PROMPT, "--reward", "aesthetic", *options[2:], "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["results"] == []


def test_a_prompt_per_image(folder, options):
    images, prompts = [folder / "red.png", folder / "green.png"], [PROMPT, "two blue squares"]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = invoke("score", *images, *arguments, "--reward", "pickscore", *options[:2], "--json", "--batch-size", 1)
    assert result.exit_code == 0, result.output
    reward = load_reward("pickscore", path=str(folder / "pickscore"))
    expected = reward([Image.open(path) for path in images], prompts)
    scores = [entry["scores"]["pickscore"] for entry in json.loads(result.stdout)["results"]]
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "nope"], "Unknown reward 'nope'. Known: aesthetic"),
        (
            ["--reward", "pickscore", "--reward-option", "hps:path=x"],
            "is for a reward that is not scored by: pickscore",
        ),
        (["--reward", "pickscore", "--reward-option", "path"], "as KEY=VALUE, but got 'path'"),
        (["--reward", "pickscore", "--prompt", "another"], "--prompt once or 3 times, but got it 2 times"),
    ],
)
def test_bad_input(folder, arguments, message):
    result = invoke("score", *[folder / "red.png"] * 3, "--prompt", PROMPT, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_options():
    pairs = ["dtype=float16", "a:compile=true", "b:path=x:y=z", "a:weight=0.5"]
    assert reward_options(pairs, "a", ["a", "b"]) == {"dtype": "float16", "compile": True, "weight": 0.5}
    assert reward_options(["b:path=x=z"], "b", ["a", "b"]) == {"path": "x=z"}
    assert reward_options(["path=C:/x"], "a", ["a"]) == {"path": "C:/x"}


def test_list():
    output = invoke("rewards").output
    assert all(name in output for name in available_rewards())


@pytest.mark.parametrize("name", available_rewards())
def test_show(name):
    result = invoke("rewards", "show", name)
    assert result.exit_code == 0, result.output
    card = available_rewards()[name].load().card
    text = " ".join(result.output.split())
    assert " ".join(card.summary.split()) in text
    for variant in [card.variant(key) for key in card.variants] or [card]:
        for fact in (variant.paper, variant.hub_id, variant.revision, variant.licence, *variant.files):
            assert fact is None or fact in text
    if card.typical_range:
        assert "{:g} to {:g}".format(*card.typical_range) in text


def test_show_unknown():
    result = invoke("rewards", "show", "nope")
    assert result.exit_code == 1
    assert "Unknown reward 'nope'. Known: aesthetic, " in result.stderr
