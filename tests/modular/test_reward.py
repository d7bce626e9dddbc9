"""Rewards as components: their modules are found, moved and loaded, and what they say stays the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fk_steer import FKSteering, Reward, load_reward, steer
from fk_steer.modular import RewardModel
from fk_steer.rewards import Finalists, WeightedSum
from fk_steer.rewards.functions import as_pil
from fk_steer.testing import CALLS, PROMPTS, redness, save_clip


IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = [PROMPTS[0]] * 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


class Ranked(Reward):
    """Needs all particles of a prompt."""

    relative = True

    def __init__(self):
        self.net = torch.nn.Linear(3, 2)

    def encode(self, images, prompts):
        return list(images.mean((2, 3)))

    def of_particles(self, encodings, members, prompts):
        scores = torch.stack(encodings) @ torch.tensor([1.0, 2.0, 3.0])
        return [scores[group].argsort().argsort().double() for group in members]


class Changing(Reward):
    """Another reward is in force in the second half."""

    def __init__(self, early, late):
        self.early, self.late = early, late

    @property
    def leaves(self):
        return (self.early,)

    def at(self, progress):
        return self.early if progress < 0.5 else self.late


def rewards(clip):
    score = load_reward("clip-score", path=clip)
    return {
        "function": redness,
        "pictures": as_pil(lambda pictures, prompts: [picture.getpixel((0, 0))[0] for picture in pictures]),
        "model": score,
        "sum": WeightedSum({score: 2.0, redness: 0.1}),
        "finalists": Finalists(redness, score, 2),
        "ranked": Ranked(),
        "changing": Changing(score, Ranked()),
    }


@pytest.mark.parametrize("name", ["function", "pictures", "model", "sum", "finalists", "ranked", "changing"])
class TestSameAsPlain:
    def test_scores(self, name, clip):
        plain = rewards(clip)[name]
        model = RewardModel(plain)
        if not isinstance(plain, Reward):
            plain = partial(plain, prompts=TEXTS)
            assert torch.equal(model.reward(IMAGES, TEXTS), plain(IMAGES))
        else:
            assert torch.equal(model.reward(IMAGES, TEXTS), plain(IMAGES, TEXTS))

    def test_steering(self, name, clip):
        plain = rewards(clip)[name]
        make, call = CALLS["flux"]
        settings = FKSteering(3, 5.0, schedule=(1, 3))
        outputs = [
            steer(make(), reward, settings)(
                prompt=PROMPTS,
                **{**call, "num_inference_steps": 5, "output_type": "pt"},
                generator=torch.Generator().manual_seed(0),
            )
            for reward in (plain, RewardModel(plain).reward)
        ]
        assert torch.equal(outputs[0].particles, outputs[1].particles)
        assert torch.equal(outputs[0].rewards, outputs[1].rewards)
        traces = [output.trace for output in outputs]
        assert traces[0].reward == traces[1].reward
        assert traces[0].reward_calls_by_part == traces[1].reward_calls_by_part


class TestModules:
    def test_are_those_of_all_parts(self, clip):
        score, ranked = load_reward("clip-score", path=clip), Ranked()
        assert list(RewardModel(score).parts) == [score.model]
        assert list(RewardModel(WeightedSum({score: 1.0, redness: 1.0})).parts) == [score.model]
        assert list(RewardModel(Changing(score, ranked)).parts) == [score.model, ranked.net]
        assert list(RewardModel(redness).parts) == []

    def test_of_functions(self):
        net = torch.nn.Linear(3, 1)

        class Judge:
            def __init__(self):
                self.net = net

            def __call__(self, images, prompts):
                return self.net(images.mean((2, 3)))[:, 0]

            def score(self, images, prompts):
                return self(images, prompts)

        judge = Judge()
        assert list(RewardModel(judge).parts) == [net]
        assert list(RewardModel(judge.score).parts) == [net]

    def test_a_reward_follows_its_modules(self, clip):
        score = load_reward("clip-score", path=clip)
        before = score(IMAGES, TEXTS)
        model = RewardModel(score)
        model.to(torch.float64)
        after = model.reward(IMAGES, TEXTS)
        assert score.dtype == torch.float64
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
        model.to(torch.float32)
        torch.testing.assert_close(model.reward(IMAGES, TEXTS), before, atol=1e-6, rtol=0)

    def test_everything_is_computed_by_calls_of_the_module(self, clip):
        score, calls = load_reward("clip-score", path=clip), []
        model = RewardModel(WeightedSum({score: 1.0, Ranked(): 1.0}))
        model.register_forward_pre_hook(lambda module, args: calls.append(args[0].__name__))
        model.reward(IMAGES, TEXTS)
        assert sorted(calls) == ["encode", "encode", "of_particles"]

    def test_size(self, clip):
        model = RewardModel(load_reward("clip-score", path=clip))
        assert model.get_memory_footprint() >= 4 * sum(value.numel() for value in model.parameters())


class TestLoading:
    def test_by_name(self, clip):
        model = RewardModel.from_pretrained("clip-score", path=clip, variant="hessel")
        assert (model.reward.name, model.reward.default_lmbda) == (
            "clip-score",
            load_reward("clip-score", path=clip, variant="hessel").default_lmbda,
        )

    def test_what_is_said_to_all_components(self, clip):
        model = RewardModel.from_pretrained(
            "clip-score", path=clip, variant="fp16", use_safetensors=True, dtype=torch.float64
        )
        assert model.dtype == torch.float64

    def test_unknown(self):
        with pytest.raises(ValueError, match="Unknown reward 'clip-scores'.*clip-score"):
            RewardModel.from_pretrained("clip-scores")
        with pytest.raises(ValueError, match="has no option 'sise'"):
            RewardModel.from_pretrained("clip-score", sise=1)
        with pytest.raises(ValueError, match="not from a subfolder, but got 'reward'"):
            RewardModel.from_pretrained("clip-score", subfolder="reward")
