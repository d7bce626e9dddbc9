"""LLaVA-Reward steers the bundled world."""

from __future__ import annotations

import pytest
import torch
from tiny_checkpoints import checkpoints

from fk_steer import FKSteering, load_reward
from fk_steer.rewards import Cascade, GeneralPreferenceReward, RewardLoadError
from fk_steer.rewards.llava_reward import LLaVAReward
from fk_steer.shapes import load_pipeline
from llava_reward_guide import preference_probability


PROMPT = "a photo of a red star and a blue circle"


@pytest.fixture(scope="module")
def root():
    return checkpoints()[0]


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def steered(pipe, reward, **settings):
    return pipe(
        PROMPT,
        reward=reward,
        steering=FKSteering(num_particles=3, **settings),
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )


def test_steers(pipe, root):
    reward = load_reward("llava-reward", path=str(root / "alignment"), num_crops=1, device="cpu")
    assert isinstance(reward, LLaVAReward)
    assert (reward.name, reward.default_lmbda) == ("llava-reward", 60.0)
    output = steered(pipe, reward)
    assert len(output.trace.events) > 1
    assert output.trace.events[0].rewards is not None
    # The rewards reported are those of the very images returned, best first.
    torch.testing.assert_close(output.rewards[0], reward(output.particles[0], [PROMPT] * 3).cpu(), atol=1e-5, rtol=0)
    assert (output.rewards[0].diff() <= 0).all()


def test_cascade_of_crops(pipe, root):
    reward = load_reward("llava-reward", path=str(root / "alignment"), num_crops=2, device="cpu")
    cheap = reward.view(num_crops=1)
    assert cheap.model is reward.model
    output = steered(pipe, Cascade(cheap, reward, switch=0.6))
    assert output.trace.reward_calls_by_part["llava-reward at 1 crops"] > 0
    assert output.trace.reward_calls_by_part["llava-reward"] > 0


def test_general_preference(pipe, root):
    reward = load_reward("llava-reward", path=str(root / "preference"), num_crops=1, device="cpu")
    assert isinstance(reward, GeneralPreferenceReward)
    assert reward.default_lmbda == 6.0
    images = torch.rand(4, 3, 64, 64)
    prompts = ["a", "b", "a", "a"]
    found = reward(images, prompts)
    embeddings = reward.embed(images, prompts)
    for i, others in ((0, [2, 3]), (2, [0, 3]), (3, [0, 2])):
        wins = preference_probability(embeddings[i], embeddings[others], 0.2)
        torch.testing.assert_close(found[i], wins.mean())
    assert found[1] == 0.5
    output = steered(pipe, reward)
    assert ((output.rewards >= 0) & (output.rewards <= 1)).all()


def test_perspectives_and_offload(root):
    paths = {"alignment": str(root / "alignment"), "safety": str(root / "safety")}
    reward = load_reward("llava-reward", path=paths, num_crops=1, device="cpu", offload=True)
    safety = reward.view(perspective="safety")
    images = torch.rand(2, 3, 40, 40)
    first = [view(images, ["x", "y"]) for view in (reward, safety)]
    second = [view(images, ["x", "y"]) for view in (reward, safety)]
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert not torch.allclose(*first)
    with pytest.raises(ValueError, match="Unknown perspective 'beauty'"):
        reward.view(perspective="beauty")
    with pytest.raises(ValueError, match="got both"):
        load_reward("llava-reward", path=str(root / "alignment"), quantize="8bit", offload=True)


def test_missing(tmp_path):
    with pytest.raises(RewardLoadError, match="which is neither"):
        load_reward("llava-reward", path=str(tmp_path / "none"))
